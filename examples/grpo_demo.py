"""GRPO on the demo's world: does a policy that is trained on a reward model get better, by reward and by truth?

    make demo                                    # once: makes the world and the reward models
    python examples/grpo_demo.py --world WORLD round-1=CHECKPOINT control=CHECKPOINT --output grpo

WORLD is the folder `sources/demo` of the artifact home. Every reward model trains a policy of its own, from the same
start. That is the demo's base model, which is right 99% of the time and never verbose, after it has learnt to answer
worse: from answers of which 70% (`--right`) are right and half are verbose, so that about 60% of its own are right.

The truth (whether an answer is right) is measured on questions that no policy was trained on, and no reward sees it.
`grpo/curve.svg` shows reward and truth by step, `grpo/figures.json` has the numbers, and with them the mean reward of
written answers, right and wrong, plain and verbose: it tells which way a policy is pulled. Needs the extra `rl`; one
CPU core suffices.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.demo import language
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.serve import RewardClient
from dt2it_pipeline.serve.trl_reward import reward_function

HELD_OUT = 192  # questions on which reward and truth are measured
DRAWS = 1  # answers to each of them
GENERATIONS = 8  # answers per question in a step
LONGEST = 64  # tokens of an answer
VERBOSE = 60  # characters; every plain answer is shorter, every verbose one longer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL", help="reward model: folder, Hub id or URL")
    parser.add_argument("--world", type=Path, required=True, help="folder of the demo's source files")
    parser.add_argument("--output", type=Path, default=Path("grpo"), help="folder for the curve and the figures")
    parser.add_argument("--steps", type=int, default=20, help="of GRPO")
    parser.add_argument("--questions", type=int, default=6, help="questions per step")
    parser.add_argument("--warm-up", type=int, default=60, help="supervised steps of 32 answers before GRPO")
    parser.add_argument("--right", type=float, default=0.7, help="share of right answers among them")
    parser.add_argument("--eval-steps", type=int, default=5, help="steps between two measurements")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    models = [named.rpartition("=") for named in given.models]
    names = [name or model for name, _, model in models]
    if len(set(names)) < len(names):
        parser.error(f"a name is given twice: {', '.join(names)}; give every reward model a name of its own")
    ensure_torchvision()
    clients = [RewardClient(model) for _, _, model in models]  # first, so that a wrong path shows before the warm-up
    start = warm_up(given, given.output / "start")
    found: dict[str, dict[str, Any]] = {}
    for name, client in zip(names, clients, strict=True):
        found[name] = {"written": written(client, given), "curve": train(start, client, given)}
        (given.output / "figures.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    curves = {name: figures["curve"] for name, figures in found.items()}
    draw(curves, given.output / "curve.svg")
    print(written_table({name: figures["written"] for name, figures in found.items()}), table(curves), sep="\n\n")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def warm_up(given: argparse.Namespace, folder: Path) -> Path:
    """Teach the base model written answers, a share of them right and half of them verbose."""
    import torch
    from PIL import Image
    from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

    torch.manual_seed(given.seed)
    draws = random.Random(given.seed)
    base = model_path("demo")
    processor = AutoProcessor.from_pretrained(base)
    model = Qwen3VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32).train()
    pairs = read_rows(given.world / "truth.jsonl")  # its chosen responses are right
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    mark = processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
    for _ in range(given.warm_up):
        rows = [row for row in draws.sample(pairs, 32) if readable(given.world / row["image"])]
        chats = []
        for row in rows:
            answer = language.read_answer(row["question"], row["chosen"])
            if answer is None:
                raise ValueError(f"{row['id']} of truth.jsonl: its chosen response does not answer the question")
            if draws.random() >= given.right:
                answer = language.wrong_answer(row["question"], answer, draws)
            text = language.answer_in_style(draws.choice(language.STYLES), row["question"], answer, draws)
            chats.append([*asked(row["question"]), {"role": "assistant", "content": text}])
        images = [[Image.open(given.world / row["image"]).convert("RGB")] for row in rows]
        batch = processor(
            text=processor.apply_chat_template(chats, tokenize=False),
            images=images,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        labels = batch["input_ids"].clone()
        for number, tokens in enumerate(batch["input_ids"]):
            first = int((tokens == mark).nonzero()[-1]) + 3  # behind the mark, the role and the newline
            labels[number, :first] = -100
        labels[batch["attention_mask"] == 0] = -100
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def readable(file: Path) -> bool:
    """Whether an image is whole; some of the demo's are cut off on purpose."""
    from dt2it_pipeline.media.errors import MediaError
    from dt2it_pipeline.media.opening import open_image

    try:
        open_image(file)
    except MediaError:
        return False
    return True


def asked(question: str) -> list[dict[str, Any]]:
    """A question about an image, as a conversation."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


def written(client: RewardClient, given: argparse.Namespace) -> dict[str, float]:
    """Mean reward of written answers to the held-out questions, by style and by whether they are right."""
    rows = read_rows(given.world / "prompts.jsonl")[:HELD_OUT]
    draws = random.Random(given.seed)
    means = {}
    for style in language.STYLES:
        for right in (True, False):
            words = [
                row["answer"] if right else language.wrong_answer(row["question"], row["answer"], draws) for row in rows
            ]
            answers = [
                language.answer_in_style(style, row["question"], word, draws)
                for row, word in zip(rows, words, strict=True)
            ]
            rewards = client.rewards([prompt_of(row, given.world) for row in rows], answers)
            means[f"{style}, {'right' if right else 'wrong'}"] = mean(rewards)
    return means


def prompt_of(row: dict[str, Any], world: Path) -> dict[str, Any]:
    """A question and its image, as the client takes them."""
    return {
        "turns": [{"role": "user", "text": f"<image>{row['question']}"}],
        "images": [str((world / row["image"]).absolute())],
    }


def mean(values: Sequence[float | None]) -> float:
    """Mean of the values that are there; nan when none is."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else float("nan")


