"""WildVision/wildvision-battle: two models led a conversation about the same image, and a person chose."""

from __future__ import annotations

from collections.abc import Iterator

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.adapters.shared import kept
from dt2it_pipeline.ingest.forms.chats import chat, two_sides
from dt2it_pipeline.ingest.forms.written_sides import Side
from dt2it_pipeline.ingest.rows import TIE, Conversation, Item, Quarantined, Row

_COLUMNS = (
    "question_id",
    "model_a",
    "model_b",
    "conversation_a",
    "conversation_b",
    "image",
    "winner",
    "turn",
    "language",
    "id",
)
_TIES = ("tie", "tie (bothbad)", "bothbad", "both_bad", "tie (both bad)")


@per_row("wildvision", ("preferences",), _COLUMNS)
def items(row: Row) -> Iterator[Item]:
    """One pair; all turns are kept up to the one that was judged (`turn`, from 1).

    Ties, and battles in which both were bad, are quarantined.
    """
    winner = row.text("winner").strip().casefold()
    if winner in _TIES:
        yield Quarantined(row.row_id, TIE, winner)
        return
    names = [{side, str(row.get(side)).casefold()} for side in ("model_a", "model_b")]
    if (winner in names[0]) == (winner in names[1]):
        raise RowError("verdict unclear", f"column 'winner' is {winner!r}")
    conversations = [Side(chat(row.need(name), name)[1]) for name in ("conversation_a", "conversation_b")]
    first, second = (side.up_to(row.get("turn")).turns for side in conversations)
    better, worse = (first, second) if winner in names[0] else (second, first)
    prompt, chosen, rejected = two_sides(better, worse)
    yield Conversation(row.row_id, prompt, row.media("image"), chosen, rejected, meta=kept(row, "question_id"))
