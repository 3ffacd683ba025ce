"""Peers: PyTorch programs in processes of their own, one with a tuned allocator and one as it comes."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from experiments.bench import machine

ROOT = Path(__file__).resolve().parents[2]
# freed memory stays with the process, in huge pages: 1.5 to 3 times faster on large activations
TUNED = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000:"
    "glibc.malloc.top_pad=1000000000"
)


class Peer:
    """One process, which runs one program at a time; see `peer.__main__`.

    It is stopped while it is not asked: threads of OpenMP go on spinning after their work and would slow the others.
    """

    def __init__(self, tuned: bool):
        environment = {**os.environ, "BENCH_THREADS": str(machine.threads())}
        environment.pop("GLIBC_TUNABLES", None)  # of ours, if it was given
        if tuned:
            environment["GLIBC_TUNABLES"] = TUNED
        command = [sys.executable, "-m", "experiments.bench.peer"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        self._pause(True)

    def start(self, program: str, arguments: dict) -> dict:
        return self._ask({"start": program, "with": arguments})

    def run(self, **arguments) -> dict:
        return self._ask({"run": arguments})

    def _ask(self, request: dict) -> dict:
        self._pause(False)
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        self._pause(True)
        if not answer:
            raise RuntimeError(f"the PyTorch program ended at {str(request)[:200]} …; what it said stands above")
        return json.loads(answer)

    def _pause(self, pause: bool) -> None:
        if hasattr(signal, "SIGSTOP") and self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP if pause else signal.SIGCONT)

    def close(self) -> None:
        self._pause(False)
        self.process.stdin.close()
        self.process.wait()


def available() -> bool:
    """Whether there is a PyTorch to compare with."""
    return find_spec("torch") is not None


def both() -> dict[str, Peer]:
    """The peers by name: `theirs`, tuned where the C library can be, and `theirs_default`."""
    if not available():
        return {}
    if platform.libc_ver()[0] != "glibc":
        return {"theirs": Peer(tuned=False)}
    return {"theirs": Peer(tuned=True), "theirs_default": Peer(tuned=False)}
