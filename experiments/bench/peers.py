"""Peers: PyTorch programs in processes of their own, one with a tuned allocator and one as it comes."""

from __future__ import annotations

import json
import os
import platform
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
    """One process, which runs one program at a time; see `peer.__main__`."""

    def __init__(self, tuned: bool):
        environment = {**os.environ, "BENCH_THREADS": str(machine.threads())}
        environment.pop("GLIBC_TUNABLES", None)  # of ours, if it was given
        if tuned:
            environment["GLIBC_TUNABLES"] = TUNED
        command = [sys.executable, "-m", "experiments.bench.peer"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    def start(self, program: str, arguments: dict) -> dict:
        return self._ask({"start": program, "with": arguments})

    def run(self, **arguments) -> dict:
        return self._ask({"run": arguments})

    def _ask(self, request: dict) -> dict:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the PyTorch program ended at {str(request)[:200]} …; what it said stands above")
        return json.loads(answer)

    def close(self) -> None:
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
