"""The model card (README.md) of a checkpoint: what it was made from, how, what came out, and how to use it.

Everything in it is read from the job and from the files of the checkpoint. A figure or licence that is not known is
written as `not known`. What is measured after the training, calibration and benchmarks, has sections that are replaced.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.ingest.provenance import UNKNOWN, Provenance
from dt2it_pipeline.reward.calibration import CARD_KEY, Calibration, calibration_of, card_entry
from dt2it_pipeline.reward.checkpoints.checkpoint import CheckpointError
from dt2it_pipeline.reward.checkpoints.processor_files import CARD
from dt2it_pipeline.reward.families import FAMILIES
from dt2it_pipeline.storage import atomic
from dt2it_pipeline.storage.cards import markdown_table, plain_markdown

_METRICS = ("step", "epoch", "loss", "accuracy", "learning_rate", "grad_norm")
_OUTCOME = ("steps", "pairs", "pairs_quarantined", "samples_seen", "loss", "accuracy", "ranks")
_NO_BENCHMARKS = (
    "Not measured yet. `dt2it benchmark CHECKPOINT ... --output OUT` measures, and "
    "`dt2it card CHECKPOINT --figures OUT/figures.parquet` writes the table here.\n"
)
_INTENDED = """\
## Uses and limits

Made for ranking answers to the same prompt: choosing the best of several, filtering or labelling preference pairs,
rewards in reinforcement learning.

- A score says nothing by itself, and scores of different prompts cannot be compared.
- It learned the preferences of its training data, with their errors and their style. Measure what style alone explains
  (`dt2it style`) and how good its choices are on your prompts (`dt2it best-of`) before you rely on it.
- Languages, domains, image types and answer lengths that its data lack are untested, unless a benchmark below says so.
- It is no fact checker and no safety filter. A fluent wrong answer may score high.
- A policy that is optimised against it finds its errors: keep the policy near its start, and judge the result by other
  means.
- Licences of base model and training data are listed as far as they are known; they may limit what the model may be
  used for.
"""


def write_card(
    folder: Path,
    *,
    base_model: str | Path,
    pairs: str | Path | None = None,
    sources: Mapping[str, Provenance] | None = None,
    settings: TrainingSettings | None = None,
    summary: Mapping[str, Any] | None = None,
) -> None:
    """Write README.md into a checkpoint folder that is still being made.

    Args:
        folder: checkpoint with config.json, reward_model.json and, after a training, training_log.jsonl.
        base_model: folder or Hub id; of a folder only the name and the licence of its own card are written.
        pairs: the pairs table that it was trained on.
        sources: what is known of the pairs' sources, by name; of another one, licence and citation are not known.
        settings: the training's settings.
        summary: the training's summary; timings are left out, so that the same training writes the same card.
    """
    card = _json(folder / CARD)
    architecture = (_json(folder / "config.json").get("architectures") or [UNKNOWN])[0]
    name = Path(base_model).name if Path(base_model).is_dir() else str(base_model)
    licence = licence_of_model(base_model)
    parts = [
        _front_matter(name, licence),
        f"# Reward model {card.get('name') or name}\n",
        "Takes a conversation with images that ends with an assistant's answer, and gives one number: how good the "
        "answer is. Only differences between answers to the same prompt mean something.\n",
        markdown_table(
            ("", ""),
            [
                ("architecture", architecture),
                ("base model", name),
                ("licence of the base model", licence),
                *_provenance(card),
            ],
        ),
        _INTENDED,
        _use(card),
        _with_transformers(folder, architecture),
        _section("calibration", _calibration(calibration_of(card))),
        _section("benchmarks", _NO_BENCHMARKS),
    ]
    if pairs is not None:
        parts.append(_data(Path(pairs), sources or {}))
    if settings is not None:
        shown = sorted(settings.model_dump(mode="json").items())
        parts.append(
            "## Settings\n\n" + markdown_table(("setting", "value"), [(key, json.dumps(v)) for key, v in shown])
        )
    if summary is not None:
        rows = [(key, _figure(summary[key])) for key in _OUTCOME if summary.get(key) is not None]
        parts.append("## Result of the training\n\n" + markdown_table(("", ""), rows) + _logs(folder))
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Keep a calibration in a finished checkpoint: in reward_model.json, and in README.md where there is one.

    Raises:
        CheckpointError: the folder has no reward_model.json.
    """
    if not (folder / CARD).is_file():
        raise CheckpointError(f"{folder} has no {CARD}; write the model in our layout first: dt2it convert")
    card = {**_json(folder / CARD), CARD_KEY: card_entry(calibration)}
    text = json.dumps(card, ensure_ascii=False, sort_keys=True, indent=2) + "\n"
    atomic.replace_text(folder / CARD, text)
    _replace_section(folder, "calibration", _calibration(calibration))


