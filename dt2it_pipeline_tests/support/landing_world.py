"""A landing folder with manifests and data."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

MANIFEST = "name: {name}\nkind: preferences\npath: {name}.jsonl\nmedia_root: images\nlicence: MIT\n"


def drop(folder: Path, name: str, rows: int = 3, manifest: str = MANIFEST) -> Path:
    """A manifest with its data beside it."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(folder / "images" / "a.png")
    lines = [
        json.dumps({"image": "a.png", "question": f"q{i}", "chosen": "yes", "rejected": "no"}) for i in range(rows)
    ]
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / f"{name}.yaml").write_text(manifest.format(name=name))
    return folder / f"{name}.yaml"
