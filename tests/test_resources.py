"""Cores and memory of the host, with the files of cgroups in a fake root folder."""

import os
import re
import threading
import types

import pytest
from paths import ROOT

from jonet import resources

GB = 1 << 30


def root(folder, cgroup: str, files: dict):
    """A root folder with this /proc/self/cgroup, and files below /sys/fs/cgroup."""
    for name, text in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{name}": files[name] for name in files}}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of 64 GB and 16 cores."""
    monkeypatch.setattr(resources, "_machine_memory", lambda: 64 * GB)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)


@pytest.mark.parametrize(
    "cgroup, files, memory, cores",
    [
        ("0::/", {"memory.max": "max", "cpu.max": "max 100000"}, 64, 16),
        ("0::/", {"memory.max": 2 * GB, "cpu.max": "150000 100000"}, 2, 2),
        ("0::/job/step", {"job/memory.max": 3 * GB, "job/step/memory.max": "max", "job/cpu.max": "50000 100000"}, 3, 1),
        ("0::/job", {"job/memory.max": "max", "job/memory.high": 5 * GB}, 5, 16),
        ("0::/../other", {"memory.max": 6 * GB}, 6, 16),
        ("0::/", {"memory.max": 900 * GB, "cpu.max": "9900000 100000"}, 64, 16),
        (
            "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n0::/",
            {
                "memory/memory.limit_in_bytes": 4 * GB,  # as mounted into a container
                "cpu/docker/1/cpu.cfs_quota_us": 300_000,
                "cpu/docker/1/cpu.cfs_period_us": 100_000,
            },
            4,
            3,
        ),
        (
            "5:memory:/\n4:cpu,cpuacct:/",
            {
                "memory/memory.limit_in_bytes": 9223372036854771712,
                "cpu/cpu.cfs_quota_us": -1,
                "cpu/cpu.cfs_period_us": 100_000,
            },
            64,
            16,
        ),
    ],
)
def test_limits_of_cgroups_count(tmp_path, cgroup, files, memory, cores):
    there = root(tmp_path, cgroup, files)
    assert resources.memory(there) == memory * GB and resources.cores(there) == cores


def test_cores_are_those_that_the_process_is_bound_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    assert resources.cores(tmp_path) == 3


def test_systems_without_cgroups_and_affinity(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert resources.cores(tmp_path) == 1 and resources.memory(tmp_path) == 64 * GB


def test_the_memory_of_a_windows_machine_is_known(monkeypatch):
    monkeypatch.undo()

    def status(numbers):
        assert numbers[0] == 64  # the size of MEMORYSTATUSEX
        numbers[1] = 8 * GB

    monkeypatch.setattr(resources.sys, "platform", "win32")
    monkeypatch.delattr(os, "sysconf", raising=False)
    windll = types.SimpleNamespace(kernel32=types.SimpleNamespace(GlobalMemoryStatusEx=status))
    monkeypatch.setattr(resources.ctypes, "windll", windll, raising=False)
    assert resources._machine_memory() == 8 * GB


def test_this_machine_has_memory_and_cores(monkeypatch):
    monkeypatch.undo()
    assert resources.memory() > 1 << 28 and 1 <= resources.cores() <= os.cpu_count()


def test_only_this_module_asks_the_system_for_cores_and_memory():
    asking = re.compile(r"SC_PHYS_PAGES|SC_PAGE_SIZE|cpu_count|sched_getaffinity")
    files = [path for folder in ("jonet", "experiments") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in files if asking.search(path.read_text())] == ["resources.py"]


@pytest.mark.parametrize("cores", [1, 3])
def test_work_in_threads_keeps_its_order_and_its_errors(monkeypatch, cores):
    monkeypatch.setattr(resources, "cores", lambda: cores)
    threads = set()

    def divide(a, b):
        threads.add(threading.get_ident())
        return a / b

    assert resources.in_threads(divide, [6, 8, 9], [2, 4, 3]) == [3, 2, 3]
    assert (threading.get_ident() in threads) == (cores == 1)
    assert resources.in_threads(divide, [], []) == []
    with pytest.raises(ZeroDivisionError):
        resources.in_threads(divide, [1, 1], [1, 0])
    with pytest.raises(ValueError, match="argument"):
        resources.in_threads(divide, [1, 1], [1])