def write_benchmarks(folder: Path, figures: Sequence[Mapping[str, Any]]) -> None:
    """Write benchmark figures into a checkpoint's README.md: a table, and the Hub's `model-index` in its front matter.

    Args:
        folder: finished checkpoint.
        figures: rows of table kind `benchmark_figures` about this model.

    Raises:
        CheckpointError: there is no README.md.
    """
    rows = [
        (row["benchmark"], row["figure"], *(_percent(row[key]) for key in ("value", "low", "high")), str(row["count"]))
        for row in figures
    ]
    text = (
        "Accuracy in percent; intervals of 95% by bootstrap over prompts. Ties count as wrong.\n\n"
        + markdown_table(("benchmark", "figure", "%", "from", "to", "of"), rows)
        + "\nMeasured with `dt2it benchmark`, which computes the figures of the benchmarks' authors.\n"
    )
    _replace_section(folder, "benchmarks", text, required=True)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    parts = readme.split("---\n", 2)
    found = yaml.safe_load(parts[1]) if readme.startswith("---\n") and len(parts) == 3 else None
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder / 'README.md'} does not begin with front matter between two lines of `---`")
    name = str(_json(folder / CARD).get("name") or folder.name)
    found["model-index"] = [{"name": name, "results": _hub_results(figures)}]
    atomic.replace_text(folder / "README.md", _dumped(found) + parts[2])


def _hub_results(figures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Entries of `model-index`: one per benchmark, with all its figures that are known."""
    by_benchmark: dict[str, list[dict[str, Any]]] = {}
    for row in figures:
        if row["value"] is not None and row["value"] == row["value"]:
            metric = {"type": "accuracy", "name": str(row["figure"]), "value": round(float(row["value"]), 4)}
            by_benchmark.setdefault(str(row["benchmark"]), []).append(metric)
    return [
        {
            "task": {"type": "image-text-to-text", "name": "pairwise preference"},
            "dataset": {"name": name, "type": name},
            "metrics": metrics,
        }
        for name, metrics in by_benchmark.items()
    ]


def _percent(share: Any) -> str:
    return UNKNOWN if share is None or share != share else f"{100 * share:.1f}"


def _section(name: str, text: str) -> str:
    """A section that can be replaced later."""
    return f"<!-- {name}: begin -->\n## {name.capitalize()}\n\n{text}<!-- {name}: end -->\n"


def _replace_section(folder: Path, name: str, text: str, *, required: bool = False) -> None:
    readme = folder / "README.md"
    if not readme.is_file():
        if required:
            raise CheckpointError(f"{folder} has no README.md to write into; is it a checkpoint of `dt2it train`?")
        return
    found = readme.read_text(encoding="utf-8")
    pattern = re.compile(rf"<!-- {name}: begin -->\n.*?<!-- {name}: end -->\n", re.DOTALL)
    section = _section(name, text)
    replaced, count = pattern.subn(lambda _: section, found, count=1)
    atomic.replace_text(readme, replaced if count else f"{found.rstrip()}\n\n{section}")


def _calibration(found: Calibration | None) -> str:
    if found is None:
        return (
            "Not calibrated: how likely it is that the answer of the higher score is better is not known. "
            "`dt2it calibrate CHECKPOINT --pairs PAIRS` fits a temperature, on pairs that it was not trained on.\n"
        )
    interval = "" if found.low is None else f"{found.low:.3g} to {found.high:.3g}"
    rows = [
        ("temperature T", f"{found.temperature:.4g}"),
        ("95% interval", interval or "not fitted"),
        ("pairs, prompts", f"{found.pairs:,}, {found.prompts:,}"),
        ("from", found.source or UNKNOWN),
        ("accuracy on them", f"{100 * found.accuracy:.1f}%"),
        ("log loss with T = 1, cross-validated with T", f"{found.log_loss_before:.4f}, {found.log_loss_after:.4f}"),
        ("expected calibration error, the same", f"{found.error_before:.4f}, {found.error_after:.4f}"),
    ]
    kept = f"T = 1 was kept: {found.fallback}.\n\n" if found.fallback else ""
    return (
        "The probability that one answer to a prompt is better than another is sigmoid((score of one - score of the "
        "other) / T), as labellers of pairs like these would say; `RewardModel.compare` gives it.\n\n"
        + kept
        + markdown_table(("", ""), rows)
    )


def licence_of_model(base_model: str | Path) -> str:
    """Licence that the base model's own card names, or `not known`."""
    try:
        text = (Path(base_model) / "README.md").read_text(encoding="utf-8")
        front = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else {}
    except (OSError, IndexError, UnicodeDecodeError, yaml.YAMLError):
        return UNKNOWN
    return str(front.get("license") or UNKNOWN) if isinstance(front, dict) else UNKNOWN


def _front_matter(name: str, licence: str) -> str:
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    front |= {"tags": ["reward-model", "preference-learning"], "base_model": name}
    if licence != UNKNOWN:
        front["license"] = licence
    return _dumped(front)


def _dumped(front: Mapping[str, Any]) -> str:
    return "---\n" + yaml.safe_dump(dict(front), sort_keys=True, allow_unicode=True) + "---\n"


def _provenance(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(key.replace("_", " "), str(card[key])) for key in ("imported_from", "seed", "max_pixels") if key in card]
    if "dropped_bias" in card:
        offset = f"{card['dropped_bias']:.6g}; the original's scores are this model's plus this constant"
        rows.append(("constant offset (the original head's bias)", offset))
    return rows


def _use(card: Mapping[str, Any]) -> str:
    system = str(card.get("system_prompt") or "")
    quoted = "\n> ".join(map(plain_markdown, system.splitlines()))
    how = (
        "A conversation without a system turn gets that of the training:"
        if card.get("system_default")
        else "It puts the system prompt of the training first:"
    )
    none = " A conversation without a system turn has none. " if card.get("system_suppressed") else " "
    put_first = f" {how}\n\n> {quoted}\n\n" if system else none
    question = [{"type": "image_url", "image_url": {"url": _red_square()}}, {"type": "text", "text": "QUESTION"}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "ANSWER"}]
    request = {"model": "CHECKPOINT", "messages": messages, "add_generation_prompt": False}
    return (
        "## Use\n\n"
        "A conversation is written with the chat template of the checkpoint, the answer being its last turn."
        f"{put_first}The score is read at the last token. Larger images are scaled down as the processor's files say. "
        "Nothing else needs to be set.\n\n"
        "```python\n"
        "from dt2it_pipeline import RewardModel\n\n"
        'model = RewardModel.from_pretrained("CHECKPOINT")\n'
        'prompt = {"turns": [{"role": "user", "text": "<image>QUESTION"}], "images": ["IMAGE.png"]}\n'
        'print(model.score([prompt], [["ANSWER", "ANOTHER ANSWER"]]))\n'
        "```\n\n"
        "Many answers: `dt2it score RESPONSES.jsonl --model CHECKPOINT --output SCORES.parquet`. With vLLM as a "
        "server, `vllm serve CHECKPOINT --runner pooling` (or `dt2it serve CHECKPOINT`), then\n\n"
        "```\n"
        "curl localhost:8000/classify -H 'Content-Type: application/json' -d '"
        + json.dumps(request, ensure_ascii=False).replace("'", "'\\''")
        + "'\n```\n\nThe image here is a red square; `base64 -w0 IMAGE.png` makes the text of another. The score "
        "is the one entry of `probs`; it is a plain number and no probability.\n"
    )


