"""Part 2: text-to-image preferences become two-image questions with short textual answers."""
