"""Part 3: vote and flip, verify, annotate, merge.

`published_algorithm` has the published steps as pure functions on pandas frames, `tables` the way from Arrow tables and
back. `policies` chooses between them and relabelling by probability (`posterior`, `label_model`, `judge_calibration`).
`annotation/` is step 3: `resolution` decides whom to ask about which pairs (people, judges, budget), `annotate` asks
the judges, in a process of its own. `voters/` has who votes and how votes are kept, `out_of_core/` the published steps
on files larger than memory, `outcomes` the account of every row.
"""

from dt2it_pipeline.curate.annotation.resolution import Decision, decide_pairs
from dt2it_pipeline.curate.judge_calibration import JudgeCalibration, calibrate_judges
from dt2it_pipeline.curate.policies import Policy, make_policy
from dt2it_pipeline.curate.posterior import PosteriorResult, posterior_vote, split_confident
from dt2it_pipeline.curate.published_algorithm import (
    AnnotationResult,
    VerifyResult,
    VoteResult,
    merge,
    resolve_annotations,
    verify,
    vote_and_flip,
)
from dt2it_pipeline.curate.voters.margins import CurationError, voter_margins

__all__ = [
    "AnnotationResult",
    "CurationError",
    "Decision",
    "JudgeCalibration",
    "Policy",
    "PosteriorResult",
    "VerifyResult",
    "VoteResult",
    "calibrate_judges",
    "decide_pairs",
    "make_policy",
    "merge",
    "posterior_vote",
    "resolve_annotations",
    "split_confident",
    "verify",
    "vote_and_flip",
    "voter_margins",
]
