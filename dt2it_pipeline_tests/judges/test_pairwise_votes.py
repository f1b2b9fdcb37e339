"""Verdicts on pairs by judges that compare two responses."""

from __future__ import annotations

import json

import pytest

from dt2it_pipeline.config.sections.judging import EndpointJudgeSettings
from dt2it_pipeline.judges.factory import make_judge
from dt2it_pipeline.judges.likelihood.judges import LikelihoodJudge
from dt2it_pipeline.judges.pairwise_votes import MOST_WORDS, NoVerdict, PairVerdict, PairwiseVotes, kept_words
from dt2it_pipeline.judges.protocol import PAIRWISE, JudgeRequest, Reply
from dt2it_pipeline.judges.reply_cache import ReplyCache
from dt2it_pipeline.storage import records
from dt2it_pipeline_tests.support.construct_world import COLORS, prompt_row
from dt2it_pipeline_tests.support.fault_server import FaultServer, serving


def _pairs(prompts, good="worth-9", bad="worth-2"):
    """Pairs whose chosen side is the better one in every other row."""
    rows = []
    for number, prompt in enumerate(prompts):
        sides = (f"item-{number} {good}", f"item-{number} {bad}")
        rows.append(records.make_pair(prompt["prompt_id"], *(sides if number % 2 else sides[::-1]), source="s"))
    return rows


@pytest.mark.parametrize("order", ["forward", "reversed"])
def test_an_endpoint_votes_for_the_better_side_wherever_it_stands(tmp_path, order):
    prompts = [prompt_row(tmp_path, color, language) for color in COLORS for language in ("what is it?", "which one?")]
    by_id = {row["prompt_id"]: row for row in prompts}
    pairs = [*_pairs(prompts), records.make_pair("no such prompt", "a", "b", source="s")]
    with serving(FaultServer({"item-3": ("prose", 99), "item-4": ("500", 1)})) as server:
        settings = EndpointJudgeSettings(
            name="remote", base_url=server.url, model="m", longest_wait_seconds=0.05, attempts=2
        )
        votes = PairwiseVotes(make_judge(settings, prompts, tmp_path), by_id, order)
        verdicts = votes.verdicts(pairs)
        questions = [body["messages"][0]["content"][1]["text"] for body in server.bodies]
    expected = ["chosen" if number % 2 else "rejected" for number in range(12)]
    assert [v.side for n, v in enumerate(verdicts[:12]) if n != 3] == [v for n, v in enumerate(expected) if n != 3]
    assert '"better"' in verdicts[4].words and verdicts[3].words == "I would rather not say."
    assert isinstance(verdicts[3], NoVerdict) and verdicts[3].detail.endswith("I would rather not say.")
    assert verdicts[12] == NoVerdict("unknown prompt", "no such prompt")
    assert (votes.tally.calls, votes.tally.judged, votes.tally.unusable) == (12, 11, 1)
    chosen_first = [words.index("worth-9") < words.index("worth-2") for words in questions]
    assert True in chosen_first and False in chosen_first  # the label does not decide the place


def test_the_two_orders_show_opposite_places_and_a_tie_is_a_tie(tmp_path):
    prompt = prompt_row(tmp_path, "red")
    (pair,) = _pairs([prompt])
    seen = []

    class Watcher:
        name, modes, attempts, max_runs = "watcher", frozenset({PAIRWISE}), 1, 1

        def template_hash(self, mode, language):
            return "t"

        def fingerprint(self):
            return None

        def judge(self, requests):
            seen.extend(request.responses for request in requests)
            yield from ((place, Reply('{"better": 0}')) for place in range(len(requests)))

    verdicts = [
        PairwiseVotes(Watcher(), {prompt["prompt_id"]: prompt}, o).verdicts([pair]) for o in ("forward", "reversed")
    ]
    assert verdicts == [[PairVerdict("tie", '{"better": 0}')]] * 2
    assert seen[0] == seen[1][::-1]
    with pytest.raises(ValueError, match="sideways"):
        PairwiseVotes(Watcher(), {}, "sideways")


def test_likelihood_compares_two_responses_and_its_replies_are_kept(tmp_path):
    prompt = prompt_row(tmp_path, "red")
    asked = []

    class Weigher:
        def evidence(self, questions):
            asked.extend(questions)
            return [[float(len(text)) for text in question.responses] for question in questions]

    judge = LikelihoodJudge("likely", "some model", Weigher(), tmp_path)
    ((_, reply),) = judge.judge([JudgeRequest(prompt, ("longer", "short"), PAIRWISE)])
    assert json.loads(reply.text) == {"better": 1}
    assert asked[0].baselines[0][0].getpixel((0, 0)) == (128, 128, 128)
    cache = ReplyCache(tmp_path / "replies.sqlite")
    pair = records.make_pair(prompt["prompt_id"], "longer", "short", source="s")
    for _ in range(2):  # the second time the reply comes from the cache, words and all
        (vote,) = PairwiseVotes(judge, {prompt["prompt_id"]: prompt}, "forward", cache).verdicts([pair])
        assert vote.side == "chosen" and json.loads(vote.words)["better"] in (1, 2)
    assert len(asked) == 2
    no_image = prompt | {"media": [], "turns": [{"role": "user", "text": "what?"}]}
    ((_, error),) = judge.judge([JudgeRequest(no_image, ("a", "b"), PAIRWISE)])
    assert "no image" in str(error)


def test_a_damaged_row_of_the_cache_counts_as_unknown(tmp_path):
    cache = ReplyCache(tmp_path / "replies.sqlite")
    cache.put("good", Reply("x", True, 1, 1))
    for key, row in (("cut", "[1"), ("other", "3"), ("deep", "[" * 10**5)):
        cache.file.rows("INSERT INTO replies VALUES (?, ?)", (key, row))
    assert cache.get(["good", "cut", "other", "deep"]) == {"good": Reply("x", True, 1, 1)}


def test_a_long_reply_is_cut_with_a_mark_and_half_a_character_is_spelled_out():
    assert kept_words("x" * MOST_WORDS) == "x" * MOST_WORDS
    assert kept_words("x" * (MOST_WORDS + 1)) == "x" * MOST_WORDS + " [cut here: the reply has 4,001 characters]"
    assert kept_words("\ud83d").encode() == rb"\ud83d"
