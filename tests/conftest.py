"""Shared by all tests: the set-up of JAX, paths of larger data, and counting of compilations."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

os.environ.setdefault("NPROC", "16")  # several fake devices on few cores hang without (see device_runs.py)

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from paths import ROOT, SUPPORT  # noqa: E402

# The same examples at every run: a failure is of the change at hand.  `--hypothesis-profile=default` draws others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_unconfigure():
    """Silences warnings about arrays that Orbax leaves half-read in damaged checkpoints."""
    warnings.filterwarnings("ignore", category=pytest.PytestUnraisableExceptionWarning)


@pytest.fixture
def data():
    """The folder of larger data that `JONET_DATA` names; tests that need it are skipped without."""
    folder = os.environ.get("JONET_DATA")
    if not folder:
        pytest.skip("needs the larger data: set JONET_DATA to their folder")
    return Path(folder)


@pytest.fixture(scope="module", autouse=True)
def optimization(request):
    """Files marked `unoptimized` look at what runs do and leave, not at how fast: XLA compiles them twice as fast."""
    if request.node.get_closest_marker("unoptimized") is None:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # for processes that these tests start
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def programs():
    """Each file leaves no compiled programs behind: a process may map 65,530 regions of memory, which 20,000 fill."""
    yield
    jax.clear_caches()


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


@pytest.fixture(scope="session")
def device_runs(tmp_path_factory):
    """The folder with the results of `device_runs.py`; all are made in three processes, once a session."""
    folder = tmp_path_factory.mktemp("devices")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "NPROC": "16", "JAX_PLATFORMS": "cpu"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # the programs run for a moment only
    arguments = [[], [address, "0"], [address, "1"]]
    command = [sys.executable, SUPPORT / "device_runs.py", folder]
    processes = [
        subprocess.Popen([*command, *more], env=environment, stderr=subprocess.PIPE, text=True) for more in arguments
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=500)
            assert process.returncode == 0, errors[-5000:]
    finally:
        for process in processes:
            process.kill()
    return folder