def train(start: Path, client: RewardClient, given: argparse.Namespace) -> list[dict[str, float]]:
    """Train a policy on the rewards of a client; returns what was measured, by step."""
    from datasets import Dataset, Image
    from transformers import AutoProcessor, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    rows = read_rows(given.world / "prompts.jsonl")
    held_out, rows = rows[:HELD_OUT], rows[HELD_OUT:]
    data = Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": row["question"]}], "image": str(given.world / row["image"])}
            for row in rows
        ]
    ).cast_column("image", Image())
    curve: list[dict[str, float]] = []

    class Measure(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step % given.eval_steps == 0 or state.global_step == state.max_steps:
                curve.append({"step": state.global_step, **measure(model, processor, client, held_out, given)})
                print(json.dumps(curve[-1]), flush=True)

    # TRL pads prompts on the left, and takes the places of their image tokens from the processor: with padding on the
    # right, which is a tokenizer's default, Qwen-VL gets the positions of other tokens, or an error in get_rope_index.
    processor = AutoProcessor.from_pretrained(start, padding_side="left")
    trainer = GRPOTrainer(
        model=str(start),
        reward_funcs=reward_function(client),
        train_dataset=data,
        processing_class=processor,
        callbacks=[Measure()],
        args=GRPOConfig(
            output_dir=str(given.output / "trainer"),
            per_device_train_batch_size=given.questions * GENERATIONS,
            num_generations=GENERATIONS,
            max_completion_length=LONGEST,
            max_steps=given.steps,
            learning_rate=given.learning_rate,
            lr_scheduler_type="constant",
            seed=given.seed,
            beta=0.0,  # nothing holds the policy back: what the reward model gets wrong shows
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_steps=max(1, given.steps),
        ),
    )
    curve.append({"step": 0, **measure(trainer.model, processor, client, held_out, given)})
    print(json.dumps(curve[-1]), flush=True)
    trainer.train()
    return curve


def measure(
    model: Any, processor: Any, client: RewardClient, rows: Sequence[dict[str, Any]], given: argparse.Namespace
) -> dict[str, float]:
    """Mean reward and shares of right (with its standard error) and verbose answers, on held-out questions."""
    import torch
    from PIL import Image

    rows = [row for row in rows for _ in range(DRAWS)]
    texts = processor.apply_chat_template(
        [asked(row["question"]) for row in rows], add_generation_prompt=True, tokenize=False
    )
    images = [[Image.open(given.world / row["image"]).convert("RGB")] for row in rows]
    batch = processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
    training = model.training
    model.eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(given.seed)
        tokens = model.generate(**batch, max_new_tokens=LONGEST, do_sample=True, temperature=1.0, top_k=0)
    model.train(training)
    answers = processor.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [
        language.read_answer(row["question"], text) == row["answer"] for row, text in zip(rows, answers, strict=True)
    ]
    shares = [sum(right[first : first + DRAWS]) / DRAWS for first in range(0, len(right), DRAWS)]  # by question
    return {
        "reward": mean(client.rewards([prompt_of(row, given.world) for row in rows], answers)),
        "truth": mean(shares),
        "truth_error": statistics.stdev(shares) / math.sqrt(len(shares)),
        "verbose": sum(len(text) > VERBOSE for text in answers) / len(answers),
    }


def draw(curves: dict[str, list[dict[str, float]]], file: Path) -> None:
    """Reward above, truth and verbosity below, by step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(curves) + 0.6, 4.6), layout="constrained")
    axes = figure.subplots(2, len(curves), squeeze=False, sharex=True)
    for column, (name, points) in enumerate(curves.items()):
        steps = [point["step"] for point in points]
        above, below = axes[0][column], axes[1][column]
        above.plot(steps, [point["reward"] for point in points], "o-", color="tab:blue")
        above.set_title(f"trained on {name}")
        above.set_ylabel("mean reward")
        below.errorbar(
            steps,
            [100 * point["truth"] for point in points],
            yerr=[196 * point["truth_error"] for point in points],  # 95%
            fmt="o-",
            color="tab:green",
            label="right answers",
        )
        below.plot(
            steps, [100 * point["verbose"] for point in points], "s--", color="tab:gray", label="verbose answers"
        )
        below.set(ylim=(0, 100), xlabel="GRPO step", ylabel="% of held-out answers")
    figure.legend(*axes[1][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(file, metadata={"Date": None})


def table(curves: dict[str, list[dict[str, float]]]) -> str:
    """First and last measurement of every policy, as a Markdown table; right % with its standard error."""
    lines = ["| trained on | step | mean reward | right % | verbose % |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, points in curves.items():
        for point in (points[0], points[-1]):
            lines.append(
                f"| {name} | {point['step']:.0f} | {point['reward']:+.2f} | {100 * point['truth']:.1f} "
                f"± {100 * point['truth_error']:.1f} | {100 * point['verbose']:.1f} |"
            )
    return "\n".join(lines)


def written_table(found: dict[str, dict[str, float]]) -> str:
    """Mean rewards of written answers, as a Markdown table."""
    kinds = list(next(iter(found.values())))
    lines = [f"| reward of | {' | '.join(kinds)} |", f"| --- |{' ---: |' * len(kinds)}"]
    lines += [f"| {name} | {' | '.join(f'{means[kind]:+.2f}' for kind in kinds)} |" for name, means in found.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
