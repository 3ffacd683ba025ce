"""The one loop, its losses, optimisers and checkpoints."""
