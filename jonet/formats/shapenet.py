"""Raw ShapeNet: `<synset>/<id>/model.obj` (version 1) or `<synset>/<id>/models/model_normalized.obj` (version 2)."""

from __future__ import annotations

from pathlib import Path

from jonet.data import splits
from jonet.data.sources import MeshFile
from jonet.storage.search import glob

FILES = ("model.obj", "models/model_normalized.obj")  # below <synset>/<id>/: version 1, version 2


def discover(folder, split, category, test_fraction, seed) -> list[MeshFile]:
    """The meshes of a raw ShapeNet folder as sources, sorted by name.

    split: split files (`splits.chosen`); without them the seed draws the fraction `test_fraction` for testing.
    category: synsets or names to take, separated by commas; None: all.
    """
    root = Path(folder)
    found = {}
    for file in FILES:
        for path in glob(root, f"*/*/{file}"):
            found.setdefault("/".join(path.relative_to(root).parts[:2]), path)
    kept = splits.categories(category, {place.split("/")[0] for place in found})
    found = {place: path for place, path in found.items() if place.split("/")[0] in kept}
    if split is None:
        return listed(root, found, splits.drawn(found, test_fraction, seed))
    # Split files may name a dataset above <synset>/<id>, as DeepSDF's do; ids without a synset are kept ("").
    chosen = {"/".join(name.split("/")[-2:]): part for name, part in splits.chosen(split).items()}
    placed = splits.placed(chosen, found)
    return listed(root, found, {place: part for place, part in placed.items() if _category(place) in (*kept, "")})


def _category(place: str) -> str:
    """The synset of a path `…/<synset>/<id>`; "" of a bare id."""
    return "/".join(place.split("/")[-2:-1])


def listed(root: Path, found: dict[str, Path], listed: dict[str, str]) -> list[MeshFile]:
    """Sources for the paths in `listed` (path: split), sorted by name.  found: the existing files by path.

    Paths without a file are included: the store then lists them as skipped.
    """
    names = splits.short(list(listed))
    missing = {place: root / f"{place}.obj" for place in listed.keys() - found.keys()}
    shapes = [MeshFile(names[place], split, (found | missing)[place], root) for place, split in listed.items()]
    return sorted(shapes, key=lambda shape: shape.name)
