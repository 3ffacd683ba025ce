"""Which shapes are for training and which for testing: split files of the authors' programs, or a seeded draw."""

from __future__ import annotations

import json
import re
import warnings
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from jonet.data import archives
from jonet.errors import ConfigError, FormatError
from jonet.storage import atomic
from jonet.storage.names import encoded

SPLITS = ("train", "test", "val")
CATEGORIES = {  # of ShapeNet, as the papers call them
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
    """The shapes that a split file names, in its order: DeepSDF's JSON, {dataset: {class: [instance, …]}}, as
    `dataset/class/instance`; any other file one a line, as it stands (lines end in \\n or \\r\\n, and nowhere else).

    Raises FormatError where it is damaged, names none, or names one outside of its folder.
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
            raise FormatError(f"{path}: {name!r} is no name of a shape")
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
    """Shapes of several split files (a list, or text with commas between them), each with its split.

    A file's split is the word train, test or val in its name, the first of them (`chairs_test_from_train.json` is for
    testing, and a warning says so), else train.  A shape in several is for the first of SPLITS, with a warning.
    """
    files = files.split(",") if isinstance(files, str) else [files] if isinstance(files, Path) else files
    paths = [Path(str(file).strip()) for file in files]
    words = [_word(path) for path in paths]
    return joined(
        {word: [n for w, p in zip(words, paths, strict=True) if w == word for n in read(p)] for word in SPLITS}
    )


def _word(path: Path) -> str:
    """The split that a file's name says."""
    words = [word for word in re.split("[^a-z]+", path.stem.lower()) if word in SPLITS] or ["train"]
    if len(set(words)) > 1:
        warnings.warn(
            f"{path}: its name has the words {', '.join(dict.fromkeys(words))}; it is taken for {words[0]}, the first "
            "of them",
            stacklevel=4,
        )
    return words[0]


def of_folders(places: Sequence[str], where: str | Path, what: str) -> dict[str, str]:
    """The splits that folders named train, test and val, in any case, give to places `…/name`; {} where they give none.

    Such folders come first in a place, or, where there are several splits, anywhere (`chair/train/name`).  What lies
    beside them is left out, with a warning; where, what: how that calls the folder and the places.
    """
    above = {place: [part.lower() for part in place.split("/")[:-1]] for place in places}
    words = {place: [word for word in folders if word in SPLITS] for place, folders in above.items()}
    deep = {place: found[0] for place, found in words.items() if found}
    found = {place: word for place, word in deep.items() if above[place][0] in SPLITS}
    found = found or (deep if len(set(deep.values())) > 1 else {})
    inside = found or deep
    if inside and (beside := [place for place in places if place not in inside]):
        called = f"{where}: {len(beside)} {what} lie beside its folders {', '.join(sorted(set(inside.values())))}"
        end = "and are left out" if found else "and are split at random with those in them"
        warnings.warn(f"{called} (first {beside[0]}) {end}", stacklevel=4)
    return found


def warn_unlisted(places: Sequence[str], listed: dict[str, str], where: str | Path) -> None:
    """A warning where lists in a folder name some of its shapes only."""
    if left := [place for place in places if place not in listed]:
        warnings.warn(
            f"{where}: {len(left)} shapes stand in none of its lists (first {left[0]}) and are left out", stacklevel=4
        )


def joined(lists: dict[str, list[str]]) -> dict[str, str]:
    """Each name's split, of the names in each split; one in several is for the first of SPLITS, with a warning."""
    found: dict[str, str] = {}
    several = set()
    for word in SPLITS:
        for name in lists.get(word, ()):
            if found.setdefault(name, word) != word:
                several.add(name)
    if several:
        first = min(several)
        warnings.warn(
            f"{len(several)} shapes stand in the lists of several splits (first {first}): kept for one, {found[first]}",
            stacklevel=3,
        )
    return found


def placed(named: dict[str, str], places: Iterable[str]) -> dict[str, str]:
    """The splits of places `…/class/name`, of which a split file may name just the end (or a longer path); what is not
    there keeps the name that it was given.  Raises FormatError where a name could be several.
    """
    ends: dict[str, list[str]] = {}
    for place in places:
        for i in range(place.count("/") + 1):
            ends.setdefault(place.split("/", i)[-1], []).append(place)
    found = {}
    for name, split in named.items():
        fits = next((ends[end] for i in range(name.count("/") + 1) if (end := name.split("/", i)[-1]) in ends), [name])
        if len(fits) > 1:
            raise FormatError(
                f"the split files name {name}, which could be {fits[0]} or {fits[1]}; name its class, too"
            )
        found[fits[0]] = split
    return found


def drawn(names: Iterable[str], share: float, seed: int, kept: str = "test") -> dict[str, str]:
    """A split of each name: a share `kept` for testing, at least one of two, the rest to train on.

    The order of names does not matter.
    """
    lots = sorted(names, key=lambda name: (zlib.crc32(encoded(f"{seed} {name}")), name))
    count = min(max(round(share * len(lots)), 1), len(lots) - 1) if share else 0
    return {name: kept if i < count else "train" for i, name in enumerate(lots)}


def categories(named: str | None, present: Iterable[str], known: dict[str, str] | None = None) -> set[str]:
    """The category folders that `named` asks for, by folder or by name, with commas between; all without it.

    known: folder by name, beside ShapeNet's.  Raises ConfigError for one that is not there.
    """
    present = set(present)
    if not named:
        return present
    folders = CATEGORIES | (known or {})
    asked = {folders.get(name.strip(), name.strip()) for name in named.split(",")}
    if missing := asked - present:
        raise ConfigError(
            f"category {', '.join(sorted(missing))} is not there; there are {', '.join(sorted(present)) or 'none'}"
        )
    return asked


def short(names: Sequence[str]) -> dict[str, str]:
    """Names that are paths, without the leading folders that all of them share."""
    parts = {name: PurePosixPath(name).parts for name in names}
    most = min(map(len, parts.values()), default=1) - 1
    shared = next((i for i in range(most) if len({p[i] for p in parts.values()}) > 1), most)
    return {name: "/".join(p[shared:]) for name, p in parts.items()}


def write(path: Path, names: Sequence[str]) -> None:
    """A split file that `read` reads: DeepSDF's JSON, or a list without a newline at its end, which would name ''."""
    if path.suffix == ".json":
        sets: dict[str, dict[str, list[str]]] = {}
        for name in names:
            first, kind, instance = name.split("/")
            sets.setdefault(first, {}).setdefault(kind, []).append(instance)
        atomic.write_text(path, json.dumps(sets, indent=2))
    else:
        atomic.write_text(path, "\n".join(names))
