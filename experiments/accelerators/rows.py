"""Rows of the report: what the compiler and the counters say of one program on one target, and what was measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from experiments.accelerators import counting, gpu_traffic, tpu_cycles
from experiments.accelerators.hlo import Module
from experiments.accelerators.programs import Call
from experiments.accelerators.targets import Target
from jonet.errors import JonetError, out_of_device_memory
from jonet.storage import atomic

WITHOUT_MEASURING = {"xla_gpu_autotune_level": 0}  # there is no GPU to try kernels on
LARGE = 1 << 20  # bytes of a copy that is reported
SECONDS, LEAST, MOST = 1.0, 3, 20  # of measuring a program, and how many calls


def row(name: str, target: Target, call: Callable[[], Call], texts: Path | None = None) -> dict[str, Any]:
    """A row: the program compiled for the target and, if its devices are here, measured; or an `error`.

    Must be called in the target's `working` context.  texts: a folder for the compiled text.
    """
    found: dict[str, Any] = {"program": name, "target": target.name}
    try:
        given = call()
        with given.context():
            lowered = given.mapped.lower(*given.arguments)
        compiled = compile_for(target, lowered)
    except Exception as error:  # of jonet's checks or of any compiler: the row says which
        return found | {"mark": "M" if target.here else "C", "error": sentence(error)}
    if texts:
        atomic.write_text(texts / f"{name.replace('/', '_')}.{target.name}.txt", compiled.as_text())
    found |= {"precision": given.precision, **counted(target, given, compiled)}
    if target.here:
        found |= timed(target, given, compiled, found["operations"])
    return found


_compiled: dict[tuple[str, str], Any] = {}  # several tasks have the same training step


def compile_for(target: Target, lowered) -> Any:
    """The compiled program; one with the same text is compiled once."""
    key = target.name, lowered.as_text()
    if key not in _compiled:
        absent = target.chip is not None and target.chip.kind == "gpu" and not target.here
        _compiled[key] = lowered.compile(WITHOUT_MEASURING if absent else {})
    return _compiled[key]


def counted(target: Target, call: Call, compiled) -> dict[str, Any]:
    """What the text of a compiled program says of one repeat of a call (the mean of all), on one device."""
    module, memory = Module.parse(compiled.as_text()), compiled.memory_analysis()
    passes, chip, repeats = call.passes, target.chip, call.repeats
    operations = sum(counting.matrix_operations(module, passes).values()) / repeats
    collectives = counting.collectives(module, passes)
    moves = counting.largest_moves(module, passes, least=repeats * LARGE)
    found = {
        "mark": "C" if chip is not None and chip.kind == "tpu" else "B",
        "operations": operations,
        "bytes": counting.bytes_of(module, passes) / repeats,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "collectives": {kind: count // repeats for kind, (count, _) in collectives.items()},
        "collective_bytes": sum(total for _, total in collectives.values()) / repeats,
        "moves": [move | {"bytes": move["bytes"] // repeats} for move in moves],
        "kernels": None,  # but on GPUs
        "single_items": counting.single_items(module, passes) // repeats,
    }
    if chip is not None and chip.kind == "tpu":
        seconds = tpu_cycles.seconds(module, chip, passes)
        found |= speed(target, call, seconds / repeats, operations)
    elif chip is not None:
        found["kernels"] = round(counting.kernels(module, passes) / repeats)
        seconds = gpu_traffic.seconds(module, chip, call.precision, passes)
        found |= speed(target, call, seconds / repeats, operations)
    need = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    need += memory.output_size_in_bytes - memory.alias_size_in_bytes
    if need > target.memory:
        found["error"] = f"it needs {need / 1e9:.1f} GB, of {target.memory / 1e9:.1f} GB that JAX may use"
    return found


def speed(target: Target, call: Call, seconds: float, operations: int) -> dict[str, Any]:
    """Milliseconds of a repeat, the share of the chip's matrix rate, and how much is computed in a second."""
    best = None if target.chip is None else target.chip.rates["bfloat16"]
    return {
        "milliseconds": 1e3 * seconds,
        "share": None if best is None else operations / seconds / best,
        "rate": call.amount / seconds,
        "unit": call.unit,
    }


def timed(target: Target, call: Call, compiled, operations: int) -> dict[str, Any]:
    """The median time of a call after the first ones, on the devices of this machine."""
    arguments, seconds = call.arguments, []
    while len(seconds) < LEAST + 2 or (sum(seconds) < SECONDS and len(seconds) < MOST):
        begun = time.perf_counter()
        results = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - begun)
        arguments = call.again(arguments, results)
    return {"mark": "M", **speed(target, call, statistics.median(seconds[2:]) / call.repeats, operations)}


def sentence(error: Exception) -> str:
    """What an error says, as one sentence."""
    if isinstance(error, JonetError):
        return str(error)
    return out_of_device_memory(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
