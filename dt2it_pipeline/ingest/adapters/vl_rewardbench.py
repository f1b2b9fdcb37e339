"""MMInstruction/VL-RewardBench: two responses and `human_ranking`, 0 being the better one."""

from __future__ import annotations

from collections.abc import Iterator

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.adapters.shared import kept, user
from dt2it_pipeline.ingest.rows import TIE, Conversation, Item, Quarantined, Row, checked_text
from dt2it_pipeline.storage import content_ids

_GROUPS = {"hallucination": ("rlaif", "rlhf", "hallucination_pair"), "reasoning": ("mathverse", "mmmu")}


@per_row("vl_rewardbench", ("benchmark",), ("id", "query", "image", "response", "human_ranking", "query_source"))
def items(row: Row) -> Iterator[Item]:
    """One pair. Ids occur twice with different content, so an item's id is the row's and a hash of its words."""
    query, responses, ranking = row.text("query"), row.need("response"), row.need("human_ranking")
    if not isinstance(responses, list) or len(responses) != 2:
        raise RowError("not two responses", repr(responses)[:120])
    first, second = (checked_text(text, f"response[{n}]") for n, text in enumerate(responses))
    if not isinstance(ranking, list) or sorted(ranking) not in ([0, 1], [0, 0], [1, 1]):
        raise RowError("verdict unclear", f"human_ranking {ranking!r}"[:120])
    row_id = str(row.need("id"))
    item_id = f"{row_id}#{content_ids.content_hash(query, first, second)[:8]}"
    if ranking[0] == ranking[1]:
        yield Quarantined(item_id, TIE, f"human_ranking {ranking}")
        return
    chosen, rejected = (first, second) if ranking[0] < ranking[1] else (second, first)
    group = next((name for name, starts in _GROUPS.items() if row_id.casefold().startswith(starts)), "general")
    image = (row.image("image"),)
    meta = kept(row, "query_source")
    yield Conversation(item_id, user(query), image, chosen, rejected, group=group, meta=meta)
