"""What a case came to, and how it is shown: rates, model FLOP/s, the peak of known cards, the tables."""

from __future__ import annotations

import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.environment import spread

# Dense bfloat16 TFLOP/s by the name that the driver gives; a slice of a card (MIG) has no figure of its own.
_PEAKS = {
    r"H100 (80GB HBM3|SXM)": 989.0,
    r"H100 PCIe": 756.0,
    r"\bH200$": 989.0,
    r"\bA100\b": 312.0,
    r"\bL40S\b": 362.0,
    r"RTX 4090$": 165.0,
    r"\bL4$": 121.0,
}
OUT_OF_MEMORY = "out of memory"
_FORMULA = """\
MFU = model FLOP/s over the card's dense bfloat16 peak, {peak}. Per token that a layout computes, padding not counted:
6 x decoder parameters in training (4 x with LoRA, whose frozen weights take no gradient), 2 x in scoring; embedding and
LM head are no part of them, attention's own products and recomputed activations are not counted. "With encoder" adds
2 x encoder parameters per patch, where the vision encoder runs."""
_READING = """\
Rates are medians (least to greatest) over measured steps; a step of `score` is a shard. The trainer logs every step
here, and waits for the device to do so. "First" is from the start of the process (LLaMA-Factory's own) to the end of
the first step, of sampling to the end of the warm-up; "compile" is what torch.compile took of the whole case, nearly
all of it before the first step is done. "Waits for data" is the share of a step in which the trainer reads images and
moves them to the device. Peak memory is {memory}."""
_COLUMNS = ("unit", "tokens/s", "MFU", "with encoder", "peak memory, GiB", "first, s", "compile, s", "waits for data")
_WIDTH = 120
CPU_NOTE = """\
Here the trainers ran one after the other on a CPU, so that other load moves the ratio.
`python -m benchmarks.llamafactory` lets them take turns."""
PROFILE_NOTE = """\
Where a step's time goes, median ms (share), in the bare loop with images read at every step. Every part ends with a
synchronisation of the device, so the sum is longer than a step of `bare`."""


@dataclass
class Result:
    """What a case came to.

    Attributes:
        case: its name, with what sets it apart.
        shape: of the model.
        unit: what is counted: pairs, responses or tokens.
        rates: units per second of each measured step.
        tokens: that a unit has in the layout that is computed.
        decoder: FLOP of a unit in the decoder; None where they are not defined.
        encoder: the same in the vision encoder.
        peak_memory: bytes.
        first: seconds from the start of the process to the first result.
        compilation: what torch.compile took (`Compilation.summary`); empty where nothing was compiled.
        waits: share of a measured step that waits for data.
        profile: milliseconds of each measured step by part.
        parity: correlations and distances of the case `parity`.
        error: why there are no figures.
        skipped: why it was not run, which is no failure.
        versions: of the packages in another environment that it ran in.
    """

    case: str
    shape: str
    unit: str = ""
    rates: list[float] = field(default_factory=list)
    tokens: float | None = None
    decoder: float | None = None
    encoder: float | None = None
    peak_memory: int | None = None
    first: float | None = None
    compilation: dict[str, float | int] = field(default_factory=dict)
    waits: float | None = None
    profile: dict[str, list[float]] = field(default_factory=dict)
    parity: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    skipped: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def rate(self) -> float | None:
        """Median of the rates."""
        return statistics.median(self.rates) if self.rates else None


def peak_tflops(card: str | None) -> float | None:
    """Dense bfloat16 TFLOP/s of a card by its name; None where it is not known.

    >>> peak_tflops("NVIDIA H100 80GB HBM3"), peak_tflops("NVIDIA H100 PCIe"), peak_tflops("NVIDIA GeForce RTX 4090")
    (989.0, 756.0, 165.0)
    >>> peak_tflops("NVIDIA H100 80GB HBM3 MIG 1g.10gb"), peak_tflops("NVIDIA GH200 480GB"), peak_tflops(None)
    (None, None, None)
    """
    if card is None or "MIG" in card:
        return None
    return next((peak for pattern, peak in _PEAKS.items() if re.search(pattern, card)), None)


def flops(
    parameters: Mapping[str, int], per_parameter: int, tokens: float, patches: float, image_tokens: float
) -> tuple[float, float]:
    """FLOP of one unit in the decoder and in the vision encoder.

    Args:
        parameters: of the model, by part (`shapes.part_of`).
        per_parameter: FLOP per decoder parameter and token: 2 forward, 4 with gradients of activations, 6 with all.
        tokens: of the unit.
        patches: that the vision encoder sees for it.
        image_tokens: that its projector makes of them.

    >>> flops({"decoder": 10, "encoder": 3, "merger": 1}, 6, 100, 8, 2)
    (6000, 52)
    """
    encoder = 2 * (parameters["encoder"] * patches + parameters["merger"] * image_tokens)
    return per_parameter * parameters["decoder"] * tokens, encoder


