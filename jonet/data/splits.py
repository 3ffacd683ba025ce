"""Training, test and validation splits: split files of the published programs, folders, or a seeded random draw."""

from __future__ import annotations

import json
import re
import warnings
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from jonet.errors import ConfigError, FormatError, shown
from jonet.storage import archives, atomic
from jonet.storage.names import encoded
from jonet.wording import counted

SPLITS = ("train", "test", "val")
CATEGORIES = {  # ShapeNet synsets by the names that the papers use
    "airplane": "02691156",
    "bench": "02828884",
    "cabinet": "02933112",
    "car": "02958343",
    "chair": "03001627",
    "display": "03211117",
    "lamp": "03636649",
    "loudspeaker": "03691459",
    "rifle": "04090263",
    "sofa": "04256520",
    "table": "04379243",
    "telephone": "04401088",
    "vessel": "04530566",
}


def read(path: str | Path) -> list[str]:
    """The names in a split file, in its order.

    DeepSDF's JSON, {dataset: {class: [instance, …]}}, gives `dataset/class/instance`; any other file has one name per
    line, unchanged (only \\n and \\r\\n end lines).
    Raises FormatError if it is damaged, names no shape, or has a path that leads out of the data folder.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        found = _json(path)
    else:
        lines = archives.text(path, errors="surrogateescape").split("\n")
        found = [name for line in lines if (name := line.removesuffix("\r").strip(" \t"))]
    for name in found:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in name or "\0" in name:
            raise FormatError(f"{path}: {shown(name)} is no name of a shape")
    if not found:
        raise FormatError(f"{path}: names no shapes")
    return found


def _json(path: Path) -> list[str]:
    sets = archives.options(path, archives.TEXT)
    try:
        found = [f"{s}/{c}/{name}" for s, classes in sets.items() for c, names in classes.items() for name in names]
        wrong = [n for classes in sets.values() for names in classes.values() for n in names if not isinstance(n, str)]
        if wrong or any(isinstance(names, str) for classes in sets.values() for names in classes.values()):
            raise TypeError("names are text")
    except (AttributeError, TypeError) as error:
        raise FormatError(f"{path}: is no split file, {{dataset: {{class: [instance, …]}}}} ({error})") from error
    return found


def chosen(files: str | Path | Sequence[str | Path]) -> dict[str, str]:
    """The split of each shape that is named in split files (a list of paths, or one string separated by commas).

    A file's split is the first word train, test or val in its name (`chairs_test_from_train.json` is test, with a
    warning), else train.  A shape in several splits gets the first of SPLITS, with a warning.
    """
    files = files.split(",") if isinstance(files, str) else [files] if isinstance(files, Path) else files
    paths = [Path(str(file).strip()) for file in files]
    found = [_split_of(path) for path in paths]
    return joined(
        {split: [n for s, p in zip(found, paths, strict=True) if s == split for n in read(p)] for split in SPLITS}
    )


def _split_of(path: Path) -> str:
    """The split according to a file's name."""
    words = [word for word in re.split("[^a-z]+", path.stem.lower()) if word in SPLITS] or ["train"]
    if len(set(words)) > 1:
        warnings.warn(
            f"{path}: its name has the words {', '.join(dict.fromkeys(words))}; it is taken for {words[0]}, the first "
            "of them",
            stacklevel=4,
        )
    return words[0]


def of_folders(places: Sequence[str], where: str | Path, what: str) -> dict[str, str]:
    """The splits of relative paths `…/name` by folders named train, test and val, in any case; {} if there are none.

    Such a folder must be the first of a path, or anywhere in it if several splits occur (`chair/train/name`): a single
    folder `…/test` deep below is more likely a name.  Paths outside of these folders are left out, with a warning.
    where, what: how the warning calls the root folder and the paths.
    """
    above = {place: [part.lower() for part in place.split("/")[:-1]] for place in places}
    named = {place: [folder for folder in folders if folder in SPLITS] for place, folders in above.items()}
    deep = {place: found[0] for place, found in named.items() if found}
    found = {place: split for place, split in deep.items() if above[place][0] in SPLITS}
    found = found or (deep if len(set(deep.values())) > 1 else {})
    inside = found or deep  # `deep` alone defines no splits, but a mixture deserves a warning
    if inside and (outside := [place for place in places if place not in inside]):
        subject = f"{where}: {len(outside)} {what} are outside of its folders {', '.join(sorted(set(inside.values())))}"
        end = "and are left out" if found else "and are split at random with those in them"
        warnings.warn(f"{subject} (first {outside[0]}) {end}", stacklevel=4)
    return found


