"""The dataset card (README.md) of an export: what is in it, where it comes from, under which licences."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from dt2it_pipeline.ingest.provenance import Provenance
from dt2it_pipeline.storage.cards import markdown_table, plain_markdown

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def dataset_card(
    title: str,
    files: str,
    pairs: Iterable[Mapping[str, Any]],
    languages: Iterable[str],
    sources: Mapping[str, Provenance],
    lineage: Mapping[str, str],
    columns: Mapping[str, str],
    notes: str,
) -> str:
    """Write the card.

    Args:
        title: heading.
        files: pattern of the data files, from the folder.
        pairs: source, label and round of every pair that was written.
        languages: language codes of the prompts.
        sources: licence, citation and revision by source; a missing one is printed as not known.
        lineage: what the pairs were made from and by, by name.
        columns: name -> what it holds.
        notes: how to read the data.
    """
    counts = Counter((row["source"], row["label"], row["round"]) for row in pairs)
    total = counts.total()
    named = {source: sources.get(source, Provenance()) for source in sorted({source for source, _, _ in counts})}
    licences = sorted({source.licence for source in named.values()})
    front: dict[str, Any] = {
        "pretty_name": title,
        "language": sorted({code for code in languages if code}),
        "license": "other",
        "license_name": "licences-of-the-sources",
        "size_categories": [next((name for most, name in _SIZES if total < most), "n>10M")],
        "tags": ["preference-data", "reward-model", "multimodal"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": files}]}],
    }
    which = (
        " of which `chosen` is the better one" if "chosen" in columns else ", for people to say which is the better one"
    )
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=True, allow_unicode=True) + "---\n",
        f"# {plain_markdown(title)}\n",
        f"{total:,} preference pairs, each two answers to one prompt{which}. {notes}\n",
        "## Licences\n\nEvery pair is under the licence of its source, images included: "
        + (plain_markdown("; ".join(licences)) or "there are none")
        + ".\n\n"
        + markdown_table(
            ("source", "licence", "citation", "revision"),
            [(name, *map(_cell, (said.licence, said.citation, said.revision))) for name, said in named.items()],
        ),
        "## Counts\n\nA label is the origin of a pair's order: `original` as published, `flipped` by reward models, "
        "`annotated` by judges, `constructed` and `reformulated` by the pipeline. Round -1 is before any round.\n\n"
        + markdown_table(
            ("source", "label", "round", "pairs"),
            [(*key, f"{count:,}") for key, count in sorted(counts.items())] + [("all", "", "", f"{total:,}")],
        ),
        "## Columns\n\n" + markdown_table(("column", "what it holds"), list(columns.items())),
        "## Lineage\n\n" + markdown_table(("", ""), [(name, _cell(value)) for name, value in lineage.items()]),
    ]
    return "\n".join(parts)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
