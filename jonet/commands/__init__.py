"""The verbs of `jonet`, one module per verb or group; their functions take the parsed options (`commands.options`)."""
