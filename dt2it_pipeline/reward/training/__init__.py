"""Training: the job, the loop, checkpoints to resume from, schedule, validation, curves."""
