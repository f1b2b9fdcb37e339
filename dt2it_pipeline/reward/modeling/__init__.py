"""The model: families, backbone and head, attention, loss, LoRA, files of a checkpoint, its card."""
