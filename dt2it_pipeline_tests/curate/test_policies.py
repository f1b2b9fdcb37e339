import pandas as pd
import pytest

from dt2it_pipeline.config.recipe import CurationSettings, RecipeError, parse_recipe
from dt2it_pipeline.curate import make_policy, posterior_vote, verify, vote_and_flip
from dt2it_pipeline_tests.support.label_worlds import World


def test_paper_is_the_default_and_computes_what_the_published_steps_compute():
    world = World(200, 0.3)
    scores = pd.concat([world.voter("a"), world.voter("b")])
    policy = make_policy(CurationSettings())
    assert (policy.name, policy.has_verifier, policy.heeds_training) == ("paper", True, False)
    voted, _ = policy.vote(world.pairs, scores, {"a": world.pairs["pair_id"].tolist()})
    expected = vote_and_flip(world.pairs, scores, 0.5)
    pd.testing.assert_frame_equal(voted.voted, expected.voted)
    assert voted.flipped == expected.flipped
    pd.testing.assert_frame_equal(policy.check(voted.voted, scores).contested, verify(expected.voted, scores).contested)


def test_posterior_passes_its_settings_on_and_reports_what_it_estimated():
    world = World(300, 0.3, sources=("x", "y"))
    scores = world.voter("a")
    policy = make_policy(CurationSettings(policy="posterior", keep_probability=0.95, smallest_source=151))
    voted, metadata = policy.vote(world.pairs, scores, {})
    assert metadata["pooled_sources"] == ["x", "y"]
    assert set(metadata["voter_weights"]) == {"a"}
    pd.testing.assert_frame_equal(voted.voted, posterior_vote(world.pairs, scores, smallest_source=151).voted)
    strict = policy.check(voted.voted, scores.iloc[:0])
    loose = make_policy(CurationSettings(policy="posterior", keep_probability=0.6)).check(voted.voted, scores.iloc[:0])
    assert len(strict.verified) < len(loose.verified)
    assert len(strict.verified) + len(strict.contested) == len(world.pairs)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("policy: newest", "curation.policy: .*'paper' or 'posterior'"),
        ("keep_probability: 1.0", "curation.keep_probability: .*less than 1"),
        ("keep_probability: 0.4", "curation.keep_probability: .*0.5"),
        ("smallest_source: 0", "curation.smallest_source: .*greater than or equal to 1"),
    ],
)
def test_a_wrong_setting_is_named(setting, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(f"name: x\nannotation: {{judges: [{{name: a}}, {{name: b}}]}}\ncuration: {{{setting}}}\n")