def warn_unlisted(places: Sequence[str], listed: dict[str, str], where: str | Path) -> None:
    """Warns if the split files in a folder do not name all of its shapes."""
    if left := [place for place in places if place not in listed]:
        warnings.warn(
            f"{where}: {counted(len(left), 'shape is', 'shapes are')} in none of its lists (first {left[0]}) and "
            "left out",
            stacklevel=4,
        )


def joined(lists: dict[str, list[str]]) -> dict[str, str]:
    """The split of each name, from the names of each split; one in several gets the first of SPLITS, with a warning."""
    found: dict[str, str] = {}
    several = set()
    for split in SPLITS:
        for name in lists.get(split, ()):
            if found.setdefault(name, split) != split:
                several.add(name)
    if several:
        first = min(several)
        warnings.warn(
            f"{counted(len(several), 'shape is', 'shapes are')} in the lists of several splits (first {first}): used "
            f"for {found[first]} only",
            stacklevel=3,
        )
    return found


def placed(named: dict[str, str], places: Iterable[str]) -> dict[str, str]:
    """The splits of relative paths `…/class/name`, given splits by names that may be only the end of a path, or longer.

    A name that matches no path is kept as it is.  Raises FormatError if a name matches several paths.
    """
    ends: dict[str, list[str]] = {}  # every suffix of every path, at folder boundaries
    for place in places:
        for i in range(place.count("/") + 1):
            ends.setdefault(place.split("/", i)[-1], []).append(place)
    found = {}
    for name, split in named.items():  # the longest suffix of the name that is one of a path
        fits = next((ends[end] for i in range(name.count("/") + 1) if (end := name.split("/", i)[-1]) in ends), [name])
        if len(fits) > 1:
            raise FormatError(
                f"the split files name {name}, which could be {fits[0]} or {fits[1]}; name its class, too"
            )
        found[fits[0]] = split
    return found


def drawn(names: Iterable[str], fraction: float, seed: int, kept: str = "test") -> dict[str, str]:
    """A random split: the fraction `fraction` of the names gets the split `kept` (at least one of two), others train.

    Names are ordered by a hash of seed and name, so their order does not matter.
    """
    shuffled = sorted(names, key=lambda name: (zlib.crc32(encoded(f"{seed} {name}")), name))
    count = min(max(round(fraction * len(shuffled)), 1), len(shuffled) - 1) if fraction else 0  # a single one trains
    return {name: kept if i < count else "train" for i, name in enumerate(shuffled)}


def categories(named: str | None, present: Iterable[str], known: dict[str, str] | None = None) -> set[str]:
    """The category folders that `named` selects, by folder or name, separated by commas; all if it is None or "".

    present: the existing folders.  known: folders by name, in addition to ShapeNet's.  Raises ConfigError for a
    category that does not exist.
    """
    present = set(present)
    if not named:
        return present
    folders = CATEGORIES | (known or {})
    selected = {folders.get(name.strip(), name.strip()) for name in named.split(",")}
    if missing := selected - present:
        raise ConfigError(
            f"category {', '.join(sorted(missing))} does not exist; there are {', '.join(sorted(present)) or 'none'}"
        )
    return selected


def short(names: Sequence[str]) -> dict[str, str]:
    """Short forms of names that are paths: without the leading folders that all of them have."""
    parts = {name: PurePosixPath(name).parts for name in names}
    most = min(map(len, parts.values()), default=1) - 1  # the last part, the name itself, stays
    shared = next((i for i in range(most) if len({p[i] for p in parts.values()}) > 1), most)
    return {name: "/".join(p[shared:]) for name, p in parts.items()}


def write(path: Path, names: Sequence[str]) -> None:
    """Writes a split file: DeepSDF's JSON by the suffix `.json`, else one name per line.

    There is no newline at the end: Occupancy Networks' program would read an empty name after it.
    """
    if path.suffix == ".json":
        sets: dict[str, dict[str, list[str]]] = {}
        for name in names:
            first, kind, instance = name.split("/")
            sets.setdefault(first, {}).setdefault(kind, []).append(instance)
        atomic.write_text(path, json.dumps(sets, indent=2))
    else:
        atomic.write_text(path, "\n".join(names))
