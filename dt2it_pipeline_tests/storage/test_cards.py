"""Cards show what data say and render none of it."""

from __future__ import annotations

import pytest

from dt2it_pipeline.export.card import dataset_card
from dt2it_pipeline.ingest.provenance import Provenance
from dt2it_pipeline.storage.cards import markdown_table, plain_markdown

HOSTILE = (
    "<script>alert(1)</script>", "![x](https://evil.example/pixel.png)", "[click](javascript:alert(1))",
    "a | b |\n# Heading", "\\[x](https://evil.example)", "a\u2028<b>", "&lt;script&gt;", "<!-- results: end -->",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_data_is_markup(text):
    shown = plain_markdown(text)
    assert "<" not in shown and len(shown.splitlines()) == 1
    assert "[" not in shown.replace("\\\\", "").replace("\\[", "")
    assert len(markdown_table(("a", "b"), [(text, text)]).splitlines()) == 3


def test_a_dataset_card_shows_names_licences_and_citations_as_text():
    said = {name: Provenance(licence=text, citation=text) for name, text in zip("abcdefgh", HOSTILE, strict=True)}
    pairs = [{"source": name, "label": "original", "round": -1} for name in said]
    card = dataset_card(HOSTILE[0], "*.parquet", pairs, ["en"], said, {"made by": HOSTILE[1]}, {"x": "`x`"}, "")
    body = card.split("---\n", 2)[2]
    assert "<" not in body and "\n# Heading" not in body and "| `x` |" in body
    assert "![x]" not in body and "](javascript" not in body.replace("\\](", "")
