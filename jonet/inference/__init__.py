"""Use of trained networks: codes of new shapes, surfaces, exported functions."""
