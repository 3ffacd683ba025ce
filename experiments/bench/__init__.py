"""The benchmark: jonet against plain PyTorch implementations of the published networks and training loops."""
