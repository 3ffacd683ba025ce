"""The text of a compiled program (XLA's HLO): its instructions, and how often one call executes each.

Loops with a known number of passes are multiplied out.  Of the others (the steps of a dispatch, groups of shapes) the
text does not tell the number of passes; the caller gives it, see `executed`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\](\{[^{}]*\})?")
CALLED = re.compile(r"\b(?:calls|to_apply|called_computations|true_computation|false_computation)=\{?%?([\w.\-]+)")
CONTENT = re.compile(r"\bbranch_computations=\{([^}]*)\}")

Passes = Sequence[int] | Mapping[str, int]  # of loops, see `Module.executed`


@dataclasses.dataclass(frozen=True)
class Array:
    """An array type.  on_chip: in a memory of the chip itself (on TPUs VMEM), not in the device's main memory."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool = False

    @property
    def bytes(self) -> int:
        """Its size in the main memory, 0 for one that is on the chip."""
        return 0 if self.on_chip else self.size

    @property
    def size(self) -> int:
        """Its size in bytes, wherever it is."""
        if self.dtype == "token":
            return 0
        bits = 8 if self.dtype == "pred" else int(next(iter(re.findall(r"\d+", self.dtype))))
        return math.prod(self.shape) * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """name = type opcode(operands), attributes.  operands: names of instructions of the same computation."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str

    @property
    def arrays(self) -> list[Array]:
        """The arrays of its result."""
        return arrays(self.type)

    @property
    def called(self) -> list[str]:
        """The computations that it calls (fusions, calls, branches), without those of a loop."""
        branches = re.findall(r"[\w.\-]+", "".join(CONTENT.findall(self.attributes)))
        return [*CALLED.findall(self.attributes), *branches]

    @property
    def source(self) -> str:
        """The operation of JAX that it comes from, "" if it is not known."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


def arrays(type_: str) -> list[Array]:
    """The arrays of a type, of a tuple those of its elements."""
    return [
        Array(dtype, tuple(int(n) for n in shape.split(",") if n), "S(" in layout)
        for dtype, shape, layout in ARRAY.findall(type_)
    ]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.  computations: the instructions of each by name, in order; entry: the one that is called."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    @classmethod
    def parse(cls, text: str) -> Module:
        """From `jax.stages.Compiled.as_text()`."""
        computations: dict[str, dict[str, Instruction]] = {}
        entry, now = "", None
        for line in text.splitlines():
            if now is None and (head := HEAD.match(line)):
                now = computations[head[2]] = {}
                entry = head[2] if head[1] else entry
            elif line == "}":
                now = None
            elif now is not None and (found := LINE.match(line)):
                now[found[1]] = instruction(found[1], found[2])
        return cls(computations, entry)

    def executed(self, passes: Passes = ()) -> Iterator[tuple[int, Instruction, dict[str, Instruction]]]:
        """Every instruction that a call executes: how often, the instruction, and those of its computation by name.

        passes: of loops whose number of passes is not in the text: from the outermost inwards, 1 for those that are not
        given; or by the `jax.named_scope` that each is directly in, KeyError for those that are not given.  All
        branches of a conditional count.  Fusions are one instruction.
        """
        return self._executed(self.entry, 1, passes)

    def _executed(self, name: str, times: int, passes: Passes):
        computation = self.computations.get(name, {})
        for found in computation.values():
            yield times, found, computation
            if found.opcode == "while":
                trips, left = self.trips(found), passes
                if trips is None and isinstance(passes, Mapping):
                    trips = passes[found.source.split("/")[-2]]
                elif trips is None:
                    trips, left = (passes[0] if passes else 1), passes[1:]
                yield from self._executed(_named("body", found), times * trips, left)
            elif found.opcode in ("call", "conditional", "async-start"):
                for called in found.called:
                    yield from self._executed(called, times, passes)

    def trips(self, loop: Instruction) -> int | None:
        """How many passes a loop has; None if it depends on data."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations.get(_named("condition", loop), {}).values()
        tested = [part for top in condition for part in [top, *(inner for inner, _ in self.inside(top))]]
        ends = [int(each.arguments) for each in tested if each.opcode == "constant" and each.arguments.isdigit()]
        compared = [each for each in tested if each.opcode == "compare"]
        rising = len(ends) == len(compared) == 1 and "direction=LT" in compared[0].attributes
        return ends[0] if rising else None  # loops of JAX count from 0

    def inside(self, found: Instruction) -> list[tuple[Instruction, dict[str, Instruction]]]:
        """The instructions within a fusion and within fusions in it, with those of their computations by name."""
        if found.opcode != "fusion":
            return []
        around = self.computations[found.called[0]]
        return [part for first in around.values() for part in [(first, around), *self.inside(first)]]


def instruction(name: str, text: str) -> Instruction:
    """From the text behind `name =`."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    type_, rest = text[:end], text[end:].lstrip()
    start = rest.index("(")
    close = _closing(rest, start)
    arguments = rest[start + 1 : close]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(name, type_, rest[:start], operands, arguments, rest[close + 1 :])


def _closing(text: str, start: int) -> int:
    """The place of the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)


def _named(attribute: str, loop: Instruction) -> str:
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", loop.attributes)
    return found[1] if found else ""
