"""Verbs of `python -m jonet`, a file each or a group: `declare(verb)` says their options, functions do them."""
