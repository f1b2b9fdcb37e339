"""What a training does where memory runs out, or a compiled kernel does not fit the GPU: it is started again.

A rank whose memory ran out cannot go on, since the others wait for it within an exchange. So its process ends with a
`TrainingError`, and leaves a note in the work folder. `launch_training` finds the note and launches the job once more
with half the micro-batch, from its last saved state. A step has the same pairs as before, over more forward passes, so
that the result differs by rounding alone, and with `lora.dropout` by what dropout draws. The note stays with the
states: a training that is killed later goes on in the same way, and says so at each start. Both go when it is done.

The same is done where a kernel of torch.compile cannot be had for the GPU, as on a small card: the job is launched
again with FlexAttention in smaller blocks, and once more with PyTorch's own attention and layers that are not compiled,
as far as the settings leave it open. Results differ by rounding alone.

A process that a signal ended (the kernel's, where the machine's memory ran out) leaves no note, and is not started
again. No torch here: who launches trainings does without.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dt2it_pipeline.config.recipe_files import zero_stage
from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.engines.jobs import Summary
from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.training.job import MicroBatch, TrainJob
from dt2it_pipeline.storage import content_ids
from dt2it_pipeline.storage.atomic import StoreError, write_json_atomic

_NOTE, _FALLBACKS = "out_of_memory.json", "kernel_fallbacks.json"
_LEAST_TOKENS = 16  # of the setting micro_batch_tokens
_SOURCE = re.compile(r"^\[enforce fail at [^]]*\] .*?\. (?=\w)")  # where PyTorch's allocator for a CPU says it was
_logger = logging.getLogger(__name__)


@dataclass
class Place:
    """Where a rank is in its training.

    Attributes:
        at: in words, such as "at step 3".
        examples: of the last forward pass that began; 0 before the first, and while weights are saved.
        pairs: of that pass; half its answers, rounded up.
        cells: of that pass: tokens, padding included.
    """

    at: str = "before the first step"
    examples: int = 0
    pairs: int = 0
    cells: int = 0

    def saves(self, what: str) -> None:
        """Note that weights are saved now, for which no forward pass is to blame."""
        self.at, self.examples = f"while {what} was saved", 0


def memory_error(job: TrainJob, place: Place, rank: int, ranks: int, error: BaseException) -> TrainingError:
    """The error that ends a rank whose memory ran out; a note for `launch_training` is left where less may suffice.

    Less may suffice where the pass held several examples and was not made smaller before.

    Args:
        job: that was run.
        place: where the rank was.
        rank: which one it is.
        ranks: how many there are.
        error: what was raised.
    """
    reason = _SOURCE.sub("", str(error).partition("\n")[0])
    reason = ". ".join(reason.split(". ")[:2]).strip().rstrip(".") or type(error).__name__
    where = f"{place.at}, rank {rank} of {ranks}"
    if job.micro_batch is None and place.examples > 1:
        smaller = _half(job.settings, place)
        note = {"settings": _digest(job), "micro_batch": smaller.model_dump(), "where": where, "reason": reason}
        with contextlib.suppress(OSError, StoreError):  # the error says what to do without it
            write_json_atomic(note, job.work / _NOTE)
    halved = "" if job.micro_batch is None else f"; the micro-batch was halved already, to {job.micro_batch.in_words()}"
    return TrainingError(f"memory ran out {where} ({reason}){halved}; {_advice(job.settings, place, ranks)}")


def note_fallback(job: TrainJob, reason: str, less: str) -> None:
    """Leave a note for `launch_training` that less is to be asked of the GPU, one step further than the job did.

    Args:
        job: that was run.
        reason: why a kernel cannot be had.
        less: what the job is to compute with.
    """
    note = {"settings": _digest(job), "fallbacks": job.fallbacks + 1, "reason": reason, "less": less}
    with contextlib.suppress(OSError, StoreError):  # the error says what to do without it
        write_json_atomic(note, job.work / _FALLBACKS)


def launch_training(job: TrainJob, launch: Callable[[TrainJob], Summary], say: Callable[[str], None]) -> Summary:
    """Launch a training, and again where memory ran out or a kernel did not fit the GPU.

    It is launched once more with half the micro-batch, and as often as there is less to ask of the GPU.

    Args:
        job: as the recipe asks for it.
        launch: runs a job in processes of its own, to its end.
        say: is handed one line for the log where the job is changed.

    Raises:
        Exception: what `launch` raises, at the last time where it is called several times.
    """
    chosen = _as_noted(job, job, say)
    while True:
        try:
            return launch(chosen)
        except Exception:
            changed = _as_noted(job, chosen, say)
            if changed == chosen:
                raise
        chosen = changed


def _as_noted(job: TrainJob, before: TrainJob, say: Callable[[str], None]) -> TrainJob:
    """The job as the notes in its work folder ask for it, where they are of these settings.

    Args:
        job: as the recipe asks for it.
        before: as it was run last; what differs from it is handed to `say`.
        say: see `launch_training`.
    """
    halved, fallbacks = before.micro_batch or _noted_micro_batch(job, say), _noted_fallbacks(job, before, say)
    return job.model_copy(update={"micro_batch": halved, "fallbacks": fallbacks})


def _noted_micro_batch(job: TrainJob, say: Callable[[str], None]) -> MicroBatch | None:
    file = job.work / _NOTE
    note = _read(file)
    try:
        if note.get("settings") != _digest(job):
            return None
        smaller = MicroBatch.model_validate(note["micro_batch"])
    except (KeyError, ValidationError):
        return None
    lora = job.settings.lora
    differs = "rounding and by what dropout draws" if lora is not None and lora.dropout else "rounding alone"
    say(
        f"memory ran out {note.get('where')} ({note.get('reason')}); training goes on from its last saved state with "
        f"half the micro-batch, {smaller.in_words()}: each step has the same pairs, so that the result differs by "
        f"{differs}. Later starts with these settings do the same; with more memory, remove {file} first"
    )
    return smaller


def _noted_fallbacks(job: TrainJob, before: TrainJob, say: Callable[[str], None]) -> int:
    file = job.work / _FALLBACKS
    note = _read(file)
    count = note.get("fallbacks")
    if note.get("settings") != _digest(job) or not isinstance(count, int) or count <= before.fallbacks:
        return before.fallbacks
    say(
        f"{note.get('reason')}; training goes on from its last saved state with {note.get('less')}: the result differs "
        f"by rounding alone. Later starts with these settings do the same; on another GPU, remove {file} first"
    )
    return count


def _half(settings: TrainingSettings, place: Place) -> MicroBatch:
    """Half the token budget where there is one, else half the pairs; of what the pass held, where that was less."""
    pairs, tokens = settings.micro_batch_size, settings.micro_batch_tokens
    if tokens is None:
        return MicroBatch(pairs=max(1, min(pairs, place.pairs) // 2))
    return MicroBatch(pairs=pairs, tokens=max(_LEAST_TOKENS, min(tokens, place.cells) // 2))


def _advice(settings: TrainingSettings, place: Place, ranks: int) -> str:
    """The settings to change, those that would help and are not set yet."""
    lower = []
    if place.examples > 1 or not place.examples:
        lower.append(f"training.micro_batch_size (now {settings.micro_batch_size})")
        lower.append(f"training.micro_batch_tokens (now {settings.micro_batch_tokens or 'without limit'})")
    lower.append(f"training.max_length (now {settings.max_length or 'the context of the base model'})")
    lower.append(f"training.max_pixels (now {settings.max_pixels})")
    sets = [] if settings.gradient_checkpointing else ["training.gradient_checkpointing: true"]
    sets += [] if settings.lora is not None else ["training.lora"]
    stage, name = zero_stage(settings.deepspeed_config), settings.deepspeed_config
    if stage < 3 and ranks > 1:
        sets.append(f"training.deepspeed_config: zero3 (ZeRO stage 3; now {name}, stage {stage})")
    elif stage < 3:
        sets.append("training.processes: 2 or more with training.deepspeed_config: zero3 (ZeRO stage 3)")
    else:
        sets.append(f"training.processes higher (now {settings.processes}): under ZeRO stage 3 each rank then has less")
    one = "" if place.examples != 1 else "a single pair or list did not fit; "
    return f"{one}lower {', '.join(lower)}, or set {', '.join(sets)}"


def _digest(job: TrainJob) -> str:
    return content_ids.content_hash(job.settings.model_dump(mode="json"))


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _logger.warning("%s is not used: %s", file, error)
        return {}
    return content if isinstance(content, dict) else {}
