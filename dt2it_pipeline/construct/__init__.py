"""Part 1: sample candidate responses, judge them, form pairs, balance and rewrite style."""
