"""Version of the package; reports print it."""

__version__ = "0.2.0"
