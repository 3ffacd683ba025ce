"""What one call of a compiled program does, counted in its text: matrix operations, bytes, collectives, moved data."""

from __future__ import annotations

import math
import re
from collections import Counter

from experiments.accelerators.hlo import Array, Instruction, Module, Passes, arrays

# Instructions that run nothing, or whose parts are counted instead of them.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "partition-id"),
    *("replica-id", "while", "call", "conditional", "async-start", "async-update", "async-done", "iota"),
    *("copy-done", "all-reduce-done", "all-gather-done", "collective-permute-done", "slice-done", "send-done"),
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
MOVES = ("copy", "transpose")  # not copy-start, by which a TPU reads ahead
# cuDNN's convolutions: which of the arrays are input, kernel and output; -1 is the result
CONVOLUTIONS = {
    "__cudnn$convForward": (0, 1, -1),
    "__cudnn$convBiasActivationForward": (0, 1, -1),
    "__cudnn$convBackwardInput": (-1, 1, 0),
    "__cudnn$convBackwardFilter": (0, -1, 1),
}


def matrix_operations(module: Module, passes: Passes = ()) -> Counter[str]:
    """Operations (two for a product and its sum) of matrix products and convolutions, by the type of their operands."""
    found: Counter[str] = Counter()
    for times, top, computation in module.executed(passes):
        for dtype, count in operations_of(module, top, computation).items():
            found[dtype] += times * count
    return found


def operations_of(module: Module, top: Instruction, computation: dict[str, Instruction]) -> Counter[str]:
    """As `matrix_operations`, of one instruction."""
    found: Counter[str] = Counter()
    for each, around in [(top, computation), *module.inside(top)]:
        of = [around[name].arrays for name in each.operands if name in around]
        if each.opcode == "dot" or "__cublas" in each.attributes:
            found[of[0][0].dtype] += product(each.arrays[0], of[0][0], contracted(each.attributes))
        elif each.opcode == "convolution":
            found[of[0][0].dtype] += convolution(of[0][0], of[1][0], each.arrays[0], each.attributes)
        elif target := re.search(r'custom_call_target="(__cudnn\$conv\w+)"', each.attributes):
            data, kernel, out = (each.arrays[0] if i < 0 else of[i][0] for i in CONVOLUTIONS[target[1]])
            found[data.dtype] += convolution(data, kernel, out, each.attributes)
    return found


def contracted(attributes: str) -> list[int]:
    """The axes of a product's first operand that are summed over."""
    plain = re.search(r"\blhs_contracting_dims=\{([\d,]*)\}", attributes)
    library = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', attributes)
    return [int(axis) for axis in re.findall(r"\d+", (plain or library or [""])[0])]


def product(out: Array, first: Array, axes: list[int]) -> int:
    """Operations of a matrix product."""
    return 2 * math.prod(out.shape) * math.prod(first.shape[axis] for axis in axes)


def convolution(data: Array, kernel: Array, out: Array, attributes: str) -> int:
    """Operations of a convolution; places of the kernel that are in padding or between dilated elements do not count.

    (TPUs write batched matrix products as convolutions of which nearly all places are.)
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    assert labels, attributes
    at_data, at_kernel, at_out = labels.groups()
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", attributes) or ["", ""])[1]))
    spatial = sorted(label for label in at_out if label.isdigit())

    def each(name: str, default: str) -> list[str]:
        return window[name].split("x") if name in window else [default] * len(spatial)

    settings = zip(*(each(*entry) for entry in DEFAULTS.items()), strict=True)
    total = 2 * math.prod(out.shape[at_out.index(label)] for label in "bf") * kernel.shape[at_kernel.index("i")]
    for label, (stride, pad, of_data, of_kernel) in zip(spatial, settings, strict=True):
        width = (data.shape[at_data.index(label)] - 1) * int(of_data) + 1
        places = [
            i * int(stride) + k * int(of_kernel) - int(pad.split("_")[0])
            for i in range(out.shape[at_out.index(label)])
            for k in range(kernel.shape[at_kernel.index(label)])
        ]
        total *= sum(0 <= place < width and place % int(of_data) == 0 for place in places)
    return total


DEFAULTS = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}


def moved_bytes(module: Module, top: Instruction, computation: dict[str, Instruction]) -> int:
    """Bytes that an instruction reads and writes in the device's memory; of what it only slices, the slices."""
    if top.opcode in FREE:
        return 0
    sliced = slices(module, top)
    operands = [computation[name] for name in top.operands if name in computation]
    read = sum(min(size(each.type), sliced.get(i, math.inf)) for i, each in enumerate(operands))
    written = size(re.sub(r", s8\[\d+\]\{0\}\)$", ")", top.type))  # without a product's workspace
    if any(each.opcode == "dynamic-update-slice" for each in parts(module, top)):  # in place
        written = min([written, *sliced.values()])
    return int(read + written)


