"""One, two and four devices and two processes make the same updates, to rounding (see `device_runs.py`)."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parent


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """The folder with every run's results; all are made in three processes, once a session."""
    folder = tmp_path_factory.mktemp("devices")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    paths = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "NPROC": "16", "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # the programs run for a moment only
    arguments = [[], [address, "0"], [address, "1"]]
    command = [sys.executable, TESTS / "device_runs.py", folder]
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


def assert_equal(runs, one: str, other: str, atol: float):
    with np.load(runs / f"{one}.npz") as a, np.load(runs / f"{other}.npz") as b:
        assert a.files == b.files and len(a.files) > 5
        for name in a.files:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_allclose(a[name], b[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("devices", [2, 4])
def test_float32_agrees_after_20_steps(runs, devices):
    assert_equal(runs, "float32_1", f"float32_{devices}", atol=1e-6)


@pytest.mark.parametrize("devices", [2, 4])
def test_float64_agrees_after_500_steps(runs, devices):
    assert_equal(runs, "float64_1", f"float64_{devices}", atol=1e-8)
    with np.load(runs / "float64_1.npz") as learned:
        assert learned["['codes']"].dtype == np.float64


@pytest.mark.parametrize("devices", [2, 4])
def test_fewer_shapes_than_devices_agree(runs, devices):
    """Three shapes: lanes that stay empty fill the devices."""
    assert_equal(runs, "few_1", f"few_{devices}", atol=1e-6)


def test_two_processes_agree_and_go_on_from_their_checkpoint(runs):
    assert_equal(runs, "float32_1", "processes", atol=1e-6)
