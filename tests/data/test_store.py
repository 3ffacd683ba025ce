"""The packed store: the same bytes however it is built, found again, refused by name, never incomplete."""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import trimesh

from jonet.data import sampling, shards, store
from jonet.data.sampling import Recipe
from jonet.data.sources import MeshFile, Procedural, Shape, Source, discover
from jonet.errors import ConfigError, MeshError, StoreError
from jonet.geometry import mesh_files
from jonet.geometry.mesh import Mesh, Similarity

TINY = Recipe(near=400, uniform=100, surface=50, occupancies=203)


@dataclasses.dataclass(frozen=True)
class Box(Source):
    extents: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def load(self) -> Mesh:
        t = trimesh.creation.box(self.extents)
        return Mesh(t.vertices + 5, t.faces)

    def mark(self) -> dict:
        return {"extents": list(self.extents)}


BOXES = [
    Box("b"),
    Box("a", "test", (1.0, 2.0, 1.5)),
    Box("c", "val", (0.3, 1.0, 1.0)),
    Box("d", "train", (1.0, 1.0, 0.7)),
]


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def build(folder, sources=BOXES, recipe=TINY, **options):
    return store.build(folder, sources, recipe, progress=False, **options)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("store") / "boxes", seed=3)


@pytest.fixture
def folder_of_meshes(tmp_path):
    for i in range(5):
        t = trimesh.creation.box((1, 1 + i / 5, 1))
        mesh_files.write(Mesh(t.vertices, t.faces), tmp_path / "meshes" / f"box{i}.ply")
    return tmp_path / "meshes"


# What a store holds


def test_a_store_gives_back_what_was_sampled(built):
    assert built.names == ["b", "a", "c", "d"] and len(built) == 4
    assert built.splits.tolist() == ["train", "test", "val", "train"]
    assert built.select("train").tolist() == [0, 3] and built.recipe == TINY
    assert (built.seed, built.frame, built.sign, built.skipped) == (3, "sphere", "auto", [])
    for i, source in enumerate(BOXES):
        rows = source.shape(TINY, seed=3, frame="sphere", sign="auto").rows
        np.testing.assert_array_equal(built.samples(i), np.concatenate(rows["sdf"]))
        assert built.counts[i].tolist() == [len(side) for side in rows["sdf"]]
        np.testing.assert_array_equal(built.sdf[built.offsets[i]], rows["sdf"][0][0])
        points, inside = built.occupancy(i)
        assert points.dtype == np.float16 and len(points) == 203
        np.testing.assert_array_equal(points[inside], rows["occupancy"][1])
        points, normals = built.surface(i)
        np.testing.assert_array_equal(points, rows["surface_points"][0])
        np.testing.assert_array_equal(normals, rows["surface_normals"][0])
    assert built.verify() is built


def test_samples_belong_to_the_stored_mesh(built):
    for i in range(4):
        mesh, samples = built.mesh(i), built.samples(i)
        np.testing.assert_array_equal(sampling.signed_distances(mesh, samples[:, :3]), samples[:, 3])
        points, inside = built.occupancy(i)
        np.testing.assert_array_equal(sampling.inside(mesh, points.astype(np.float64)), inside)
        own = built.similarities[i].inverse().apply(mesh)
        np.testing.assert_allclose(np.ptp(own.bounds, axis=0), BOXES[i].extents, rtol=1e-6)
        np.testing.assert_allclose(own.bounds.mean(0), 5, rtol=1e-6)
        assert built.diagnoses[i].closed and built.diagnoses[i].method == "exact"


