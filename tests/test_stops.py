"""Jobs that are killed, or whose disk fails, at every change of the disk: what is there is whole, nothing else is
touched, and the same call ends with the same bits."""

import contextlib
import errno
import shutil
from pathlib import Path
from unittest import mock

import crash
import numpy as np
import pytest
from balls import Balls, fields, write_clouds

from jonet import bulk, representation
from jonet.bulk import Settings
from jonet.data import store as stores
from jonet.data.sampling import Recipe
from jonet.data.sources import Procedural
from jonet.errors import JonetError
from jonet.formats import detect
from jonet.settings.surfaces import Surfaces
from jonet.storage import atomic

pytestmark = pytest.mark.unoptimized

ERRORS = {"killed": None, "full": errno.ENOSPC, "forbidden": errno.EACCES}
RECIPE = Recipe(near=200, uniform=50, surface=60, occupancies=200)
TIMES = ("manifest.csv", "joined.json")  # say how long it took, and when


def tree(folder: Path) -> dict[str, bytes]:
    """The files below a folder, but for unfinished ones and locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and not any(map(atomic.is_temporary, [path, *path.parents]))
    }


class Job:
    """A call with inputs below `given` and outputs below `out`; `change` gives it something new to do."""

    def __init__(self, root: Path):
        self.root, self.given, self.out = root, root / "given", root / "out"

    def prepare(self):
        pass

    def change(self):
        pass

    def results(self) -> dict[str, bytes]:
        return {name: data for name, data in tree(self.out).items() if Path(name).name not in TIMES}


class Build(Job):
    frame = "sphere"

    def __call__(self):
        shapes = [Procedural("mug", 0, i, "train" if i else "test") for i in range(3)]
        stores.build(self.out / "store", shapes, RECIPE, frame=self.frame, progress=False)

    def results(self):
        stores.open(self.out / "store").verify()
        assert not (self.out / "store.partial").exists()
        return super().results()


class Export(Job):
    layout, frame = "deepsdf", "sphere"

    def prepare(self):
        shapes = [Procedural("mug", 0, i, "train" if i else "test") for i in range(2)]
        self.store = stores.build(self.given / "store", shapes, RECIPE, frame=self.frame, progress=False)

    def __call__(self):
        if not (self.out / "made").exists():  # a folder that is not empty is refused
            detect.export(self.store, self.out / "made", self.layout)


class ExportOccupancies(Export):
    layout, frame = "onet", "cube"


class Fit(Job):
    model = Balls()

    def prepare(self):
        write_clouds(self.given, np.array([1.0, 2.0, 3.0]))

    def change(self):
        write_clouds(self.given, np.array([5.0]), ["ball_01"])

    def __call__(self):
        bulk.fit(self.model, self.given, self.out / "codes.npz", Settings(batch=2))


class Reconstruct(Fit):
    def __call__(self):
        bulk.reconstruct(self.model, self.given, self.out / "made", Settings(batch=2))


class Extract(Fit):
    def change(self):
        super().change()
        bulk.fit(self.model, self.given / "clouds", self.given / "codes.npz")

    def prepare(self):
        write_clouds(self.given / "clouds", np.array([1.0, 2.0, 3.0]))
        bulk.fit(self.model, self.given / "clouds", self.given / "codes.npz")

    def __call__(self):
        bulk.extract(self.model, self.given / "codes.npz", self.out / "made", Settings(batch=2))


class Represent(Fit):
    """Two files for each input."""

    def __call__(self):
        coarse = Surfaces(resolution=8)
        with mock.patch.object(representation, "fitted", fields):
            options = {"cloud": 100}
            bulk.represent(
                self.given, self.out / "made", Settings(batch=2), options=options, form="ply", surfaces=coarse
            )


JOBS = [Build, Export, ExportOccupancies, Fit, Reconstruct, Extract, Represent]


def finished(job: Job) -> dict[str, bytes]:
    job()
    return job.results()


def stop_everywhere(kind, tmp_path, error, every: int):
    """Stops the first call, and one that has something new to do, at every change that it makes in the folder."""
    job = kind(tmp_path / "work")
    job.given.mkdir(parents=True)
    job.prepare()
    mine = (
        {"mine.txt": b"mine", "made/mine.ply": b"mine"}
        if kind in (Reconstruct, Extract, Represent)
        else {"mine.txt": b"mine"}
    )

    def start_anew():
        shutil.rmtree(job.out, ignore_errors=True)
        for name, data in mine.items():
            atomic.write_bytes(job.out / name, data)

    start_anew()
    first = finished(job)
    shutil.copytree(job.out, tmp_path / "first")
    for again in (False, True):
        if again:
            job.change()
        wanted = first if not again else finished(job)
        given = tree(job.given)
        at = every // 2
        while True:
            start_anew()
            if again:
                shutil.rmtree(job.out)
                shutil.copytree(tmp_path / "first", job.out)
            with crash.disk(job.out, at, error) as seen:
                with contextlib.suppress(crash.Stopped, OSError, JonetError):
                    job()
            if seen.count <= at:
                break
            left = tree(job.out)
            assert {name: left.get(name) for name in mine} == mine and tree(job.given) == given, at
            for name in left.keys() & wanted.keys():
                assert left[name] in (wanted[name], first.get(name)), (at, name)
            assert finished(job) == wanted, at
            at += every
        assert seen.count > 5 or (again and not seen.count), seen.count


@pytest.mark.parametrize("error", ["killed", "full"])
@pytest.mark.parametrize("kind", JOBS)
def test_a_stop_leaves_what_is_whole(kind, tmp_path, error):
    stop_everywhere(kind, tmp_path, ERRORS[error], 12)


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("kind", JOBS)
def test_a_stop_anywhere_leaves_what_is_whole(kind, tmp_path, error):
    stop_everywhere(kind, tmp_path, ERRORS[error], 1)
