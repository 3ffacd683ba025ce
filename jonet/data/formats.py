"""Folders of shapes as they lie, whoever made them: which layout it is, and the same few questions to all of them."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from jonet.data import deepsdf_layout, onet_layout, sources, splits
from jonet.data.files import SUFFIXES
from jonet.data.meshes import glob, is_hidden, walk
from jonet.data.sources import MeshFile, Source
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.storage import atomic

SHAPENET = ("model.obj", "models/model_normalized.obj")  # below <synset>/<id>/: version 1, version 2
WRITERS = {"deepsdf": deepsdf_layout.write, "onet": onet_layout.write}


def layout(folder: str | Path) -> str:
    """What a folder is: "deepsdf" or "onet" (samples in these programs' layouts), "shapenet" (raw) or "meshes".

    One file among many never decides: `onet` has more models with points than mesh files beside them; of `shapenet`
    either all mesh files lie as there, or most in its folders, which are called by eight digits.
    """
    return _look(Path(folder)).layout


class _Found(NamedTuple):
    """What a folder is; left: what reading it so leaves out, in words, with their paths."""

    layout: str
    left: dict[str, list[str]]


def _look(root: Path) -> _Found:
    if (root / deepsdf_layout.SAMPLES).is_dir():
        own = {deepsdf_layout.SAMPLES, deepsdf_layout.SURFACES}
        return _Found("deepsdf", {"mesh files": _meshes(root, own)})
    models = {path.parent.relative_to(root).as_posix() for path in glob(root, f"*/*/{onet_layout.POINTS}")}
    lists = [path.relative_to(root).as_posix() for word in splits.SPLITS for path in onet_layout.find_lists(root, word)]
    beside = _meshes(root, models)
    if (models or lists) and len(beside) <= len(models):
        return _Found("onet", {"mesh files": beside})
    left = {
        "folders of Occupancy Networks' samples": sorted(models),
        "lists (of samples; for meshes give split files)": lists,
    }
    others = [place for place in beside if "/".join(place.split("/")[2:]) not in SHAPENET]
    numbered = [place for place in beside if re.fullmatch("[0-9]{8}", place.split("/")[0])]
    raw = len(others) < len(beside) and not _split_folders(root)
    if raw and (not others or 2 * len(numbered) > len(beside)):
        return _Found("shapenet", left | {"mesh files": others})
    return _Found("meshes", left)


def _meshes(root: Path, without: Container[str]) -> list[str]:
    """The mesh files below a folder as `meshes.find` has them, but for what lies in folders `without`; sorted paths."""
    found = []
    for above, names in walk(root):
        place = above.relative_to(root)
        if not any(folder.as_posix() in without for folder in (place, *place.parents)):
            found += [place / name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES]
    return sorted(path.as_posix() for path in found)


def _split_folders(root: Path) -> list[Path]:
    """Folders train, test and val, in any case, that hold something."""
    named = (path for path in glob(root, "*") if path.name.lower() in splits.SPLITS and path.is_dir())
    return [path for path in named if not all(is_hidden(inner.name) for inner in path.iterdir())]


def discover(
    folder: str | Path,
    split: str | list[str] | None = None,
    category: str | None = None,
    test_share: float = 0.1,
    seed: int = 0,
) -> list[Source]:
    """The shapes of a folder of any layout as sources for `store.build`, sorted by name.

    split: split files (`splits.chosen`): DeepSDF's JSON or lists, several with commas between; the first word train,
    test or val in a file's name says which.  category: of ShapeNet, as folder or name, several with commas between.
    Without split files, folders train, test and val, in any case, are taken at their word, whatever the layout in them,
    then what the layout says, or else the share `test_share` for testing is drawn by the seed.
    What is left out is told by warnings.  Stores of DeepSDF's samples are of the frame `sphere`, of Occupancy Networks'
    of `cube`.
    """
    root = Path(folder)
    parts = [] if split else _split_folders(root)
    if any(_look(part).layout in WRITERS for part in parts):
        return _in_parts(root, parts, category)
    kind, left = _look(root)
    for what, places in left.items():
        if places:
            warnings.warn(
                f"{root}: is read as {kind}, so {len(places)} {what} (first {places[0]}) are left out", stacklevel=2
            )
    if kind == "meshes":
        if category:
            raise ConfigError(f"{folder}: a plain folder of meshes has no category {category!r}; leave it out")
        if split is None:
            return sources.discover(folder, test_share, seed)
        paths = {name: root / path for path, name in sources.named(list(map(Path, _meshes(root, ())))).items()}
        return _listed(root, paths, splits.placed(splits.chosen(split), paths))
    read = {"deepsdf": deepsdf_layout.discover, "onet": onet_layout.discover, "shapenet": _shapenet}[kind]
    return read(folder, split, category, test_share, seed)


def _in_parts(root: Path, parts: list[Path], category: str | None) -> list[Source]:
    """The sources of folders train, test and val that have a layout of their own each."""
    if beside := sorted(path.name for path in glob(root, "*") if path.is_dir() and path not in parts):
        words = ", ".join(part.name for part in parts)
        warnings.warn(
            f"{root}: {len(beside)} folders lie beside its {words} (first {beside[0]}) and are left out", stacklevel=3
        )
    found = []
    for part in parts:
        for source in discover(part, None, category, test_share=0.0):
            found.append(dataclasses.replace(source, name=f"{part.name}/{source.name}", split=part.name.lower()))
    return sorted(found, key=lambda source: source.name)


def export(store: Store, folder: str | Path, layout: str) -> None:
    """A store in the layout "deepsdf" or "onet", into a folder that is new or empty."""
    if layout not in WRITERS:
        raise ConfigError(f"layout is {layout!r}; stores are written as {', '.join(WRITERS)}")
    if not atomic.is_free(folder):
        raise ConfigError(f"{folder}: is there and not empty; name another folder")
    WRITERS[layout](store, folder)


def _shapenet(folder, split, category, test_share, seed) -> list[MeshFile]:
    """Raw ShapeNet: `<synset>/<id>/model.obj` (version 1) or `…/models/model_normalized.obj` (version 2)."""
    root = Path(folder)
    found = {}
    for file in SHAPENET:
        for path in glob(root, f"*/*/{file}"):
            found.setdefault("/".join(path.relative_to(root).parts[:2]), path)
    kept = splits.categories(category, {place.split("/")[0] for place in found})
    found = {place: path for place, path in found.items() if place.split("/")[0] in kept}
    if split is None:
        return _listed(root, found, splits.drawn(found, test_share, seed))
    chosen = {"/".join(name.split("/")[-2:]): word for name, word in splits.chosen(split).items()}
    listed = splits.placed(chosen, found)
    return _listed(root, found, {place: word for place, word in listed.items() if _category(place) in (*kept, "")})


def _category(place: str) -> str:
    return "/".join(place.split("/")[-2:-1])


def _listed(root: Path, found: dict[str, Path], listed: dict[str, str]) -> list[MeshFile]:
    """The mesh files that are listed, sorted by name; those that are not there, too: a store lists them in turn."""
    names = splits.short(list(listed))
    gone = {place: root / f"{place}.obj" for place in listed.keys() - found.keys()}
    shapes = [MeshFile(names[place], word, (found | gone)[place], root) for place, word in listed.items()]
    return sorted(shapes, key=lambda shape: shape.name)
