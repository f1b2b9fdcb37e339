"""Reward models that TRL's RewardTrainer trains, whole and as PEFT adapters, keep their scores here.

TRL has no class with a score for these families, and its collator takes texts alone: both are of the test's own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dt2it_pipeline.reward.data.encoding import load_processor
from dt2it_pipeline.reward.foreign import import_checkpoint
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline_tests.support.tiny import WORDS, make_images, make_tiny

IMAGE_INPUTS = ("pixel_values", "image_grid_thw", "mm_token_type_ids")


def with_score(base: Path) -> Any:
    """A classifier around the base model's language model and vision encoder."""
    from transformers import AutoModelForImageTextToText, PreTrainedModel
    from transformers.modeling_outputs import SequenceClassifierOutput

    inner = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).model

    class ForSequenceClassification(PreTrainedModel):
        config_class = type(inner.config)
        base_model_prefix = "model"
        _supports_sdpa = True

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = inner
            self.score = torch.nn.Linear(config.text_config.hidden_size, 1, bias=False)

        def forward(self, input_ids: Any = None, attention_mask: Any = None, **given: Any) -> Any:
            given = {name: value for name, value in given.items() if name in IMAGE_INPUTS}
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **given).last_hidden_state
            last = attention_mask.cumsum(-1).argmax(-1)
            return SequenceClassifierOutput(logits=self.score(hidden[torch.arange(len(hidden)), last]))

    torch.manual_seed(1)
    inner.config.num_labels = 1
    made = ForSequenceClassification(inner.config)
    made.config._name_or_path = made.name_or_path = str(base)  # what PEFT names as the adapter's base model
    return made


def make_rows(folder: Path) -> list[dict[str, Any]]:
    """Pairs with no image, one and two."""
    generator = np.random.default_rng(5)
    media = [str(folder / row["path"]) for row in make_images(folder, 3)]
    return [
        {
            "turns": [
                {"role": "user", "text": "<image>" * (number % 3) + " ".join(generator.choice(WORDS, 4 + number % 3))}
            ],
            "images": media[: number % 3],
            "responses": [" ".join(generator.choice(WORDS, int(generator.integers(2, 8)))) + end for end in "ab"],
        }
        for number in range(6)
    ]


def encoded(processor: Any, row: Mapping[str, Any], response: str) -> Any:
    text = row["turns"][0]["text"].replace("<image>", "")
    content = [*({"type": "image"} for _ in row["images"]), {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": response}]
    images = [Image.open(path) for path in row["images"]] or None
    return processor(text=[processor.apply_chat_template(messages, tokenize=False)], images=images, return_tensors="pt")


def together(inputs: Sequence[Mapping[str, Any]], pad: int) -> dict[str, Any]:
    """Inputs of several texts as one batch, padded on the right."""
    ids, masks, types = (
        torch.nn.utils.rnn.pad_sequence([one[name][0] for one in inputs], batch_first=True, padding_value=value)
        for name, value in (("input_ids", pad), ("attention_mask", 0), ("mm_token_type_ids", 0))
    )
    batch = {"input_ids": ids, "attention_mask": masks, "mm_token_type_ids": types}
    for name in IMAGE_INPUTS[:2]:
        if found := [one[name] for one in inputs if name in one]:
            batch[name] = torch.cat(found)
    return batch


@pytest.mark.heavy
@pytest.mark.parametrize("adapter", ["none", "language", "all"])
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_a_checkpoint_that_trl_wrote_keeps_its_scores(tmp_path: Path, family: str, adapter: str) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import RewardConfig, RewardTrainer

    base, output = make_tiny(tmp_path / "base", family), tmp_path / "theirs"
    processor, rows = load_processor(base), make_rows(tmp_path / "images")
    pairs = [[encoded(processor, row, response) for response in row["responses"]] for row in rows]
    model, pad = with_score(base), processor.tokenizer.pad_token_id
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "score"]
    targets = {"language": r".*language_model.*(q_proj|v_proj|o_proj|gate_proj|down_proj)", "all": layers}
    lora = LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=targets.get(adapter), modules_to_save=["score"],
        use_rslora=adapter == "all",
    )  # fmt: skip
    data = [
        {"row": number, "chosen_ids": one["input_ids"][0].tolist(), "rejected_ids": other["input_ids"][0].tolist()}
        for number, (one, other) in enumerate(pairs)
    ]
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=str(output), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True,
            bf16=False, fp16=False, report_to="none", save_strategy="no", remove_unused_columns=False,
            gradient_checkpointing=False, max_length=None,
        ),
        train_dataset=Dataset.from_list(data),
        processing_class=processor.tokenizer,
        data_collator=lambda drawn: together([pairs[one["row"]][side] for side in (0, 1) for one in drawn], pad),
        peft_config=None if adapter == "none" else lora,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(output))
    theirs = trainer.model.eval()
    with torch.no_grad():
        expected = np.array([[theirs(**one).logits.item() for one in pair] for pair in pairs])

    if adapter == "none":  # it writes the tokenizer alone
        shutil.copyfile(base / "processor_config.json", output / "processor_config.json")
    else:
        assert json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    import_checkpoint(output, tmp_path / "made")
    for folder in (output, tmp_path / "made"):
        prompts = [{key: row[key] for key in ("turns", "images")} for row in rows]
        ours = np.stack(RewardModel.from_pretrained(folder).score(prompts, [row["responses"] for row in rows]))
        print(f"{folder.name}: largest difference {abs(ours - expected).max():.1e} of {np.ptp(expected):.2f}")
        assert abs(ours - expected).max() < 1e-5
    assert np.ptp(expected) > 0.1
