"""The PyTorch side: processes (peers) with a tuned and with the default memory allocator."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from jonet import resources

ROOT = Path(__file__).resolve().parents[2]
# Freed memory is kept, in huge pages: 1.5 to 3 times faster with large activations.
TUNED = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000:"
    "glibc.malloc.top_pad=1000000000"
)


class Peer:
    """A process that runs one program at a time; see `peer.__main__`.

    It is stopped between requests, since OpenMP threads keep spinning after their work and would slow down jonet.
    """

    def __init__(self, tuned: bool):
        environment = {**os.environ, "BENCH_THREADS": str(resources.cores())}
        environment.pop("GLIBC_TUNABLES", None)  # as set for this process
        if tuned:
            environment["GLIBC_TUNABLES"] = TUNED
        command = [sys.executable, "-m", "experiments.bench.peer"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        self._pause(True)

    def start(self, program: str, arguments: dict) -> dict:
        """Creates a program and returns its answer, with "setting"."""
        return self._ask({"start": program, "with": arguments})

    def run(self, **arguments) -> dict:
        """Runs the program once and returns its answer, with "seconds"."""
        return self._ask({"run": arguments})

    def _ask(self, request: dict) -> dict:
        self._pause(False)
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        self._pause(True)
        if not answer:
            raise RuntimeError(f"the PyTorch program ended at {str(request)[:200]} …; its error message is above")
        return json.loads(answer)

    def _pause(self, pause: bool) -> None:
        if hasattr(signal, "SIGSTOP") and self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP if pause else signal.SIGCONT)

    def close(self) -> None:
        self._pause(False)
        self.process.stdin.close()
        self.process.wait()


def available() -> bool:
    """Whether PyTorch is installed."""
    return find_spec("torch") is not None


def both() -> dict[str, Peer]:
    """The peers by name: `theirs`, with the tuned allocator on glibc, and `theirs_default`; {} without PyTorch."""
    if not available():
        return {}
    if platform.libc_ver()[0] != "glibc":
        return {"theirs": Peer(tuned=False)}
    return {"theirs": Peer(tuned=True), "theirs_default": Peer(tuned=False)}
