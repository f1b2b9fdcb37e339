"""Part 3: vote and flip, verify, annotate, merge.

`published_algorithm` has the published steps as pure functions on pandas frames, `tables` the way from Arrow tables and
back. `policies/` puts them in order (`paper`) or decides by the joint model of labels, voters and judges in `joint/`
(`joint`). `preferences` is the same model for any table. `annotation/` asks the judges, in a process of its own, and
keeps to their budget. `voters/` has who votes and how votes are kept, `out_of_core/` the published steps on files
larger than memory, `outcomes` the account of every row.
"""

from dt2it_pipeline.curate.policies.choice import make_policy
from dt2it_pipeline.curate.policies.policy import Anchor, Decision, Policy, Vote
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
    "Anchor",
    "AnnotationResult",
    "CurationError",
    "Decision",
    "Policy",
    "VerifyResult",
    "Vote",
    "VoteResult",
    "make_policy",
    "merge",
    "resolve_annotations",
    "verify",
    "vote_and_flip",
    "voter_margins",
]
