"""Checkpoints for others: the model card, and publishing on the Hugging Face Hub."""