def test_rows_of_a_side_are_in_random_order(built):
    """Streaming reads windows of them, so near and uniform samples must be mixed."""
    samples = built.samples(0)[: built.counts[0, 0]]
    far = np.abs(samples[:, 3]) > 0.3
    halves = far[: len(far) // 2].mean(), far[len(far) // 2 :].mean()
    assert min(halves) > 0.3 * max(halves) > 0


def test_the_cube_frame_and_an_override_of_the_sign(tmp_path):
    made = build(tmp_path / "s", frame="cube", sign="winding")
    assert np.ptp(made.mesh(1).bounds, axis=0).max() == pytest.approx(1)
    assert made.sign == "winding" and np.abs(made.samples(0)[:, :3]).max() < 0.56 + 0.2


def test_a_recipe_for_occupancies_alone(tmp_path):
    made = build(tmp_path / "s", recipe=Recipe(0, 0, surface=0, occupancies=100))
    assert made.sdf.shape == (0, 4) and made.samples(2).shape == (0, 4)
    assert made.occupancy(1)[0].shape == (100, 3) and made.surface(0)[0].shape == (0, 3)
    made.verify()


# The same bytes on every way


def test_executor_workers_and_order_of_work_change_nothing(tmp_path, folder_of_meshes):
    sources = [*discover(folder_of_meshes), Procedural("mug", 0, 1)]
    one = build(tmp_path / "inline", sources)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        build(tmp_path / "threads", sources, executor=pool)
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        build(tmp_path / "processes", sources, executor=pool)
    assert content(tmp_path / "inline") == content(tmp_path / "threads") == content(tmp_path / "processes")
    backwards = build(tmp_path / "backwards", sources[::-1])
    for i, name in enumerate(one.names):
        j = backwards.names.index(name)
        np.testing.assert_array_equal(one.samples(i), backwards.samples(j))


def test_processes_are_spawned_where_much_is_left_to_do(tmp_path, folder_of_meshes, monkeypatch):
    monkeypatch.setattr(shards, "PATIENCE", 0.0)
    sources = discover(folder_of_meshes)
    build(tmp_path / "pool", sources)
    monkeypatch.setattr(shards, "PATIENCE", np.inf)
    build(tmp_path / "inline", sources)
    assert content(tmp_path / "pool") == content(tmp_path / "inline")


def test_a_process_that_may_start_none_samples_by_itself(tmp_path, monkeypatch):
    """Daemonic ones, such as the workers of a multiprocessing.Pool."""
    monkeypatch.setattr(shards, "PATIENCE", -1)
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    assert len(build(tmp_path / "s", [Procedural("mug", 0, i) for i in range(3)])) == 3


def test_a_build_that_was_killed_goes_on(tmp_path, monkeypatch, built):
    asked = []
    original = Box.shape

    def shape(self, *args, **options):
        asked.append(self.name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return original(self, *args, **options)

    monkeypatch.setattr(Box, "shape", shape)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "s", seed=3)
    assert not (tmp_path / "s").exists()
    with pytest.raises(StoreError, match="interrupted.*build it again"):
        store.open(tmp_path / "s")
    part = next((tmp_path / "s.partial" / "parts").glob("*.npz"))
    part.write_bytes(part.read_bytes()[:-100])  # one part is damaged: it is made again
    build(tmp_path / "s", seed=3)
    assert asked[:3] == ["b", "a", "c"] and asked[3] in "ab" and asked[4:] == ["c", "d"]
    assert content(tmp_path / "s") == content(built.folder)
    assert not (tmp_path / "s.partial").exists()


def test_kill_while_packing_leaves_no_store(tmp_path, monkeypatch, built):
    monkeypatch.setattr(store, "_index_checksum", lambda index: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(tmp_path / "s", seed=3)
    assert not (tmp_path / "s").exists()
    monkeypatch.undo()
    monkeypatch.setattr(Box, "shape", lambda *args, **options: 1 / 0)  # nothing is sampled twice
    build(tmp_path / "s", seed=3)
    assert content(tmp_path / "s") == content(built.folder)


def test_the_same_again_opens_it_and_an_empty_folder_is_no_hindrance(tmp_path, monkeypatch):
    (tmp_path / "s").mkdir()
    build(tmp_path / "s")
    monkeypatch.setattr(Box, "shape", lambda *args, **options: 1 / 0)
    assert build(tmp_path / "s").names == [box.name for box in BOXES]


# Refusals


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seed": 4}, "seed: 3 → 4"),
        ({"frame": "cube"}, "frame: 'sphere' → 'cube'"),
        ({"sign": "exact"}, "sign: 'auto' → 'exact'"),
        ({"recipe": dataclasses.replace(TINY, near=402)}, "recipe.near: 400 → 402"),
        ({"sources": BOXES[:3]}, "1 missing .first 'd'"),
        ({"sources": [*BOXES, Box("e")]}, "1 new .first 'e'"),
        ({"sources": [Box("b", "test"), *BOXES[1:]]}, "1 in another split .first 'b'"),
        ({"sources": [Box("b", extents=(1.0, 1.0, 1.1)), *BOXES[1:]]}, "1 changed .first 'b'"),
    ],
)
def test_other_settings_are_refused_by_name(built, change, match):
    with pytest.raises(StoreError, match=match):
        build(built.folder, **{"seed": 3, **change})


