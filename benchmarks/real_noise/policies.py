"""The project's own methods in the comparison: `clean_pairs`, and `clean_preferences` where there is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

import dt2it_pipeline
from benchmarks.real_noise.evidence import Evidence, NotApplicable, Refused, answer
from dt2it_pipeline.errors import UserError

_NAME = "clean_preferences"
_JUDGES = 2  # that `clean_pairs` takes at most


def posterior_80(evidence: Evidence) -> pd.DataFrame:
    """`clean_pairs`, policy `posterior`, keep_probability 0.8 (its default)."""
    return _clean_pairs(evidence, "posterior", 0.8)


def posterior_95(evidence: Evidence) -> pd.DataFrame:
    """`clean_pairs`, policy `posterior`, keep_probability 0.95."""
    return _clean_pairs(evidence, "posterior", 0.95)


def paper(evidence: Evidence) -> pd.DataFrame:
    """`clean_pairs`, policy `paper`.

    No model was trained on the voted pairs, so the last voter is the verifier and the others vote; a single voter does
    both.
    """
    return _clean_pairs(evidence, "paper", 0.8)


def clean_preferences(evidence: Evidence) -> pd.DataFrame:
    """`clean_preferences` with its defaults; all votes there are count as calls.

    `attrs["after"]` of the answer holds estimate, low and high of the label accuracy of kept pairs as it states them,
    and `attrs["wanted"]` the number of pairs on which it wants a verdict.

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


def _clean_preferences(evidence: Evidence, votes: pd.DataFrame) -> pd.DataFrame:
    found = _call(evidence, votes)
    rows = found.pairs.set_index("pair_id").reindex(evidence.pairs["pair_id"])
    outcome = rows["outcome"].to_numpy(dtype=object)
    probability = rows["probability"].to_numpy(dtype=np.float64)
    kept = outcome != "dropped"
    calls = votes["pair_id"].value_counts().reindex(evidence.pairs["pair_id"]).fillna(0).to_numpy(dtype=np.int64)
    made = answer(evidence, kept, outcome == "flipped", probability + kept, probability, calls)
    after = found.label_accuracy.after
    made.attrs["after"] = tuple(float(getattr(after, name)) for name in ("estimate", "low", "high"))
    made.attrs["wanted"] = len(found.wanted)
    return made


def _call(evidence: Evidence, votes: pd.DataFrame) -> Any:
    """The result of `clean_preferences`; NotApplicable without such a function, Refused where it raises a UserError."""
    method = getattr(dt2it_pipeline, _NAME, None)
    if method is None:
        raise NotApplicable(f"this version of the project has no {_NAME}")
    scores = evidence.scores if evidence.voters else None
    try:
        return method(evidence.pairs, scores=scores, votes=votes if len(votes) else None, audit=evidence.audit)
    except UserError as error:
        raise Refused(str(error)) from error


def _clean_pairs(evidence: Evidence, policy: str, keep_probability: float) -> pd.DataFrame:
    """The answer of `clean_pairs`. Of more than two judges the two count that agree most with the label.

    Its verdicts on pairs that it did not contest count as no call.

    Raises:
        NotApplicable: no voter (`paper`), or one judge (`paper`).
        Refused: it raised a UserError.
    """
    from dt2it_pipeline.config.sections.curation import CurationSettings
    from dt2it_pipeline.curate.cleaning import clean_pairs

    least = _JUDGES if policy == "paper" else 1
    if policy == "paper":
        evidence.need_voters()
    if evidence.judges:
        evidence.need_judges(least)
    judges = _nearest(evidence)
    votes = evidence.votes[evidence.votes["judge"].isin(judges)]
    scores = evidence.scores if evidence.voters else _no_say(evidence)
    verifier = None
    if policy == "paper":
        last = scores["voter"] == evidence.voters[-1]
        verifier = scores[last]
        scores = scores[~last] if len(evidence.voters) > 1 else scores
    settings = CurationSettings(policy=policy, keep_probability=keep_probability)  # type: ignore[arg-type]
    try:
        found = clean_pairs(evidence.pairs, scores, votes if judges else None, verifier, settings, judges)
    except UserError as error:
        raise Refused(str(error)) from error
    outcomes = found.outcomes.set_index("pair_id").reindex(evidence.pairs["pair_id"])
    curated = found.pairs.set_index("pair_id").reindex(evidence.pairs["pair_id"])
    kept = (outcomes["outcome"] != "dropped").to_numpy(dtype=bool)
    strength = curated["strength"].to_numpy(dtype=np.float64)
    probability = expit(strength) if policy == "posterior" else np.full(len(kept), np.nan)
    asked = (curated["label"] == "annotated") | (outcomes["stage"] == "annotated_pairs")
    calls = votes["pair_id"].value_counts().reindex(evidence.pairs["pair_id"]).fillna(0).to_numpy(dtype=np.int64)
    flip = (outcomes["outcome"] == "flipped").to_numpy(dtype=bool)
    score = np.where(kept, np.nan_to_num(strength), -1e3)
    return answer(evidence, kept, flip, score, probability, calls * asked.to_numpy(dtype=bool))


def _nearest(evidence: Evidence) -> tuple[str, ...]:
    agree = np.nansum(evidence.verdicts, axis=0) if evidence.judges else np.zeros(0)
    order = sorted(range(len(agree)), key=lambda place: (-agree[place], evidence.judges[place]))
    return tuple(evidence.judges[place] for place in order[:_JUDGES])


def _no_say(evidence: Evidence) -> pd.DataFrame:
    """Scores of a voter that finds all responses alike, since `clean_pairs` needs one."""
    responses: Any = pd.concat([evidence.pairs["chosen_id"], evidence.pairs["rejected_id"]]).unique()
    return pd.DataFrame({"response_id": responses, "voter": "none", "score": 0.0})
