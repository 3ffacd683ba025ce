"""The PyTorch side of the benchmark: plain programs in processes of their own, which never import jax."""
