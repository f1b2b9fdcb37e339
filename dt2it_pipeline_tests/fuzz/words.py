"""What people, judges and clients of a server write."""

from __future__ import annotations

import io
import json
import logging
import math
from pathlib import Path

import numpy as np
import pandas as pd

from dt2it_pipeline.curate.preference_files import clean_preference_files
from dt2it_pipeline.human_review.audit import export_table_audit
from dt2it_pipeline.human_review.audit_answers import load_audit
from dt2it_pipeline.judges.protocol import PAIRWISE, POINTWISE, Reply
from dt2it_pipeline.judges.rubric import OK, read_reply
from dt2it_pipeline.serve.score_route import ROUTE
from dt2it_pipeline_tests.fuzz.surface import Make, Surface
from dt2it_pipeline_tests.support.audits import filled, tool_answers
from dt2it_pipeline_tests.support.fault_server import honest
from dt2it_pipeline_tests.support.score_engine import Engine, png, request


def replies(mode: str) -> Make:
    """A judge's reply on two responses."""

    def surface(_: Path) -> Surface:
        words = '"better"' if mode == PAIRWISE else ""
        sound = [honest(words, [f"worth-{n}", "worth-3"]) for n in range(10)]
        fenced = [f"Here it is.\n```json\n{text}\n```\n" for text in sound]

        def read(content: bytes) -> bool:
            verdicts = read_reply(Reply(content.decode("utf-8", "replace")), mode, 2)
            assert len(verdicts) == 2
            good = [verdict.score for verdict in verdicts if verdict.status == OK]
            assert all(score is not None and math.isfinite(score) and 0 <= score <= 10 for score in good), good
            return bool(good)

        return Surface([text.encode() for text in (*sound, *fenced)], read)

    return surface


def answers(kind: str) -> Make:
    """What people answered in an audit."""

    def surface(folder: Path) -> Surface:
        pairs = pd.DataFrame(
            {
                "chosen": [f"good {n}" for n in range(12)],
                "rejected": [f"bad {n}" for n in range(12)],
                "prompt": [f"what {n}?" for n in range(12)],
            }
        )
        pairs.to_parquet(folder / "pairs.parquet")
        made = folder / "audit"
        export_table_audit(folder / "pairs.parquet", made, 10, kind)
        given = ["first", "second", "neither", "first", "tie", "1", "2", "second", "", "first"]
        if kind == "spreadsheet":
            whole = filled(made / "audit.csv", given).read_bytes()
        else:
            choices = ["first" if choice != "second" else choice for choice in given]
            whole = tool_answers(made, kind, choices).read_bytes()
        file = folder / ("given.csv" if kind == "spreadsheet" else "given.json")
        known = set(pd.read_parquet(made / "sample.parquet")["pair_id"])

        def read(content: bytes) -> bool:
            file.write_bytes(content)
            table = load_audit(file, made / "sample.parquet").table
            assert set(table["pair_id"]) <= known
            return len(table) > 0

        return Surface([whole], read)

    return surface


def tables(suffix: str) -> Make:
    """A table of pairs with scores, to be cleaned."""

    def surface(folder: Path) -> Surface:
        draw = np.random.default_rng(0)
        frame = pd.DataFrame(
            {
                "chosen": [f"good {n}" for n in range(40)],
                "rejected": [f"bad {n}" for n in range(40)],
                "a": draw.normal(1, 1, 40).round(3),
                "b": draw.normal(0, 1, 40).round(3),
                "unread": [f"note {n}" for n in range(40)],
            }
        )
        buffer = io.BytesIO()
        if suffix == ".parquet":
            frame.to_parquet(buffer)
        else:
            buffer.write(frame.to_csv(index=False).encode())
        file = folder / f"pairs{suffix}"

        def read(content: bytes) -> bool:
            file.write_bytes(content)
            found = clean_preference_files(
                file,
                folder / "output",
                chosen="chosen",
                rejected="rejected",
                chosen_scores=["a"],
                rejected_scores=["b"],
            )
            outcomes = found.pairs
            assert outcomes["outcome"].isin(["kept", "flipped", "dropped"]).all()
            assert outcomes["probability"].between(0, 1).all()
            return len(outcomes) > 0

        return Surface([buffer.getvalue()], read)

    return surface


def requests(_: Path) -> Surface:
    """The body of a request for scores: whatever it is, the answer is JSON with scores or with a message."""
    bodies = [
        {"prompt": "what", "responses": ["three", "seven.."]},
        {"prompt": "<image> what", "images": [png()], "system": "Judge.", "responses": ["three", ""]},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "responses": ["b"] * 5},
    ]
    logging.getLogger("httpx").setLevel(logging.WARNING)

    def read(content: bytes) -> bool:
        answer = request(Engine(), "POST", ROUTE, content)
        found = answer.json()
        if answer.status_code == 200:
            assert len(found["scores"]) == len(json.loads(content)["responses"])
            return True
        assert answer.status_code in (413, 422) and found["error"]["message"], (answer.status_code, found)
        return False

    return Surface([json.dumps(body).encode() for body in bodies], read)


SURFACES: dict[str, Make] = {
    "reply, scores": replies(POINTWISE),
    "reply, better": replies(PAIRWISE),
    "answers, spreadsheet": answers("spreadsheet"),
    "answers, Label Studio": answers("label_studio"),
    "answers, Argilla": answers("argilla"),
    "pairs.csv": tables(".csv"),
    "pairs.parquet": tables(".parquet"),
    "request": requests,
}
