"""The tasks, one file each: config, presets, training setup, model, and the texts of its report."""
