import pandas as pd
import pytest

from dt2it_pipeline.config.recipe import CurationSettings, RecipeError, parse_recipe
from dt2it_pipeline.curate import Anchor, make_policy, merge, verify, vote_and_flip
from dt2it_pipeline.curate.annotation.budget import BEYOND
from dt2it_pipeline.curate.tables import to_frame
from dt2it_pipeline.storage import schemas
from dt2it_pipeline_tests.support.label_worlds import World, judged, judged_with

NOBODY = to_frame(schemas.table([], "votes"))


def test_paper_is_the_default_and_computes_what_the_published_steps_compute():
    world = World(200, 0.3)
    scores = pd.concat([world.voter("a"), world.voter("b")])
    policy = make_policy(CurationSettings())
    assert (policy.name, policy.has_verifier, policy.takes_anchor) == ("paper", True, False)
    voted = policy.vote(world.pairs, scores, {"a": world.pairs["pair_id"].tolist()}, Anchor()).result
    expected = vote_and_flip(world.pairs, scores, 0.5)
    pd.testing.assert_frame_equal(voted.voted, expected.voted)
    assert voted.flipped == expected.flipped
    pd.testing.assert_frame_equal(policy.check(voted.voted, scores).contested, verify(expected.voted, scores).contested)


@pytest.mark.parametrize("calls", [0, 40, None])
def test_paper_asks_two_judges_about_contested_pairs_alone_within_the_budget(calls):
    world = World(300, 0.3)
    policy = make_policy(CurationSettings())
    voted = policy.vote(world.pairs, world.voter("a"), {}, Anchor()).result.voted
    checked = policy.check(voted, world.voter("v"))
    asked = []

    def ask(pairs):
        asked.append(pairs)
        return judged_with(0.95, world, pairs)

    people = judged(checked.verified.iloc[:1], [("rejected", "rejected")])
    made = policy.decide(checked.verified, checked.contested, people, ask, 2, calls, Anchor())
    assert (
        len(made.votes) == 2 * len(asked[0]) == min(calls if calls is not None else 10**9, 2 * len(checked.contested))
    )
    assert not set(asked[0]["pair_id"]) & set(checked.verified["pair_id"])
    turned = made.annotated[made.annotated["pair_id"] == people["pair_id"][0]]
    assert turned["chosen_id"].tolist() == checked.verified["rejected_id"].tolist()[:1]
    assert (made.reopened, made.beyond_budget) == (1, int((made.dropped["reason"] == BEYOND).sum()))
    ends = [*made.kept["pair_id"], *made.annotated["pair_id"], *made.dropped["pair_id"]]
    assert sorted(ends) == sorted(voted["pair_id"])
    merge(made.kept, made.annotated)


def test_paper_without_a_contested_pair_asks_nobody():
    none = vote_and_flip(World(4, 0.3).pairs.iloc[:0], World(4, 0.3).voter("a")).voted
    made = make_policy(CurationSettings()).decide(none, none, NOBODY, lambda pairs: NOBODY, 2, None, Anchor())
    assert (len(made.kept), len(made.annotated), len(made.dropped)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("policy: newest", "curation.policy: .*'paper' or 'joint'"),
        ("keep_probability: 1.0", "curation.keep_probability: .*less than 1"),
        ("keep_probability: 0.4", "curation.keep_probability: .*0.5"),
        ("wrong_label_cost: 0.5", "curation.wrong_label_cost: .*greater than or equal to 1"),
        ("call_cost: -1", "curation.call_cost: .*greater than or equal to 0"),
        ("trusted_pairs: 10", "trusted_pairs needs the policy `joint`"),
    ],
)
def test_a_wrong_setting_is_named(setting, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(f"name: x\nannotation: {{judges: [{{name: a}}, {{name: b}}]}}\ncuration: {{{setting}}}\n")
