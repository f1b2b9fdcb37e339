"""How far two computations of the same number may lie apart: the one home of numerical tolerances of these tests.

Nothing here is measured on some machine. Processors differ in the order in which they add, in what they fuse and in
what they keep in wider registers, so that every rounding may fall out differently; a tolerance therefore follows from
the number of roundings alone.

A type with p bits of significand rounds to nearest with a relative error of at most its unit roundoff u = 2^-p:
2^-8 for bfloat16, 2^-24 for float32, 2^-53 for float64. Of n roundings one behind the other, the worst case adds up to
n u; as their signs are as good as independent, they add up to more than z sqrt(n) u only with a probability of
2 exp(-z^2 / 2) (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 41-5,
2019, theorem 2.4). z = 5 makes that 7e-6. Two computations, each with its own n roundings, differ like one with 2 n.

Relative means: relative to the size of the terms that are added, not to their sum, which may cancel. Whoever compares
says what that size is (`score_tolerance`, `largest`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from dt2it_pipeline.reward import RewardModel

BFLOAT16, FLOAT32, FLOAT64 = 2.0**-8, 2.0**-24, 2.0**-53  # unit roundoffs
_DEVIATIONS = 5.0  # z


def float64_tolerance(operations: int) -> float:
    """Relative difference of two results of `operations` roundings each in float64."""
    return _DEVIATIONS * math.sqrt(2 * operations) * FLOAT64


def float32_tolerance(operations: int) -> float:
    """Relative difference of two results of `operations` roundings each in float32."""
    return _DEVIATIONS * math.sqrt(2 * operations) * FLOAT32


def bfloat16_tolerance(operations: int) -> float:
    """Relative difference between a result of `operations` roundings in bfloat16 and the same in float32.

    Only one side counts: float32 rounds 2^16 times finer.
    """
    return _DEVIATIONS * math.sqrt(operations) * BFLOAT16


def bfloat16_norm_tolerance(operations: int) -> float:
    """As `bfloat16_tolerance`, of the norm of a vector with thousands of entries.

    The error's norm is the root mean square over the entries, which is that of a rounding (u / sqrt 3 at most, as it is
    uniform in [-u, u]) times the root of their number; only a single entry among thousands may lie further out.
    """
    return math.sqrt(operations / 3) * BFLOAT16


def model_operations(config: Any, tokens: int) -> int:
    """Roundings between the input of a Qwen-VL backbone and its last hidden state, on the longest path.

    A sum of k products rounds k times. A layer of width d, with heads of width h, an MLP of width m and n tokens: two
    norms (d each), the projection to queries and keys (d), their norm (h), rotation (3), products of queries and keys
    (h), softmax (n + 3), sum of values (n), output projection (d), MLP in (d), activation (4), MLP out (m), two
    residual sums. A image's features pass the layers of the vision encoder before those of the language model.

    Args:
        config: of the backbone, with `text_config` and `vision_config`.
        tokens: of the longest sequence, image patches included.
    """
    text, vision = config.text_config, config.vision_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    language = text.num_hidden_layers * _layer(text.hidden_size, head, text.intermediate_size, tokens)
    encoder = vision.depth * _layer(
        vision.hidden_size, vision.hidden_size // vision.num_heads, vision.intermediate_size, tokens
    )
    return int(language + encoder + text.hidden_size)


def _layer(width: int, head: int, mlp: int, tokens: int) -> int:
    return 5 * width + 2 * head + mlp + 2 * tokens + 12


def stored_operations(config: Any) -> int:
    """As `model_operations`, where sums are kept in float32 and only what a layer stores is rounded, as in bfloat16.

    A layer stores: norm (2), query (1), its norm (2), rotation (3), probabilities (1), values (1), output (1), residual
    (1), norm (2), MLP in (1), activation (2), MLP out (1), residual (1), which is 19.
    """
    return 19 * int(config.text_config.num_hidden_layers + config.vision_config.depth)


def score_tolerance(model: RewardModel, tokens: int) -> float:
    """Difference of two float32 scores of the same response, absolute.

    A score is the product of the head with a hidden state that a norm has brought to a root mean square of one, times
    the norm's weight; errors of its entries are independent, so that the size of the terms is the norm of both weights.
    """
    head = model.head.weight.detach().float() * model.model.language_model.norm.weight.detach().float()
    return float32_tolerance(model_operations(model.config, tokens) + head.numel()) * float(head.norm())


def logit_tolerance(model: Any, tokens: int) -> float:
    """Difference of two float32 logits of the same token, absolute; for the likelihood of a token, see below.

    As `score_tolerance`, with the row of the language-model head that is largest. The logarithm of a probability is a
    logit less the logarithm of a sum of exponentials, which moves by no more than its largest logit: twice as much.

    Args:
        model: of transformers, with `lm_head`.
        tokens: of the longest sequence, image patches included.
    """
    head = model.lm_head.weight.detach().float() * model.model.language_model.norm.weight.detach().float()
    operations = model_operations(model.config, tokens) + head.shape[1]
    return float32_tolerance(operations) * float(head.norm(dim=1).max())


def log_likelihood_tolerance(model: Any, tokens: int, answer: int) -> float:
    """Difference of two float32 log-likelihoods of an answer of `answer` tokens, absolute (nats)."""
    return 2 * answer * logit_tolerance(model, tokens)


def gradient_tolerance(model: RewardModel, tokens: int, gradients: Iterable[torch.Tensor]) -> float:
    """Difference of two float32 gradients of the same weight, absolute and for every entry of every weight.

    Behind the way forward lies the way back, twice as long (products with weights and with activations), and the sum
    over tokens. The size of the terms is that of the largest gradient: a weight's own may cancel to nothing, as that of
    a bias of keys does.
    """
    operations = 3 * model_operations(model.config, tokens) + tokens
    return float32_tolerance(operations) * max(float(gradient.abs().max()) for gradient in gradients)
