"""What anchors the joint model: trusted pairs and audits.

Trusted pairs are debiased pairs that no model is trained on, so that what models say of them shows how good they are;
their labels come from reference answers. An audit is what people said of noisy pairs that were drawn at random. What
belongs here: which pairs those are, and how stages pass them on. What does not: what curation makes of them.
"""

from __future__ import annotations

from collections import Counter

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.curate.policies.policy import Anchor, Policy
from dt2it_pipeline.human_review.audit import answers_of_home
from dt2it_pipeline.ingest.sources import unique_prompts
from dt2it_pipeline.orchestrate.stage.model_jobs import responses_of
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline.storage.content_ids import content_hash


def hold_out(pairs: pa.Table, debiased: pa.Table, count: int) -> tuple[pa.Table, pa.Table]:
    """Pairs to train on, and the trusted ones: those of `debiased` among them that are held out.

    Other pairs of their prompts are in neither.
    """
    apart = pc.is_in(pairs["prompt_id"], value_set=trusted_prompts(debiased, count))
    own = pc.is_in(pairs["pair_id"], value_set=debiased["pair_id"].combine_chunks())
    return pairs.filter(pc.invert(apart)), pairs.filter(pc.and_(apart, own)).combine_chunks()


def trusted_prompts(debiased: pa.Table, count: int) -> pa.Array:
    """Prompts whose debiased pairs are held out: in the order of a hash of their ids, until there are `count` pairs.

    At most a quarter of the debiased pairs is held out, so that enough are left to train on.
    """
    most = debiased.num_rows // 4
    pairs_of = Counter(debiased["prompt_id"].to_pylist())
    taken, found = list[str](), 0
    for prompt in sorted(pairs_of, key=lambda name: content_hash("trusted", name)):
        if found >= count:
            break
        if found + pairs_of[prompt] <= most:
            taken.append(prompt)
            found += pairs_of[prompt]
    return pa.array(taken, pa.string())


def with_trusted(pairs: pa.Table, prompts: pa.Table, training: Artifact) -> tuple[pa.Table, pa.Table]:
    """Responses of pairs and of the trusted pairs that a round's training left out, and their prompts."""
    tables = [part.select(pairs.column_names) for part in (pairs, training["trusted_pairs"])]
    return responses_of(pa.concat_tables(tables)), prompts_with_trusted(prompts, training)


def prompts_with_trusted(prompts: pa.Table, training: Artifact) -> pa.Table:
    """Prompts, and those of the trusted pairs that a round's training left out."""
    trusted = training["trusted_pairs"]
    if not trusted.num_rows:
        return prompts
    theirs = pc.is_in(training["prompts"]["prompt_id"], value_set=trusted["prompt_id"].combine_chunks())
    return unique_prompts([prompts, training["prompts"].filter(theirs)])


def trusted_digest(training: Artifact) -> str:
    """Which pairs a round's training left out, as stages count it in their keys; ids are hashes of what pairs hold."""
    return content_hash(training["trusted_pairs"]["pair_id"].to_pylist())


def audit_of(store: Store, policy: Policy) -> pd.DataFrame:
    """Answers about audited pairs in an artifact home (pair_id, better_id); nothing for a policy without anchor.

    Raises:
        AuditError, AnswersError: what the home keeps of it cannot be read.
    """
    if not policy.takes_anchor:
        return Anchor().audit
    return answers_of_home(store.home)[["pair_id", "better_id"]]


def audit_digest(audit: pd.DataFrame) -> dict[str, str]:
    """The audit as stages count it in their keys: nothing where there is none."""
    return (
        {"audit": content_hash(audit.astype(object).where(audit.notna(), None).to_numpy().tolist())}
        if len(audit)
        else {}
    )
