"""Pairs of every shape with their prompts and media, for what writes or reads them."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pyarrow as pa
from PIL import Image

from dt2it_pipeline.storage import content_ids, records, schemas


def image(media: Path, color: str, kind: str = "PNG") -> dict[str, str]:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), color).save(buffer, kind)
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    path = media / sha256[:2] / f"{sha256}.{kind.lower()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return {"kind": "image", "sha256": sha256, "path": f"{sha256[:2]}/{path.name}"}


def prompt_row(
    turns: list[tuple[str, str]], media: list[dict[str, str]], system: str = "", language: str = "en"
) -> dict:
    messages = [{"role": role, "text": text} for role, text in turns]
    return {
        "prompt_id": content_ids.prompt_id(system, messages, [m["sha256"] for m in media]), "source": "s",
        "system": system, "turns": messages, "media": media, "reference": None, "language": language, "meta": "{}",
    }  # fmt: skip


def world(media: Path) -> tuple[pa.Table, pa.Table]:
    """Pairs of every shape: one image, two, none; several turns; a system prompt; Chinese; votes and strengths."""
    prompts = [
        prompt_row([("user", "<image>\nwhat colour?")], [image(media, "red")]),
        prompt_row([("user", "first <image> then <image>?")], [image(media, "green", "JPEG"), image(media, "blue")]),
        prompt_row([("user", 'just words "quoted" \u2028 | 图')], [], language="zh"),
        prompt_row(
            [("user", "<image>hi"), ("assistant", "hello"), ("user", "and now?")],
            [image(media, "yellow")],
            "Be kind.",
        ),
    ]
    pairs = [
        records.make_pair(
            p["prompt_id"], f"better {i}\n", f"worse {i}", source="ab"[i % 2], label=("flipped", "annotated")[i // 2],
            round=0, strength=i / 3 if i else None, votes=[{"voter": "reward_model/0", "margin": i - 1.5}],
        )
        for i, p in enumerate(prompts)
    ]  # fmt: skip
    return schemas.table(pairs, "pairs"), schemas.table(prompts, "prompts")
