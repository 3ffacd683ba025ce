"""Folders of shapes as they lie, whoever made them: which layout it is, and the same few questions to all of them."""

from __future__ import annotations

from pathlib import Path

from jonet.data import deepsdf_layout, onet_layout, sources, splits
from jonet.data.sources import MeshFile, Source
from jonet.data.store import Store
from jonet.errors import ConfigError

SHAPENET = ("model.obj", "models/model_normalized.obj")  # below <synset>/<id>/: version 1, version 2
WRITERS = {"deepsdf": deepsdf_layout.write, "onet": onet_layout.write}


def layout(folder: str | Path) -> str:
    """What a folder is: "deepsdf" or "onet" (samples in these programs' layouts), "shapenet" (raw) or "meshes"."""
    folder = Path(folder)
    if (folder / deepsdf_layout.SAMPLES).is_dir():
        return "deepsdf"
    if any(any(folder.glob(pattern)) for pattern in ("*/*.lst", f"*/*/{onet_layout.POINTS}")):
        return "onet"
    return "shapenet" if any(any(folder.glob(f"*/*/{file}")) for file in SHAPENET) else "meshes"


def discover(
    folder: str | Path,
    split: str | list[str] | None = None,
    category: str | None = None,
    test_share: float = 0.1,
    seed: int = 0,
) -> list[Source]:
    """The shapes of a folder of any layout as sources for `store.build`, sorted by name.

    split: split files (`splits.chosen`): DeepSDF's JSON or lists, several with commas between; the word train, test or
    val in a file's name says which.  category: of ShapeNet, as folder or name, several with commas between.  Without
    split files, what the layout says, or else the share `test_share` for testing, drawn by the seed.
    Stores of DeepSDF's samples are of the frame `sphere`, of Occupancy Networks' of `cube`.
    """
    kind = layout(folder)
    if kind == "meshes":
        if category:
            raise ConfigError(f"{folder}: a plain folder of meshes has no category {category!r}; leave it out")
        found = sources.discover(folder, test_share, seed)
        if split is None:
            return found
        paths = {shape.name: shape.path for shape in found}
        return _listed(Path(folder), paths, splits.placed(splits.chosen(split), paths))
    read = {"deepsdf": deepsdf_layout.discover, "onet": onet_layout.discover, "shapenet": _shapenet}[kind]
    return read(folder, split, category, test_share, seed)


def export(store: Store, folder: str | Path, layout: str) -> None:
    """A store in the layout "deepsdf" or "onet", into a folder that is new or empty."""
    folder = Path(folder)
    if layout not in WRITERS:
        raise ConfigError(f"layout is {layout!r}; stores are written as {', '.join(WRITERS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there and not empty; name another folder")
    WRITERS[layout](store, folder)


def _shapenet(folder, split, category, test_share, seed) -> list[MeshFile]:
    """Raw ShapeNet: `<synset>/<id>/model.obj` (version 1) or `…/models/model_normalized.obj` (version 2)."""
    root = Path(folder)
    found = {}
    for file in SHAPENET:
        for path in root.glob(f"*/*/{file}"):
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
