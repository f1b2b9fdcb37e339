"""Makes the small base model that ships with the package: `python -m dt2it_pipeline.demo.build_base_model`.

A Qwen3-VL of 2.4 million parameters that really sees. It learns from images drawn in the look of easy-VQA and from
questions in its format, never from easy-VQA's own images, and is measured on easy-VQA's test split.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

from dt2it_pipeline.demo import language
from dt2it_pipeline.demo.conversations import ConversationMaker
from dt2it_pipeline.demo.evaluate import BASE_MODEL, evaluate_base_model
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.storage.leftovers import owned_prefix

_CARD = """\
---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: transformers
---
# A small Qwen3-VL that sees colored shapes

The base model of the demo: {parameters:,} parameters in the architecture of Qwen3-VL, random at the start, stored in
bfloat16. It answers questions about 64 x 64 images of one colored shape, in one plain style, or at length when the
question ends with an instruction such as "{in_detail}"; it writes captions, chooses which of two images fits a caption
better, and decides whether a given answer is right. It knows nothing else and is of no use outside the demo.

| greedy accuracy on the test split of easy-VQA | |
|---|---|
| what shape | {shape:.1%} |
| what color | {color:.1%} |
| yes or no, negations included | {yes_no:.1%} |
| which of two images fits the caption (one of color and shape, or both, differ) | {two_images:.1%} |

## How it was made

`python -m dt2it_pipeline.demo.build_base_model --seed {seed}`, {minutes:.0f} minutes of wall time on one CPU core:
{vision_encoder_steps} steps of 32 images for the vision encoder as a classifier of color and shape; then, with the
vision encoder frozen, {language_steps} steps of 64 conversations for the language model, and lessons of about the same
length together: which words fit an image, decisions (yes or no, image 1 or image 2), and conversations again.

## Data and licence

The images were drawn on the fly and the questions and answers made from templates (`dt2it_pipeline/demo`), in the
look and format of [easy-VQA](https://github.com/vzhou842/easy-VQA) (MIT). No image of easy-VQA was trained on. The
weights are under the licence of this package, Apache-2.0.
"""


def build(output: Path, seed: int, vision_encoder_steps: int, language_steps: int) -> dict[str, float]:
    """Train the model and store it in `output`, replacing what is there; returns its accuracies on the test split."""
    ensure_torchvision()
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    from dt2it_pipeline.demo import decisions, model_files, training

    torch.set_num_threads(1)  # the same arithmetic on every machine, and no waiting for a busy second core
    started = time.monotonic()
    looks = [(color, shape) for color in language.COLORS for shape in language.SHAPES]
    maker = ConversationMaker([color for color, _ in looks], [shape for _, shape in looks], random.Random(seed))
    tokenizer = model_files.make_tokenizer(model_files.conversation_text(maker.draw(), 0) for _ in range(20_000))
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(model_files.make_config(tokenizer))
    training.train_vision_encoder(model.model.visual, vision_encoder_steps, seed)
    text_model = model.model.language_model
    usual_attention = text_model.config._attn_implementation
    text_model.set_attn_implementation("eager")  # on a CPU in bfloat16 its backward pass is twice as fast
    training.train_language_model(model, tokenizer, language_steps, seed)
    decisions.train_words(model, tokenizer, round(0.3 * language_steps), seed + 2)
    decisions.train_decisions(model, tokenizer, round(0.4 * language_steps), seed)
    training.train_language_model(model, tokenizer, round(0.15 * language_steps), seed + 1, learning_rate=1e-3)
    text_model.set_attn_implementation(usual_attention)
    minutes = (time.monotonic() - started) / 60

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=owned_prefix(".base_model")) as temporary:
        made = Path(temporary) / "base_model"
        model.generation_config.update(
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None
        )
        model.bfloat16().save_pretrained(made)
        model_files.make_processor(tokenizer).save_pretrained(made)
        accuracies = evaluate_base_model(made)
        card = _CARD.format(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            in_detail=language.IN_DETAIL[0],
            minutes=minutes,
            seed=seed,
            vision_encoder_steps=vision_encoder_steps,
            language_steps=language_steps,
            **accuracies,
        )
        (made / "README.md").write_text(card, encoding="utf-8")
        if output.exists():
            shutil.rmtree(output)
        made.rename(output)
    return accuracies


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dt2it_pipeline.demo.build_base_model", description="Make the demo's base model."
    )
    parser.add_argument("--output", type=Path, default=BASE_MODEL, help="folder to write (default: in the package)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vision encoder-steps", type=int, default=2200, help="optimiser steps of the vision encoder")
    parser.add_argument("--language-steps", type=int, default=2000, help="optimiser steps of the language model")
    arguments = parser.parse_args()
    accuracies = build(arguments.output, arguments.seed, arguments.vision_encoder_steps, arguments.language_steps)
    print({kind: round(accuracy, 4) for kind, accuracy in accuracies.items()})


if __name__ == "__main__":
    main()
