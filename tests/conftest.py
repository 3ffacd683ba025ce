"""What all tests share: a safe set-up of JAX, larger data where they are, and counted compilations."""

import contextlib
import logging
import os
from pathlib import Path

os.environ.setdefault("NPROC", "16")  # several fake devices on few cores hang without (see tests/device_runs.py)

import jax  # noqa: E402
import pytest  # noqa: E402

RECORDED = Path(__file__).parent / "recorded"


@pytest.fixture
def data():
    """The folder of larger data that `JONET_DATA` names; tests that need it are skipped without."""
    folder = os.environ.get("JONET_DATA")
    if not folder:
        pytest.skip("needs the larger data: set JONET_DATA to their folder")
    return Path(folder)


@pytest.fixture
def compilations():
    """`with compilations() as seen:` collects the names of the programs that JAX compiles meanwhile."""

    class Compiled(logging.Handler):
        def emit(self, record):
            words = record.getMessage().split(" with global shapes")[0]
            if words.startswith("Compiling "):
                self.seen.append(words.removeprefix("Compiling "))

    @contextlib.contextmanager
    def collect():
        handler, logger = Compiled(), logging.getLogger("jax")
        handler.seen = []
        logger.addHandler(handler)
        try:
            with jax.log_compiles():
                yield handler.seen
        finally:
            logger.removeHandler(handler)

    return collect
