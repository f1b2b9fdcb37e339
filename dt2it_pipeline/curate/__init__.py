"""Part 3: vote and flip, verify, annotate, merge.

The published steps are pure functions on pandas frames (`steps`), with the same on Arrow tables for the pipeline
(`tables`). `policies` chooses between them and the relabelling by probability (`posterior`, `label_model`,
`verdicts`). `decide` is step 3: people, judges, budget. `annotate` asks the judges, in a process of its own.
"""

from dt2it_pipeline.curate.annotation.resolution import Decision, decide_pairs
from dt2it_pipeline.curate.judge_calibration import Trust, weigh_judges
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
    "Policy",
    "PosteriorResult",
    "Trust",
    "VerifyResult",
    "VoteResult",
    "decide_pairs",
    "make_policy",
    "merge",
    "posterior_vote",
    "resolve_annotations",
    "split_confident",
    "verify",
    "vote_and_flip",
    "voter_margins",
    "weigh_judges",
]
