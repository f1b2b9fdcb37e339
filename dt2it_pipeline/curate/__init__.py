"""Part 3: vote and flip, verify, annotate, merge.

The published steps are pure functions on pandas frames (`steps`), with the same on Arrow tables for the pipeline
(`tables`). `policies` chooses between them and the relabelling by probability (`posterior`, `label_model`).
`annotate` asks the judges and runs in a process of its own.
"""

from dt2it_pipeline.curate.margins import CurationError, voter_margins
from dt2it_pipeline.curate.policies import Policy, make_policy
from dt2it_pipeline.curate.posterior import PosteriorResult, posterior_vote, split_confident, weigh_judges
from dt2it_pipeline.curate.steps import (
    AnnotationResult,
    VerifyResult,
    VoteResult,
    merge,
    resolve_annotations,
    verify,
    vote_and_flip,
)

__all__ = [
    "AnnotationResult",
    "CurationError",
    "Policy",
    "PosteriorResult",
    "VerifyResult",
    "VoteResult",
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