def slices(module: Module, top: Instruction) -> dict[int, int]:
    """Of an instruction's operands that it takes slices of, or writes a slice into: the slices' bytes, by number."""
    found: Counter[int] = Counter()
    for each, around in module.inside(top) or [(top, {})]:
        first = around.get(each.operands[0]) if each.operands else None
        if first is None or first.opcode != "parameter":
            continue
        if each.opcode in ("dynamic-slice", "gather", "slice"):
            found[int(first.arguments)] += size(each.type)
        if each.opcode == "dynamic-update-slice" and (update := around.get(each.operands[1])):
            found[int(first.arguments)] += size(update.type)
    return dict(found)


def parts(module: Module, top: Instruction) -> list[Instruction]:
    """An instruction and, of a fusion, those within."""
    return [top, *(inner for inner, _ in module.inside(top))]


def size(type_: str) -> int:
    """Bytes of a type in the device's memory."""
    return sum(array.bytes for array in arrays(type_))


def bytes_of(module: Module, passes: Passes = ()) -> int:
    """Bytes that one call reads and writes in the device's memory."""
    return sum(times * moved_bytes(module, top, around) for times, top, around in module.executed(passes))


def kernels(module: Module, passes: Passes = ()) -> int:
    """Instructions that one call executes: on a GPU the kernels (or library calls) that it launches."""
    return sum(times for times, top, _ in module.executed(passes) if top.opcode not in FREE)


def single_items(module: Module, passes: Passes = ()) -> int:
    """Items that gathers read, scatters write and sorts order: a TPU's compiler estimates no time for these."""
    total = 0
    for times, top, computation in module.executed(passes):
        for each, around in [(top, computation), *module.inside(top)]:
            if each.opcode == "gather":
                sizes = re.search(r"slice_sizes=\{([\d,]*)\}", each.attributes)
                total += times * math.prod(each.arrays[0].shape) // math.prod(numbers(sizes))
            elif each.opcode == "scatter":
                axis = re.search(r"index_vector_dim=(\d+)", each.attributes)
                total += times * math.prod(around[each.operands[1]].arrays[0].shape[: numbers(axis)[0]])
            elif each.opcode == "sort":
                total += times * math.prod(each.arrays[0].shape)
    return total


def numbers(found: re.Match[str] | None) -> list[int]:
    """The whole numbers in the first group of a match."""
    return [int(number) for number in re.findall(r"\d+", found[1])] if found else []


def collectives(module: Module, passes: Passes = ()) -> dict[str, tuple[int, int]]:
    """Collectives of one call by kind: how many, and the bytes of their results, which may be on the chip."""
    found: dict[str, tuple[int, int]] = {}
    for times, top, _ in module.executed(passes):
        for each in parts(module, top):
            kind = each.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                count, total = found.get(kind, (0, 0))
                found[kind] = count + times, total + times * sum(array.size for array in each.arrays)
    return found


def largest_moves(module: Module, passes: Passes = (), most: int = 3, least: int = 1 << 20) -> list[dict]:
    """The copies and transposes that move most bytes a call, with the operation of JAX that each comes from."""
    found = []
    for times, top, around in module.executed(passes):
        copying = [each for each in parts(module, top) if each.opcode in MOVES]
        total = times * moved_bytes(module, top, around) if copying else 0
        if total >= least:
            source = next((each.source for each in [*copying, top] if each.source), "")
            found.append({"bytes": total, "type": top.type, "source": source})
    return sorted(found, key=lambda move: -move["bytes"])[:most]
