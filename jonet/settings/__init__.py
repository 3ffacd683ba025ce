"""Settings for the use of trained networks: plain dataclasses that the command line reads without importing jax."""
