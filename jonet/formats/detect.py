"""Detecting the layout of a data folder, and one `discover` and `export` for all layouts."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from jonet.data import sources, splits
from jonet.data.sources import Source
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.formats import deepsdf_samples, onet_samples, shapenet
from jonet.geometry import unread
from jonet.geometry.mesh_parsers import SUFFIXES
from jonet.storage import atomic
from jonet.storage.search import glob, is_hidden, walk
from jonet.wording import counted

CLOUDS = (".xyz", ".xyzn", ".xyzrgb", ".pts", ".pcd", ".las", ".laz")  # kinds that only hold point clouds
WRITERS = {"deepsdf": deepsdf_samples.write, "onet": onet_samples.write}


def layout(folder: str | Path) -> str:
    """The layout of a folder: "deepsdf" or "onet" (samples of these programs), "shapenet" (raw) or "meshes".

    A single stray file does not decide: `onet` needs at least as many models with points as mesh files elsewhere;
    `shapenet` needs all mesh files at its paths, or most of them in folders named by eight digits (synsets).
    """
    return _look(Path(folder)).layout


class _Found(NamedTuple):
    """The layout of a folder; left: what reading it in this layout leaves out: paths by a description."""

    layout: str
    left: dict[str, list[str]]


def _look(root: Path) -> _Found:
    if (root / deepsdf_samples.SAMPLES).is_dir():
        folders = {deepsdf_samples.SAMPLES, deepsdf_samples.SURFACES}  # surface samples are PLY files
        return _Found("deepsdf", {"mesh files": _meshes(root, folders)})
    models = {path.parent.relative_to(root).as_posix() for path in glob(root, f"*/*/{onet_samples.POINTS}")}
    lists = [
        path.relative_to(root).as_posix() for split in splits.SPLITS for path in onet_samples.find_lists(root, split)
    ]
    meshes = _meshes(root, models)
    if (models or lists) and len(meshes) <= len(models):
        return _Found("onet", {"mesh files": meshes})
    left = {
        "folders of Occupancy Networks' samples": sorted(models),
        "lists (of samples; for meshes give split files)": lists,
    }
    others = [place for place in meshes if "/".join(place.split("/")[2:]) not in shapenet.FILES]
    numbered = [place for place in meshes if re.fullmatch("[0-9]{8}", place.split("/")[0])]
    raw = len(others) < len(meshes) and not _split_folders(root)
    if raw and (not others or 2 * len(numbered) > len(meshes)):
        return _Found("shapenet", left | {"mesh files": others})
    return _Found("meshes", left)


def _meshes(root: Path, without: Container[str]) -> list[str]:
    """Relative paths of the mesh files below a folder, except those in folders `without`; sorted."""
    found = []
    for above, names in walk(root):
        place = above.relative_to(root)
        if not any(folder.as_posix() in without for folder in (place, *place.parents)):
            found += [place / name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES]
    return sorted(path.as_posix() for path in found)


def _split_folders(root: Path) -> list[Path]:
    """Folders train, test and val, in any case, that are not empty."""
    named = (path for path in glob(root, "*") if path.name.lower() in splits.SPLITS and path.is_dir())
    return [path for path in named if not all(is_hidden(inner.name) for inner in path.iterdir())]


def discover(
    folder: str | Path,
    split: str | list[str] | None = None,
    category: str | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> list[Source]:
    """The shapes of a folder of any layout as sources for `store.build`, sorted by name.

    split: split files (`splits.chosen`): DeepSDF's JSON or lists, separated by commas; the first word train, test or
    val in a file's name is its split.  category: ShapeNet categories by folder or name, separated by commas.

    Without split files, the splits are those of folders train, test and val, in any case, each of any layout; else
    those that the layout defines; else the seed draws the fraction `test_fraction` for testing.
    Warnings tell what is left out.  Stores of DeepSDF's samples need the frame `sphere`, those of Occupancy Networks'
    the frame `cube`.
    """
    root = Path(folder)
    parts = [] if split else _split_folders(root)
    # Folders train/test/val of samples are read one by one; those of plain meshes by `sources.discover` below.
    if any(_look(part).layout in WRITERS for part in parts):
        return _in_parts(root, parts, category)
    kind, left = _look(root)
    for what, places in left.items():
        if places:
            warnings.warn(
                f"{root}: is read as {kind}, so {len(places)} {what} (first {places[0]}) are left out", stacklevel=2
            )
    if kind in ("meshes", "shapenet"):
        unread.warn(root, CLOUDS, "training takes meshes, which `jonet represent --format=ply` makes of scans")
    if kind == "meshes":
        if category:
            raise ConfigError(f"{folder}: a plain folder of meshes has no category {category!r}; leave it out")
        if split is None:
            return [*sources.discover(folder, test_fraction, seed)]
        paths = {name: root / path for path, name in sources.named(list(map(Path, _meshes(root, ())))).items()}
        return [*shapenet.listed(root, paths, splits.placed(splits.chosen(split), paths))]
    read = {"deepsdf": deepsdf_samples.discover, "onet": onet_samples.discover, "shapenet": shapenet.discover}[kind]
    return read(folder, split, category, test_fraction, seed)


def _in_parts(root: Path, parts: list[Path], category: str | None) -> list[Source]:
    """The sources of folders train, test and val, each with its own layout."""
    if outside := sorted(path.name for path in glob(root, "*") if path.is_dir() and path not in parts):
        words = ", ".join(part.name for part in parts)
        warnings.warn(
            f"{root}: {counted(len(outside), 'folder is', 'folders are')} outside of its {words} (first "
            f"{outside[0]}) and left "
            "out",
            stacklevel=3,
        )
    found = []
    for part in parts:
        for source in discover(part, None, category, test_fraction=0.0):
            found.append(dataclasses.replace(source, name=f"{part.name}/{source.name}", split=part.name.lower()))
    return sorted(found, key=lambda source: source.name)


def export(store: Store, folder: str | Path, layout: str) -> None:
    """Writes a store in the layout "deepsdf" or "onet" into a folder that is new or empty."""
    if layout not in WRITERS:
        raise ConfigError(f"layout is {layout!r}; stores are written as {', '.join(WRITERS)}")
    if not atomic.is_free(folder):
        raise ConfigError(f"{folder}: exists and is not empty; name another folder")
    WRITERS[layout](store, folder)
