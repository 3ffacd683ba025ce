"""The other side: plain PyTorch programs, each in a process of its own that never imports jax."""
