"""One file a task: its config, presets, loss and validation."""
