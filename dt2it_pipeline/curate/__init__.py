"""Part 3: vote and flip, verify, annotate, merge.

The steps are pure functions on pandas frames (`steps`), with the same on Arrow tables for the pipeline (`tables`).
`annotate` asks the judges and runs in a process of its own.
"""

from dt2it_pipeline.curate.margins import CurationError, voter_margins
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
    "VerifyResult",
    "VoteResult",
    "merge",
    "resolve_annotations",
    "verify",
    "vote_and_flip",
    "voter_margins",
]