def _with_transformers(folder: Path, architecture: str) -> str:
    """The lines that score with Transformers alone, whose Auto class for scores may not know this family."""
    names = [family.head_name for family in FAMILIES.values() if family.reward_architecture == architecture]
    if not names:
        return ""
    file = _json(folder / "model.safetensors.index.json").get("weight_map", {}).get(names[0], "model.safetensors")
    return (
        "With Transformers alone, `AutoModelForSequenceClassification` loads the checkpoint where it has a class "
        f"{architecture}. Where it has none, the score of `inputs` (one conversation, as the processor of the "
        "checkpoint makes them) is\n\n"
        "```python\n"
        "from safetensors.torch import load_file\n"
        "from transformers import AutoModel\n\n"
        'backbone = AutoModel.from_pretrained("CHECKPOINT", dtype="float32")\n'
        f'head = load_file("CHECKPOINT/{file}")["{names[0]}"]\n'
        "score = backbone(**inputs).last_hidden_state[0, -1] @ head[0].float()\n"
        "```\n"
    )


def _red_square() -> str:
    """A small image as a data URL, for a request that can be tried as it stands."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _data(path: Path, sources: Mapping[str, Provenance]) -> str:
    table = atomic.read_parquet(path, "pairs")
    counts = Counter(zip(table.column("source").to_pylist(), table.column("label").to_pylist(), strict=True))
    said = {source: sources.get(source, Provenance()) for source, _ in sorted(counts)}
    rows = [
        (source, label, str(count), said[source].licence, said[source].revision)
        for (source, label), count in sorted(counts.items())
    ]
    rows.append(("all", "", str(table.num_rows), "", ""))
    cited = [f"- {source}: {one.citation}\n" for source, one in said.items() if one.citation]
    return (
        "## Training data\n\n"
        + markdown_table(("source", "label", "pairs", "licence", "revision"), rows)
        + (
            "\nThe sources ask to be cited:\n\n" + "".join(" ".join(line.split()) + "\n" for line in cited)
            if cited
            else ""
        )
    )


def _logs(folder: Path) -> str:
    trained = _log(folder / "training_log.jsonl")
    held_out = _log(folder / "validation_log.jsonl")
    return (trained and "\nLoss and accuracy are means over the steps since the line before.\n\n" + trained) + (
        held_out and "\nOn held-out pairs:\n\n" + held_out
    )


def _log(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    log = [json.loads(line) for line in lines if line.strip()]
    if not log:
        return ""
    kept = log if len(log) <= 12 else [log[round(i * (len(log) - 1) / 11)] for i in range(12)]
    keys = [key for key in kept[-1] if key in _METRICS]
    return markdown_table(tuple(keys), [tuple(_figure(row.get(key)) for key in keys) for row in kept])


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else ("" if value is None else str(value))


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return value
