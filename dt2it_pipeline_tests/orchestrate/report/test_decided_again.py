"""A report decides a round again, under smaller budgets of judge calls: with what the round knew, and no more."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa

from dt2it_pipeline.config.recipe import CurationSettings
from dt2it_pipeline.curate import Anchor, make_policy
from dt2it_pipeline.curate.tables import to_frame
from dt2it_pipeline.orchestrate.report.round import _decisions, audit_of_round
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Artifact
from dt2it_pipeline_tests.support.label_worlds import World, judged_with


def made(metadata: dict[str, Any] | None = None, **tables: pd.DataFrame) -> Artifact:
    kept = json.loads(json.dumps(metadata or {}))  # as it is stored
    return Artifact({name: pa.Table.from_pandas(frame, preserve_index=False) for name, frame in tables.items()}, kept)


def test_a_round_is_decided_again_with_the_audit_that_it_had() -> None:
    world = World(300, 0.3)
    scores = pd.concat([world.voter("a", quality=2.0), world.voter("b", quality=2.0)], ignore_index=True)
    rows = world.pairs.iloc[::6]
    better = np.where(world.right[::6], rows["chosen_id"], rows["rejected_id"])
    audit = pd.DataFrame({"pair_id": rows["pair_id"].to_numpy(), "better_id": better}, dtype="str")
    audit.loc[0, "better_id"] = None
    settings = CurationSettings.model_validate({"policy": "joint"})
    policy, nobody = make_policy(settings), to_frame(schemas.table([], "votes"))

    def ask(pairs: pd.DataFrame) -> pd.DataFrame:
        votes = judged_with(0.95, world, pairs)
        return votes[votes["judge"] == "a"].reset_index(drop=True)

    vote = policy.vote(world.pairs, scores, {}, Anchor(audit=audit))
    checked = policy.check(vote.result.voted, scores)
    decision = policy.decide(checked.verified, checked.contested, nobody, ask, 1, None, Anchor(vote.trusted, audit))
    annotated = made(
        {"audit": audit.astype(object).where(audit.notna(), None).to_numpy().tolist()}, votes=decision.votes
    )
    found = {
        "annotated_pairs": annotated,
        "verified_pairs": made(pairs=checked.verified),
        "contested_pairs": made(pairs=checked.contested),
        "voted_pairs": made(trusted_pairs=checked.verified.iloc[:0]),
    }
    pd.testing.assert_frame_equal(audit_of_round(annotated), audit)
    recipe = SimpleNamespace(curation=settings, annotation=SimpleNamespace(judges=[None]))

    def again() -> pd.DataFrame:
        sources = cast(Any, SimpleNamespace(rounds=[found], recipe=recipe))
        one = _decisions(sources, 0)(None)
        return (
            pd.concat([one.kept, one.annotated]).sort_values("pair_id")[["pair_id", "chosen_id"]].reset_index(drop=True)
        )

    first = pd.concat([decision.kept, decision.annotated]).sort_values("pair_id")[["pair_id", "chosen_id"]]
    pd.testing.assert_frame_equal(again(), first.reset_index(drop=True))
    found["annotated_pairs"] = made(votes=decision.votes)  # a round before the audit
    assert audit_of_round(found["annotated_pairs"]).empty and len(again()) < len(first)
