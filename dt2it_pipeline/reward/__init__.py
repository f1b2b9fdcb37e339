"""The reward model: architecture, shared-prefix batches, loss, training entry point, scoring.

What belongs here: everything that turns preference pairs into a checkpoint and a checkpoint into scores. What does not:
how a child process is started (engines/) and who asks for it (orchestrate/).
"""
