"""Runs: what a run folder holds, and which of it is done."""
