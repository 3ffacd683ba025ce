"""Targets: one or more chips that programs are compiled for, or the devices of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from experiments.accelerators import packages
from jonet import parallel
from jonet.chips import CHIPS, Chip
from jonet.errors import ConfigError

HERE = "here"
TPUS = {"v5e-1": "v5e:2x2", "v5e-4": "v5e:2x2", "v5e-16": "v5e:4x4", "v6e-1": "v6e:2x2", "v6e-4": "v6e:2x2"}
GPUS = ("h100-1", "h100-2", "h100-8", "h200-1", "h200-8")
NAMES = (*TPUS, *GPUS, HERE)
USUAL = ("v5e-1", "v5e-4", "v6e-1", "h100-1", "h100-2", "h200-1")  # compiled for by default
PREALLOCATED = 0.75  # of a GPU's memory is what JAX takes by default
KNOWN = {"h100": "h100", "h200": "h200", "a100": "a100", "v5 lite": "v5e", "v5e": "v5e", "v6 lite": "v6e", "v6e": "v6e"}


@dataclasses.dataclass(frozen=True)
class Target:
    """Chips of one kind.  chip: None for the processor of this machine.  count: of chips.  here: whether they are."""

    name: str
    chip: Chip | None
    count: int
    here: bool = False

    @property
    def memory(self) -> int:
        """Bytes that JAX may use on each chip."""
        if self.chip is None:
            return parallel.memory()
        return int(self.chip.memory * (PREALLOCATED if self.chip.kind == "gpu" else 1))

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Within this context programs are those of this target."""
        if self.here or self.chip is None:
            yield
            return
        with parallel.absent(self._devices(), parallel.Platform(self.chip.kind, self.memory)):
            yield

    def _devices(self) -> Sequence[Any]:
        if self.name in TPUS:
            return topologies.get_topology_desc(TPUS[self.name], "tpu").devices[: self.count]
        description = Path(__file__).with_name(f"{self.name.partition('-')[0]}.txtpb").read_text("utf-8")
        return topologies.get_topology_desc(
            platform="cuda", target_config=description, topology=f"1x1x{self.count}"
        ).devices


def target(name: str) -> Target:
    """The target of this name; ConfigError if there is none, or if its compiler is not installed."""
    if name == HERE:
        kind = jax.devices()[0].device_kind.lower()
        chip = next((CHIPS[chip] for part, chip in KNOWN.items() if part in kind), None)
        return Target(HERE, chip, parallel.count(), here=True)
    if name not in NAMES:
        raise ConfigError(f"--target is {name!r}, but there are {', '.join(NAMES)}")
    chip, _, count = name.partition("-")
    if absent := packages.missing(CHIPS[chip].kind):
        raise ConfigError(absent)
    return Target(name, CHIPS[chip], int(count))
