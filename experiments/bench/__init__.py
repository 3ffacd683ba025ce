"""The bench: jonet beside plain PyTorch programs of the published networks and loops, row by row."""
