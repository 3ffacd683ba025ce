"""Imports networks of the published DeepSDF and Occupancy Networks programs, without executing code in their files."""
