"""Methods of PrefCleanBench (arXiv 2509.23564) that need no training and no language model.

Eight of its thirteen. Left out are the two of InsTag (tags for instructions by a language model, which select prompts
and not labels) and the three of IFD (perplexities of the responses under a language model). What each takes is as in
its published code, with the voters at hand in place of its reward models.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks.real_noise.evidence import Evidence, answer

GAP_SHARE = 0.2  # PrefCleanBench takes 0.1, 0.2, 0.3 and 0.4


def llm_judge_r(evidence: Evidence) -> pd.DataFrame:
    """LLM-Judge-R: remove pairs that one judge, the first at hand, decides against; a tie keeps the pair."""
    said = _first_judge(evidence)
    return answer(evidence, said >= 0, None, said, None, _calls_of_one(evidence))


def llm_judge_f(evidence: Evidence) -> pd.DataFrame:
    """LLM-Judge-F: flip pairs that one judge decides against, otherwise as LLM-Judge-R."""
    said = _first_judge(evidence)
    return answer(evidence, None, said < 0, np.abs(said), None, _calls_of_one(evidence))


def rw_gap_r(evidence: Evidence) -> pd.DataFrame:
    """RwGap-R: remove the 20% of pairs with the least mean margin.

    The published one takes the mean over eight models trained on the same data; here it is over the voters, as they are
    (divided by each one's root mean square, since their scales differ).
    """
    evidence.need_voters()
    return answer(evidence, ~_least(evidence), None, evidence.margin)


def rw_gap_f(evidence: Evidence) -> pd.DataFrame:
    """RwGap-F: flip the 20% of pairs with the least mean margin, otherwise as RwGap-R."""
    evidence.need_voters()
    return answer(evidence, None, _least(evidence), np.abs(evidence.margin))


def vote_all_r(evidence: Evidence) -> pd.DataFrame:
    """VoteAll-R: remove pairs for whose label no voter has a positive margin."""
    share = _agreeing(evidence)
    return answer(evidence, share > 0, None, share)


def vote_all_f(evidence: Evidence) -> pd.DataFrame:
    """VoteAll-F: flip pairs for whose label no voter has a positive margin."""
    share = _agreeing(evidence)
    return answer(evidence, None, share == 0, np.abs(share - 0.5))


def vote_maj_r(evidence: Evidence) -> pd.DataFrame:
    """VoteMaj-R: remove pairs for whose label fewer than half of the voters have a positive margin."""
    share = _agreeing(evidence)
    return answer(evidence, share >= 0.5, None, share)


def vote_maj_f(evidence: Evidence) -> pd.DataFrame:
    """VoteMaj-F: flip pairs for whose label fewer than half of the voters have a positive margin."""
    share = _agreeing(evidence)
    return answer(evidence, None, share < 0.5, np.abs(share - 0.5))


def _first_judge(evidence: Evidence) -> np.ndarray:
    evidence.need_judges()
    return np.asarray(np.nan_to_num(evidence.verdicts[:, 0]))


def _calls_of_one(evidence: Evidence) -> np.ndarray:
    theirs = evidence.votes.loc[evidence.votes["judge"] == evidence.judges[0], "pair_id"].value_counts()
    return theirs.reindex(evidence.pairs["pair_id"]).fillna(0).to_numpy(dtype=np.int64)


def _least(evidence: Evidence) -> np.ndarray:
    """Bool [n]: the GAP_SHARE of pairs with the least margin; equal margins in the order of the pairs."""
    least = np.argsort(evidence.margin, kind="stable")[: int(len(evidence.margin) * GAP_SHARE)]
    made = np.zeros(len(evidence.margin), dtype=bool)
    made[least] = True
    return made


def _agreeing(evidence: Evidence) -> np.ndarray:
    """Share of the voters with a positive margin; a margin of 0 or none counts as disagreeing, as published."""
    evidence.need_voters()
    return np.asarray((np.nan_to_num(evidence.margins) > 0).mean(axis=1))
