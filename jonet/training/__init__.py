"""The training loop with its batches, losses, optimizers and checkpoints."""
