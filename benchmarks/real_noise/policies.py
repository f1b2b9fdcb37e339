"""The project's own methods in the comparison: `clean_pairs`, and `clean_preferences` where there is one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

import dt2it_pipeline
from benchmarks.real_noise.evidence import Evidence, NotApplicable, Refused, answer
from dt2it_pipeline.curate.cleaning import clean_pairs
from dt2it_pipeline.errors import UserError

_NAME = "clean_preferences"
_JUDGES = 2  # that `clean_pairs` takes


def paper(evidence: Evidence) -> pd.DataFrame:
    """`clean_pairs`: the policy `paper`. Of more than two judges the two count that agree most with the label.

    No model was trained on the voted pairs, so the last voter is the verifier and the others vote; a single voter does
    both. Verdicts on pairs that it did not contest count as no call.

    Raises:
        NotApplicable: no voter, or one judge.
        Refused: it raised a UserError.
    """
    evidence.need_voters()
    if evidence.judges:
        evidence.need_judges(_JUDGES)
    judges = _nearest(evidence)
    votes = evidence.votes[evidence.votes["judge"].isin(judges)]
    last = evidence.scores["voter"] == evidence.voters[-1]
    scores = evidence.scores[~last] if len(evidence.voters) > 1 else evidence.scores
    try:
        found = clean_pairs(evidence.pairs, scores, votes if judges else None, evidence.scores[last], judges=judges)
    except UserError as error:
        raise Refused(str(error)) from error
    outcomes = found.outcomes.set_index("pair_id").reindex(evidence.pairs["pair_id"])
    curated = found.pairs.set_index("pair_id").reindex(evidence.pairs["pair_id"])
    kept = (outcomes["outcome"] != "dropped").to_numpy(dtype=bool)
    flip = (outcomes["outcome"] == "flipped").to_numpy(dtype=bool)
    score = np.where(kept, np.nan_to_num(curated["strength"].to_numpy(dtype=np.float64)), -1e3)
    asked = (curated["label"] == "annotated") | (outcomes["stage"] == "annotated_pairs")
    calls = votes["pair_id"].value_counts().reindex(evidence.pairs["pair_id"]).fillna(0).to_numpy(dtype=np.int64)
    return answer(evidence, kept, flip, score, None, calls * asked.to_numpy(dtype=bool))


def clean_preferences(evidence: Evidence) -> pd.DataFrame:
    """`clean_preferences` with its defaults; all votes there are count as calls.

    `attrs["after"]` of the answer holds estimate, low and high of the label accuracy of kept pairs as it states them,
    `attrs["audited_too"]` whether these are all kept pairs or the ones that are not audited, `attrs["wanted"]` the
    number of pairs on which it wants a verdict. Where it has a sensitivity table, `attrs["bounds"]` has the least and
    greatest of that accuracy over all its assumptions, and `attrs["assumed"]` the shares that the claim assumes, the
    side that annotators prefer in each pair, and the table.

    Raises:
        NotApplicable: this version of the project has no such function.
        Refused: it raised a UserError.
    """
    return _clean_preferences(evidence, evidence.votes)


def clean_preferences_wanted(evidence: Evidence) -> pd.DataFrame:
    """`clean_preferences` first without votes, then with those on the pairs that it wanted a verdict on.

    Raises:
        NotApplicable: this version of the project has no such function, or there is no judge.
        Refused: it raised a UserError.
    """
    evidence.need_judges()
    wanted = _call(evidence, evidence.votes.iloc[:0]).wanted["pair_id"]
    return _clean_preferences(evidence, evidence.votes[evidence.votes["pair_id"].isin(wanted)])


def clean_preferences_trusted(evidence: Evidence) -> pd.DataFrame:
    """`clean_preferences` of the pairs that are not audited, beside the audited ones as trusted pairs.

    So they show voters and judges at work, and not how right labels are.

    Raises:
        NotApplicable: as `clean_preferences`, or there is no audit.
        Refused: it raised a UserError.
    """
    if evidence.audit is None:
        raise NotApplicable("needs an audit")
    known = evidence.pairs[evidence.audited]
    turned = ~evidence.audited_right
    sides = [name.removeprefix("chosen") for name in known.columns if name.startswith("chosen")]
    trusted = known.assign(
        **{f"chosen{side}": known[f"chosen{side}"].mask(turned, known[f"rejected{side}"]) for side in sides},
        **{f"rejected{side}": known[f"rejected{side}"].mask(turned, known[f"chosen{side}"]) for side in sides},
    )
    others = replace(evidence, pairs=evidence.pairs[~evidence.audited].reset_index(drop=True), audit=None)
    return _clean_preferences(evidence, evidence.votes, _call(others, others.votes, trusted=trusted))


def _clean_preferences(evidence: Evidence, votes: pd.DataFrame, found: Any = None) -> pd.DataFrame:
    """The answer that `found` gives, the result for all votes where None; a pair that it is not about is kept."""
    found = _call(evidence, votes) if found is None else found
    rows = found.pairs.set_index("pair_id").reindex(evidence.pairs["pair_id"])
    outcome = rows["outcome"].to_numpy(dtype=object)
    probability = rows["probability"].to_numpy(dtype=np.float64)
    kept = outcome != "dropped"
    calls = votes["pair_id"].value_counts().reindex(evidence.pairs["pair_id"]).fillna(0).to_numpy(dtype=np.int64)
    made = answer(evidence, kept, outcome == "flipped", probability + kept, probability, calls)
    after = found.label_accuracy.after
    made.attrs["after"] = tuple(float(getattr(after, name)) for name in ("estimate", "low", "high"))
    made.attrs["wanted"] = len(found.wanted)
    if len(table := found.sensitivity):
        made.attrs["bounds"] = float(table["after_low"].min()), float(table["after_high"].max())
    if found.assumption is not None and len(found.sensitivity):
        shares = found.assumption.annotator_accuracy, found.assumption.right_where_they_err
        sides = pd.Series(found.assumption.sides, found.pairs["pair_id"]).reindex(
            evidence.pairs["pair_id"], fill_value=0
        )
        made.attrs["assumed"] = shares, sides.to_numpy(), found.sensitivity
    made.attrs["audited_too"] = bool(rows["outcome"].notna().all())
    return made


def _call(evidence: Evidence, votes: pd.DataFrame, trusted: pd.DataFrame | None = None) -> Any:
    """The result of `clean_preferences`; NotApplicable without such a function, Refused where it raises a UserError."""
    method = getattr(dt2it_pipeline, _NAME, None)
    if method is None:
        raise NotApplicable(f"this version of the project has no {_NAME}")
    scores = evidence.scores if evidence.voters else None
    try:
        more = {} if trusted is None else {"trusted": trusted}
        return method(evidence.pairs, scores=scores, votes=votes if len(votes) else None, audit=evidence.audit, **more)
    except UserError as error:
        raise Refused(str(error)) from error


def _nearest(evidence: Evidence) -> tuple[str, ...]:
    agree = np.nansum(evidence.verdicts, axis=0) if evidence.judges else np.zeros(0)
    order = sorted(range(len(agree)), key=lambda place: (-agree[place], evidence.judges[place]))
    return tuple(evidence.judges[place] for place in order[:_JUDGES])
