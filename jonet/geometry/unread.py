"""Kinds of files with shapes that jonet does not read, and what makes readable ones of them."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from jonet.storage.search import walk

BLENDER = "open in Blender and export PLY, OBJ or GLB"
MAKER = "export PLY, OBJ, STL or GLB from the program that made it"
CAD = "export STL or 3MF from the CAD program, or open in FreeCAD and export STL"
MESHLAB = "open in MeshLab and export PLY"
PARAVIEW = "open in ParaView and save as PLY or STL"
CLOUDCOMPARE = "open in CloudCompare and save as PLY or LAS"
SPLATS = "export plain PLY from the program that made it"
NUMPY = "load it in Python and write the points with numpy.save"
ADVICE = {
    **dict.fromkeys((".blend", ".fbx", ".dae", ".usd", ".usda", ".usdc", ".usdz", ".abc", ".x3d", ".wrl"), BLENDER),
    **dict.fromkeys((".max", ".3ds", ".ma", ".mb", ".c4d", ".lwo", ".ztl", ".skp", ".vrm"), MAKER),
    **dict.fromkeys((".step", ".stp", ".iges", ".igs", ".brep", ".x_t", ".sat", ".ifc", ".dxf", ".dwg", ".3dm"), CAD),
    **dict.fromkeys((".sldprt", ".sldasm", ".ipt", ".iam", ".catpart", ".f3d", ".fcstd", ".scad"), CAD),
    **dict.fromkeys((".amf", ".ctm"), MESHLAB),
    **dict.fromkeys((".vtk", ".vtp", ".vtu", ".msh"), PARAVIEW),
    **dict.fromkeys((".e57", ".fls", ".zfs", ".rcp", ".rcs", ".pod"), CLOUDCOMPARE),
    **dict.fromkeys((".splat", ".ksplat", ".spz"), SPLATS),
    **dict.fromkeys((".mat", ".h5", ".hdf5", ".pt", ".pkl", ".parquet"), NUMPY),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save as CSV"),
    **dict.fromkeys((".zip", ".gz", ".bz2", ".xz", ".7z", ".rar", ".tar", ".tgz"), "unpack"),
}


def described(kind: str, read: Iterable[str]) -> str:
    """What a file of a kind (".fbx") that is not among those that are read needs to become one of them."""
    if kind in ADVICE:
        return f"{kind} files are not read; {ADVICE[kind]}"
    return f"unknown kind of file; those that are read end in {', '.join(sorted(read))}; convert others to PLY"


def warn(folder: Path, more: Iterable[str] = (), words: str = "") -> None:
    """Warns about the files below a folder that are of kinds with ADVICE, counted by kind.

    more: further kinds that this search does not read; words: what is said about them.
    """
    advice = ADVICE | dict.fromkeys(more, words)
    kinds = (os.path.splitext(name)[1].lower() for _, names in walk(folder) for name in names)
    counts = Counter(kind for kind in kinds if kind in advice)
    for help in dict.fromkeys(advice[kind] for kind in sorted(counts)):
        some = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common() if advice[kind] == help)
        warnings.warn(f"{folder}: {some}: not read; {help}", stacklevel=3)
