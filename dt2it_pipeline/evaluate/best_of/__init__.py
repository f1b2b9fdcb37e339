"""Best-of-N: the best of several answers by a reward model, and what choosing among n of them is worth."""
