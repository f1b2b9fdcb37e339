"""A round in an artifact home for the review page: pairs of every outcome, with margins, verdicts and hostile texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from starlette.testclient import TestClient

from dt2it_pipeline.human_review.review_page import review_app, round_subject
from dt2it_pipeline.human_review.review_page.subject import Subject
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline_tests.support.export_world import COLORS, image, prompt_row
from dt2it_pipeline_tests.support.tiny import make_frames

HOSTILE = '<script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'
MARKERS = {"image": "<image>", "video": "<video>"}
ADDRESS = "http://127.0.0.1"
SAME = {"origin": ADDRESS}
WORDS = json.dumps({"reference": "red", "analysis": f"Response 1 names it. {HOSTILE}", "better": 1})


def pair(number: int, media: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A pair and its prompt; every third prompt has no image, that of pair 5 has two images and a video.

    Texts of pair 1 are hostile.
    """
    images = [image(media, COLORS[number % 4])] if number % 3 else []
    if number == 5:
        images += [image(media, COLORS[0]), make_frames(media / "clip", 3, None)]
    question = f"{''.join(MARKERS[medium['kind']] for medium in images)}question {number}?"
    prompt = prompt_row([("user", question + (HOSTILE if number == 1 else ""))], images)
    chosen, rejected = f"It is number {number}, a red one.", f"It is {'a much longer text ' * (number % 2)}{number}."
    if number == 1:
        chosen += HOSTILE
    source = HOSTILE if number == 1 else "ab"[number % 2]
    votes = [{"voter": "seed/1", "margin": 2.0 - number}, {"voter": "seed/2", "margin": 1.0}]
    made = records.make_pair(
        prompt["prompt_id"], chosen, rejected, source=source, row_id=f"line {number}", strength=2.0 - number,
        votes=votes,
    )  # fmt: skip
    return made, prompt


def flipped(row: dict[str, Any]) -> dict[str, Any]:
    """The pair with its sides swapped, as a step that flips it writes it."""
    sides = {"chosen": row["rejected"], "rejected": row["chosen"]}
    ids = {"chosen_id": row["rejected_id"], "rejected_id": row["chosen_id"]}
    votes = [{"voter": vote["voter"], "margin": -vote["margin"]} for vote in row["votes"]]
    return {**row, **sides, **ids, "votes": votes, "strength": -row["strength"], "label": "flipped"}


def make_round(home: Path, count: int = 8, key: str = "k", finished: bool = True) -> list[dict[str, Any]]:
    """Round 0 of `count` pairs as given: pair 2 is flipped by the vote, 3 is dropped, and the rest is kept.

    Pairs 3 and 4 were contested, and a judge voted on them.
    """
    store = Store(home)
    made = [pair(number, store.media) for number in range(count)]
    pairs, prompts = [row for row, _ in made], schemas.table([prompt for _, prompt in made], "prompts")
    voted = [flipped(row) if number == 2 else row for number, row in enumerate(pairs)]
    nothing = schemas.table([], "quarantine")
    unusable = [records.quarantine_row("line 99", "raw", "missing image", HOSTILE, "a")]

    def write(name: str, number: str | None, metadata: dict[str, Any] | None = None, **tables: pa.Table) -> None:
        store.write(name, Artifact({"prompts": prompts, **tables}, metadata or {}), key, number)

    def table(rows: list[dict[str, Any]]) -> pa.Table:
        return schemas.table(rows, "pairs")

    write("raw_preferences", None, pairs=table(pairs), quarantine=schemas.table(unusable, "quarantine"))
    write("voted_pairs", "0", {"policy": "joint"}, pairs=table(voted), quarantine=nothing)
    if not finished:
        return pairs
    contested = [records.quarantine_pair(row, "verified_pairs", "contested") for row in voted[3:5]]
    write("contested_pairs", "0", pairs=table(voted[3:5]))
    write(
        "verified_pairs",
        "0",
        pairs=table([*voted[:3], *voted[5:]]),
        quarantine=schemas.table(contested, "quarantine"),
    )
    dropped = [records.quarantine_pair(voted[3], "annotated_pairs", "not sure enough", "55% likely right")]
    verdicts = [
        {"pair_id": row["pair_id"], "judge": "one", "order": "reversed", "verdict": verdict, "words": words}
        for row, verdict, words in ((voted[3], "tie", WORDS), (voted[4], "chosen", None), (voted[2], "chosen", WORDS))
    ]
    verdicts.append(
        {**verdicts[0], "judge": "two", "order": "alone", "verdict": None, "words": "", "fault": "no reply"}
    )
    write(
        "annotated_pairs",
        "0",
        pairs=table([{**voted[4], "label": "annotated"}]),
        quarantine=schemas.table(dropped, "quarantine"),
        votes=schemas.table(verdicts, "votes"),
    )
    kept = [row for number, row in enumerate(voted) if number != 3]
    write("curated_pairs", "0", pairs=table(kept))
    return pairs


def make_benchmark(home: Path) -> None:
    """A benchmark of two items, of which round 0 gets one wrong."""
    store = Store(home)
    made = [pair(number, store.media) for number in (1, 2)]
    items = [
        {
            "item_id": f"item {number}",
            "benchmark": "bench",
            "group": "g",
            **{name: row[name] for name in ("pair_id", "prompt_id", "chosen_id", "rejected_id", "chosen", "rejected")},
        }
        for number, (row, _) in enumerate(made)
    ]
    results = [
        {name: item[name] for name in ("benchmark", "item_id", "pair_id", "prompt_id", "group")}
        | {"model": "round 0", "chosen_score": 1.0 - 2 * wrong, "rejected_score": 0.0}
        | {"outcome": "wrong" if wrong else "correct"}
        for item, wrong in zip(items, (True, False), strict=True)
    ]
    prompts = schemas.table([prompt for _, prompt in made], "prompts")
    raw = {"prompts": prompts, "benchmark_items": schemas.table(items, "benchmark_items")}
    nothing = schemas.table([], "quarantine")
    store.write("raw_benchmarks", Artifact({**raw, "quarantine": nothing}), "k")
    store.write(
        "benchmark_scores",
        Artifact({"benchmark_results": schemas.table(results, "benchmark_results"), "quarantine": nothing}),
        "k",
        "0",
    )


class Reader:
    """A browser, as far as requests go."""

    def __init__(self, subject: Subject, person: str = "Ann", **settings: Any) -> None:
        self.client = TestClient(review_app(subject, **settings), base_url=ADDRESS)
        self.person = person

    @classmethod
    def of_round(cls, home: Path, person: str = "Ann", **settings: Any) -> Reader:
        """A reader of round 0."""
        return cls(round_subject(home, 0, **settings), person)

    def get(self, name: str, status: int = 200, **given: Any) -> Any:
        """What a request for JSON gives."""
        found = self.client.get(f"/api/{name}", params={"person": self.person, **given})
        assert found.status_code == status, found.text
        return found.json()

    def post(self, name: str, status: int = 200, **given: Any) -> Any:
        """What sending something gives."""
        found = self.client.post(f"/api/{name}", json={"person": self.person, **given}, headers=SAME)
        assert found.status_code == status, found.text
        return found.json()

    def ids(self, **query: Any) -> list[str]:
        """Ids of the pairs of a query, in their order."""
        return [row["id"] for row in self.get("pairs", **query)["rows"]]
