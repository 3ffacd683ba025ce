"""Folders of shapes in the layouts of other programs: recognized, read and written.  No jax."""
