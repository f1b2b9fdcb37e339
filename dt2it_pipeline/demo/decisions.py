"""The base model's second lesson: yes or no, image 1 or image 2.

In a whole answer the one token that decides is lost among those that any answer has, and a small model learns to write
well long before it learns to compare. So between two rounds of conversations it gets this: batches of such questions
alone, and a loss on the deciding token alone. First without negations, then with. Before that, it learns which words
fit an image from lists that have a decision behind every word.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn

from dt2it_pipeline.demo import language
from dt2it_pipeline.demo.conversations import IMAGE, Conversation, ConversationMaker
from dt2it_pipeline.demo.training import IGNORED, Images, batches, descend, schedule, see, train_language_model

_WORDS_REQUEST = "Which words fit?"
PLAIN_SHARE = 0.6  # of the steps: no negations yet


class _Words(ConversationMaker):
    """Draws lists of words or of questions, each with yes or no behind it, and plain yes/no questions."""

    def draw(self) -> Conversation:
        """A decision right behind every word is the shortest way to comparing words with images; questions follow."""
        image = self.rng.randrange(len(self.colors))
        look = (self.colors[image], self.shapes[image])
        kind = self.rng.randrange(3)
        if kind == 0:
            others = [word for word in (*language.COLORS, *language.SHAPES) if word not in look]
            words = [*look, *self.rng.sample(others, 5)]
            self.rng.shuffle(words)
            reply = ", ".join(f"{word} {'yes' if word in look else 'no'}" for word in words)
            return Conversation([("user", IMAGE + _WORDS_REQUEST), ("assistant", reply + ".")], [image])
        asked = [language.make_question("yes_no", *look, self.rng, negations=0.0) for _ in range(4)]
        if kind == 1:
            reply = ", ".join(f"{question} {answer}" for question, answer in asked)
            return Conversation([("user", IMAGE + _WORDS_REQUEST), ("assistant", reply + ".")], [image])
        question, answer = asked[0]
        reply = language.plain_answer(question, answer, self.rng)
        return Conversation([("user", IMAGE + question), ("assistant", reply)], [image])


def train_words(model: Any, tokenizer: Any, steps: int, seed: int) -> None:
    """Teach the language model which words fit an image, the first step towards deciding."""
    train_language_model(model, tokenizer, steps, seed, learning_rate=1e-3, make=_Words)


class _Decisions(ConversationMaker):
    """Draws questions that one token answers."""

    negations = 0.0
    two_images_share = 0.4

    def draw(self) -> Conversation:
        """A yes/no question about one image, or a question about which of two images fits a caption."""
        image = self.rng.randrange(len(self.colors))
        if self.rng.random() < self.two_images_share:
            pair = [image, self.different_image(image)]
            self.rng.shuffle(pair)
            return self.two_images(pair)[0]
        look = (self.colors[image], self.shapes[image])
        question, answer = language.make_question("yes_no", *look, self.rng, self.negations)
        reply = language.plain_answer(question, answer, self.rng)
        return Conversation([("user", IMAGE + question), ("assistant", reply)], [image])


def train_decisions(model: Any, tokenizer: Any, steps: int, seed: int, batch: int = 96, rate: float = 1e-3) -> float:
    """Teach the language model to decide; returns the share of right decisions in the last 50 steps."""
    rng = random.Random(seed + 2)
    images = Images.draw(model.model.visual, 4000, rng)
    maker = _Decisions(images.colors, images.shapes, rng)
    deciding = torch.tensor([tokenizer.encode(text)[0] for text in ("Yes", "No", " 1", " 2")])
    text_model, head = model.model.language_model, model.lm_head
    parameters = [*text_model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.98), weight_decay=0.01)
    rates = schedule(optimizer, steps, warmup=30)
    right: list[float] = []
    text_model.train()
    for step, (ids, labels, used) in zip(range(steps), batches(maker, tokenizer, batch), strict=False):
        if step >= PLAIN_SHARE * steps:  # then the harder ones: negations, and mostly two images
            maker.negations, maker.two_images_share = 0.5, 0.7
        hidden = see(model, images, ids, used)
        wanted = labels[:, 1:]
        first = torch.isin(wanted, deciding) & (wanted != IGNORED)
        first &= first.cumsum(1) == 1  # a verdict names the other image too
        logits = head(hidden[:, :-1][first].float())[:, deciding]
        truth = (wanted[first][:, None] == deciding).long().argmax(1)
        loss = nn.functional.cross_entropy(logits, truth)
        descend(loss, parameters, optimizer, rates)
        right.append(float((logits.argmax(1) == truth).float().mean()))
        if step % 50 == 49:
            print(f"decisions {step + 1}/{steps} right {sum(right[-50:]) / 50:.3f}", flush=True)
    return sum(right[-50:]) / max(1, len(right[-50:]))