def test_other_settings_of_an_unfinished_store_are_refused_too(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_pack", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(tmp_path / "s")
    with pytest.raises(StoreError, match="s.partial: built with other settings.*seed: 0 → 1"):
        build(tmp_path / "s", seed=1)


def test_an_edited_file_is_noticed_and_a_copied_one_is_not(tmp_path, folder_of_meshes):
    build(tmp_path / "s", discover(folder_of_meshes))
    os.utime(folder_of_meshes / "box0.ply")
    build(tmp_path / "s", discover(folder_of_meshes))
    data = bytearray((folder_of_meshes / "box1.ply").read_bytes())
    data[-200] ^= 1
    (folder_of_meshes / "box1.ply").write_bytes(data)
    with pytest.raises(StoreError, match="1 changed .first 'box1'"):
        build(tmp_path / "s", discover(folder_of_meshes))


def test_what_makes_no_sense_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="frame is 'ball'"):
        build(tmp_path / "s", frame="ball")
    with pytest.raises(ConfigError, match="sign is 'magic'"):
        build(tmp_path / "s", sign="magic")
    with pytest.raises(ConfigError, match="1 names belong to several sources .first 'b'"):
        build(tmp_path / "s", [*BOXES, Box("b")])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not a store"):
        build(tmp_path)
    with pytest.raises(StoreError, match="there is no store; build one first"):
        store.open(tmp_path)


@pytest.mark.parametrize("name", ["sdf.npy", "faces.npy", "occupancy.npy", "index.json"])
@pytest.mark.parametrize("damage", ["cut", "longer", "missing", "flipped", "empty"])
def test_damage_is_named(tmp_path, built, name, damage):
    shutil.copytree(built.folder, tmp_path / "s")
    path = tmp_path / "s" / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes({"cut": data[:-7], "longer": data + b"1234567", "empty": b""}[damage])
    with pytest.raises(StoreError) as error:
        store.open(tmp_path / "s").verify()
    assert name in str(error.value) or damage == "missing"
    if damage != "flipped" or name == "index.json":  # seen without reading everything
        with pytest.raises(StoreError):
            store.open(tmp_path / "s")


@pytest.mark.parametrize(
    "index", ["[]", "null", "{}", '{"checksum": 0, "settings": {"version": 99}}', '{"checksum": 1}']
)
def test_another_index_is_refused(tmp_path, index):
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(StoreError, match="index.json: damaged|version 99"):
        store.open(tmp_path)


def test_nothing_is_unpickled(tmp_path, built):
    shutil.copytree(built.folder, tmp_path / "s")
    np.save(tmp_path / "s" / "sdf.npy", np.array([{"boom": 1}], object), allow_pickle=True)
    with pytest.raises(StoreError, match="sdf.npy"):
        store.open(tmp_path / "s")


# Bad shapes


def test_bad_meshes_are_listed_and_the_rest_goes_on(tmp_path, folder_of_meshes):
    (folder_of_meshes / "bad.obj").write_text("v 0 0 0\nv 1 0 0\nf 1 2 9\n")
    (folder_of_meshes / "empty.ply").write_bytes(b"")
    flat = Mesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    mesh_files.write(flat, folder_of_meshes / "flat.ply")
    with pytest.warns(UserWarning, match="skipped") as warned:
        made = build(tmp_path / "s", discover(folder_of_meshes), sign="winding")
    assert made.names == [f"box{i}" for i in range(5)]
    assert [entry["file"] for entry in made.skipped] == ["bad.obj", "empty.ply", "flat.ply"]
    assert all(entry["reason"] for entry in made.skipped) and len(warned) == 3
    assert "encloses" in made.skipped[2]["reason"] or "enclosed" in made.skipped[2]["reason"]
    build(tmp_path / "s", discover(folder_of_meshes), sign="winding")  # at once, without a warning


