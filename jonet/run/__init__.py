"""Runs: the stages from shapes to a trained network, meshes, scores and a report, in one folder that can be resumed."""
