"""How few pairs are too few to learn from, and the words for it.

What belongs here: the bound and the sentence about it. What does not: who reports it.
"""

from __future__ import annotations

# Of 20, three quarters right are beyond chance (two-sided sign test, p = 0.04); of 16, they are not.
FEWEST_PAIRS = 20


def few_pairs(number: int, pairs: int) -> str:
    """A sentence where a round trains on too few pairs, else empty.

    Args:
        number: of the round.
        pairs: that it trains on.

    >>> few_pairs(0, 20)
    ''
    >>> few_pairs(0, 4)[:53]
    'Round 0 trains its reward model on 4 pairs: with fewe'
    """
    if pairs >= FEWEST_PAIRS:
        return ""
    return (
        f"Round {number} trains its reward model on {pairs} {'pair' if pairs == 1 else 'pairs'}: with fewer than "
        f"{FEWEST_PAIRS}, what it learns cannot be told from chance, so its scores and votes say little. Add prompts, "
        "responses or trusted pairs."
    )