def test_a_store_without_shapes_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="none of 0 shapes"):
        build(tmp_path / "s", [])
    monkeypatch.setattr(Box, "load", lambda self: 1 / 0)
    with pytest.warns(UserWarning, match="skipped b: ZeroDivisionError"):
        with pytest.raises(StoreError, match="none of 1 shapes.*ZeroDivisionError"):
            build(tmp_path / "s", BOXES[:1])


@dataclasses.dataclass(frozen=True)
class Ready(Source):
    """Samples that exist already, without a mesh."""

    outside: tuple = ((0.5, 0.0, 0.0, 0.1),)
    inside: tuple = ((0.0, 0.0, 0.0, -0.4),)

    def shape(self, recipe, *, seed, frame, sign) -> Shape:
        return Shape({"sdf": (np.array(self.outside), np.array(self.inside))}, Similarity())


def test_sources_may_bring_their_samples(tmp_path):
    sources = [Ready("whole"), Ready("nan", outside=((0, 0, 0, np.nan),)), Ready("hollow", inside=())]
    with pytest.warns(UserWarning, match="skipped"):
        made = build(tmp_path / "s", sources)
    assert made.names == ["whole"] and made.diagnoses == [None]
    np.testing.assert_array_equal(made.samples(0), np.float32([[0.5, 0, 0, 0.1], [0, 0, 0, -0.4]]))
    assert "not finite" in made.skipped[0]["reason"] and "none are inside" in made.skipped[1]["reason"]


# Sources


def test_discover_takes_folders_at_their_word(tmp_path):
    for place in ("train/a.ply", "train/deep/a.ply", "test/b.ply", "val/b.obj", "stray.ply", "more/c.ply"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    with pytest.warns(UserWarning, match="2 mesh files are outside of its folders test, train, val"):
        sources = discover(tmp_path)
    found = {source.name: (source.split, source.path) for source in sources}
    assert found == {
        "train/a": ("train", tmp_path / "train/a.ply"),
        "train/deep/a": ("train", tmp_path / "train/deep/a.ply"),
        "test/b": ("test", tmp_path / "test/b.ply"),
        "val/b": ("val", tmp_path / "val/b.obj"),
    }
    assert [source.name for source in sources] == sorted(found)


def test_discover_splits_a_flat_folder_by_the_seed(tmp_path):
    for i in range(40):
        (tmp_path / f"m{i:02}.obj").touch()
    first, again, other = (discover(tmp_path, test_fraction=0.25, seed=seed) for seed in (0, 0, 1))
    assert first == again
    tests = {source.name for source in first if source.split == "test"}
    assert len(tests) == 10 and tests != {source.name for source in other if source.split == "test"}
    (tmp_path / "new.obj").touch()  # one more file moves at most one
    assert len(tests & {s.name for s in discover(tmp_path, 0.25) if s.split == "test"}) >= 9
    assert {source.split for source in discover(tmp_path, test_fraction=0)} == {"train"}


def test_names_differ(tmp_path):
    for place in ("x/model.obj", "y/model.obj", "chair.obj", "chair.stl", "lamp.ply"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
    assert [s.name for s in discover(tmp_path)] == ["chair.obj", "chair.stl", "lamp", "x/model", "y/model"]


def test_one_file_and_no_file(tmp_path):
    (tmp_path / "one.off").touch()
    assert discover(tmp_path / "one.off") == [MeshFile("one", "train", tmp_path / "one.off")]
    assert [source.split for source in discover(tmp_path)] == ["train"]
    (tmp_path / "none").mkdir()
    with pytest.raises(MeshError, match="no mesh files below it"):
        discover(tmp_path / "none")


def test_procedural_sources():
    source = Procedural("chair", seed=5, index=7, split="test")
    assert (source.name, source.split) == ("chair_0007", "test") and source.load().watertight
    assert source.unchanged(json.loads(json.dumps(source.mark()))) and not source.unchanged(Procedural("chair").mark())


def test_workers_import_no_jax():
    code = "import sys, jonet.data.store; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=os.getcwd()).returncode == 0