def utilisation(result: Result, peak: float | None) -> tuple[float | None, float | None]:
    """MFU of the decoder, and with the encoder; None where something is not known. `peak` is in TFLOP/s.

    >>> utilisation(Result("train", "s", "pairs", [2.0], decoder=1e12, encoder=2.5e11), 10.0)
    (0.2, 0.25)
    """
    if peak is None or result.rate is None or result.decoder is None:
        return None, None
    once = result.rate / (peak * 1e12)
    return once * result.decoder, once * (result.decoder + (result.encoder or 0.0))


def table(results: Sequence[Result], peak: float | None) -> str:
    """All results, a line each; columns in which nothing stands are left out."""
    rows = [["case", "shape", "rate", *_COLUMNS]]
    for result in results:
        if result.rate is None:
            kind = (result.error or "").partition(":")[0]
            rows.append([result.case, result.shape, kind or result.skipped or "", *[""] * len(_COLUMNS)])
            continue
        mfu, whole = utilisation(result, peak)
        memory = None if result.peak_memory is None else result.peak_memory / 2**30
        cells = (
            f"{result.unit}/s",
            _number(result.rate * result.tokens if result.tokens else None, 0),
            _percent(mfu),
            _percent(whole),
            _number(memory, 1),
            _number(result.first, 1),
            _number(result.compilation.get("compile_seconds"), 1),
            _percent(result.waits),
        )
        rows.append([result.case, result.shape, spread(result.rates, 1 if result.rate >= 10 else 2), *cells])
    shown = [place for place in range(len(rows[0])) if any(row[place] for row in rows[1:])]
    return markdown([[row[place] for place in shown] for row in rows])


def notes(card: str | None, peak: float | None) -> str:
    """What the columns of the table mean, MFU with its formula."""
    if card is None:
        text = "No MFU: there is no GPU. " + _READING.format(memory="that of the process in main memory")
    else:
        shown = f"{peak:g} TFLOP/s of {card}" if peak else f"which is not known of {card} (give --peak-tflops)"
        memory = "what PyTorch allocated on the GPU, and not shown of vLLM, which takes what it finds"
        text = _FORMULA.format(peak=shown) + " " + _READING.format(memory=memory)
    return textwrap.fill(text, _WIDTH, break_on_hyphens=False)


def against_theirs(results: Sequence[Result]) -> str:
    """Rates of this project's trainer over LLaMA-Factory's, by shape, with its versions; empty where one is missing.

    >>> theirs = Result("LLaMA-Factory", "s", "pairs", [2.0], versions={"llamafactory": "0.9.5", "torch": "2.8.0"})
    >>> against_theirs([Result("train", "s", "pairs", [7.0]), theirs])
    's: train has 3.50 times the rate of LLaMA-Factory 0.9.5 (torch 2.8.0).'
    >>> against_theirs([Result("train", "other", "pairs", [7.0]), theirs])
    ''
    """
    lines = []
    for theirs in results:
        name = theirs.versions.get("llamafactory")
        if name is None or theirs.rate is None:
            continue
        for ours in results:
            if ours.case.partition(",")[0] == "train" and ours.shape == theirs.shape and ours.rate is not None:
                rest = ", ".join(f"{key} {value}" for key, value in theirs.versions.items() if key != "llamafactory")
                times = f"{ours.rate / theirs.rate:.2f} times"
                lines.append(f"{ours.shape}: {ours.case} has {times} the rate of LLaMA-Factory {name} ({rest}).")
    return "\n".join(lines)


def profile_table(results: Sequence[Result]) -> str:
    """Parts of a step of every profiled shape."""
    rows = [["shape", "part", "ms", "share"]]
    for result in results:
        medians = {part: statistics.median(times) for part, times in result.profile.items()}
        whole = sum(medians.values())
        rows += [[result.shape, part, f"{took:.1f}", f"{took / whole:.0%}"] for part, took in medians.items()]
    return markdown(rows)


def as_json(results: Sequence[Result], peak: float | None, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, for a file."""
    rows = []
    for result in results:
        mfu, whole = utilisation(result, peak)
        tokens = result.rate * result.tokens if result.rate and result.tokens else None
        derived = {"rate": result.rate, "tokens_per_second": tokens, "mfu": mfu, "mfu_with_encoder": whole}
        rows.append(vars(result) | derived)
    return {"machine": dict(machine), "peak_tflops": peak, "results": rows}


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up on a terminal, too."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
