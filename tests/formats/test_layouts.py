"""Layouts of user folders: train and test folders decide the split, and files that are left out are reported."""

import dataclasses
import json
import os
import warnings

import numpy as np
import pytest

from jonet.data import splits, store
from jonet.data.families import make
from jonet.data.sampling import Recipe
from jonet.data.sources import Procedural, Shape, Source, discover
from jonet.errors import FormatError
from jonet.formats import detect, onet_samples
from jonet.geometry import depth, mesh_files
from jonet.geometry.mesh import Similarity
from jonet.storage import atomic
from jonet.tasks.shapes import Shapes


def touch(root, *places):
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).touch()
    return root


def found(root, **options) -> dict[str, str]:
    return {source.name: source.split for source in detect.discover(root, **options)}


def quietly(root, **options) -> dict[str, str]:
    with warnings.catch_warnings(action="error"):
        return found(root, **options)


@pytest.mark.parametrize("words", [("train", "test", "val"), ("Train", "TEST", "Val")])
@pytest.mark.parametrize("below", ["{}.ply", "{}/model.obj", "02691156/{}/models/model_normalized.obj"])
def test_split_folders_win_whatever_lies_in_them(tmp_path, words, below):
    touch(tmp_path, *(f"{word}/{below.format(i)}" for word in words for i in "abcd"))
    assert detect.layout(tmp_path) == "meshes"
    shapes = detect.discover(tmp_path)
    assert len(shapes) == 12
    assert all(shape.path.relative_to(tmp_path).parts[0].lower() == shape.split for shape in shapes)


def test_split_folders_within_classes(tmp_path):
    touch(tmp_path, *(f"{kind}/{word}/{kind}_{word}.off" for kind in ("chair", "desk") for word in ("train", "test")))
    assert quietly(tmp_path) == {f"{k}_{word}": word for k in ("chair", "desk") for word in ("train", "test")}
    touch(tmp_path, "readme.off")
    with pytest.warns(UserWarning, match=r"1 mesh files are outside of its folders test, train .first readme.off"):
        assert len(found(tmp_path)) == 4


def test_one_deep_folder_called_test_decides_nothing(tmp_path):
    touch(tmp_path, *(f"scans/{i}.ply" for i in range(9)), "scans/test/x.ply")
    with pytest.warns(UserWarning, match="9 mesh files are outside of its folders test .* are split at random"):
        assert len(found(tmp_path)) == 10


def samples(root, *places):
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (40, 3)).astype(np.float32)
    for place in places:
        (root / place).mkdir(parents=True, exist_ok=True)
        np.savez(root / place / "points.npz", points=points, occupancies=points[:, 0] > 0)
    return root


def test_split_folders_of_samples(tmp_path):
    one = samples(tmp_path / "one", *(f"{word}/{i}" for word in ("Train", "test") for i in "ab"))
    assert quietly(one) == {"Train/a": "train", "Train/b": "train", "test/a": "test", "test/b": "test"}
    two = samples(tmp_path / "two", *(f"{word}/chair/{i}" for word in ("train", "TEST") for i in "ab"))
    assert quietly(two) == {"train/a": "train", "train/b": "train", "TEST/a": "test", "TEST/b": "test"}
    assert detect.discover(two)[0].paths["points.npz"].is_file()
    (two / "table").mkdir()
    with pytest.warns(UserWarning, match="1 folders are outside of its TEST, train .first table"):
        assert len(found(two)) == 4
    deep = touch(tmp_path / "deep", *(f"SdfSamples/{word}/chair/{i}.npz" for word in ("train", "test") for i in "ab"))
    assert quietly(deep) == {f"{word}/chair/{i}": word for word in ("train", "test") for i in "ab"}
    three = touch(tmp_path / "three", *(f"{word}/SdfSamples/s/c/{i}.npz" for word in ("train", "test") for i in "ab"))
    assert quietly(three) == {f"{word}/{i}": word for word in ("train", "test") for i in "ab"}


def test_one_file_among_many_tells_no_layout(tmp_path):
    one = touch(tmp_path / "one", *(f"{i}.ply" for i in range(9)), "a/b/model.obj")
    assert detect.layout(one) == "meshes" and len(quietly(one)) == 10
    two = samples(touch(tmp_path / "two", *(f"{i}.ply" for i in range(9))), "a/b")
    with pytest.warns(UserWarning, match="read as meshes, so 1 folders of Occupancy Networks' samples .first a/b"):
        assert len(found(two)) == 9
    three = touch(tmp_path / "three", *(f"chairs/{i}.ply" for i in range(9)), "chairs/train.lst")
    with pytest.warns(UserWarning, match="read as meshes, so 1 lists .* .first chairs/train.lst"):
        assert len(found(three)) == 9
    four = samples(touch(tmp_path / "four", "preview.ply"), *(f"chairs/{i}" for i in "abc"))
    with pytest.warns(UserWarning, match="read as onet, so 1 mesh files .first preview.ply"):
        assert list(found(four)) == ["a", "b", "c"]
    five = touch(tmp_path / "five", *(f"02691156/{i}/model.obj" for i in "abc"), "02691156/a/low.obj", "x.ply")
    with pytest.warns(UserWarning, match="read as shapenet, so 2 mesh files .first 02691156/a/low.obj"):
        assert list(found(five)) == ["a", "b", "c"]
    six = touch(tmp_path / "six", *(f"SdfSamples/s/c/{i}.npz" for i in "ab"), "SurfaceSamples/s/c/a.ply", "a.obj")
    with pytest.warns(UserWarning, match="read as deepsdf, so 1 mesh files .first a.obj"):
        assert list(found(six)) == ["a", "b"]


def test_shapes_missing_in_lists_are_reported(tmp_path):
    samples(tmp_path, "chairs/a", "chairs/b", "tables/c", "tables/d")
    (tmp_path / "chairs" / "Train.lst").write_bytes("\ufeffa\r\n".encode())
    (tmp_path / "chairs" / "test.lst").write_text("b")
    with pytest.warns(UserWarning, match=r"2 shapes are in none of its lists .first tables/c"):
        assert found(tmp_path) == {"a": "train", "b": "test"}
    other = touch(tmp_path / "other", *(f"SdfSamples/s/c/{i}.npz" for i in "ab"))
    (other / "train.json").write_text(json.dumps({"s": {"c": ["a"]}}))
    with pytest.warns(UserWarning, match="1 shapes are in none of its lists .first s/c/b"):
        assert found(other) == {"a": "train"}


# Lists


@pytest.mark.parametrize("name", ["a\u2028b", "a\x85b", "a\rb", "a\x1cb", "\u4e2d", os.fsdecode(b"\xff")])
def test_lists_hold_any_name(tmp_path, name):
    for path in (tmp_path / "train.lst", tmp_path / "train.json"):
        place = f"s/c/{name}"
        splits.write(path, [place, "s/c/other"])
        assert splits.read(path) == [place, "s/c/other"]


def test_marks_of_byte_order(tmp_path):
    for name, text in {"t.lst": "a\r\nb\r\n", "t.json": '{"s": {"c": ["a"]}}'}.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert splits.read(tmp_path / "t.lst") == ["a", "b"] and splits.read(tmp_path / "t.json") == ["s/c/a"]
    (tmp_path / "t.lst").write_bytes("a\nb\n".encode("utf-16-le"))  # without a mark
    with pytest.raises(FormatError, match="no name of a shape"):
        splits.read(tmp_path / "t.lst")


def test_the_first_word_of_a_lists_name_is_its_split(tmp_path):
    (tmp_path / "chairs_test_from_train.lst").write_text("a")
    (tmp_path / "sv2_Train.lst").write_text("b")
    (tmp_path / "valuable.lst").write_text("c")
    with pytest.warns(UserWarning, match="has the words test, train; it is taken for test"):
        assert splits.chosen(sorted(tmp_path.glob("*.lst"))) == {"a": "test", "b": "train", "c": "train"}


def test_the_camera_of_a_depth_image_may_have_a_mark_and_no_depth(tmp_path):
    from PIL import Image

    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "d.png")
    (tmp_path / "d.json").write_bytes(b'\xef\xbb\xbf{"fx": 4, "fy": 4, "cx": 2, "cy": 2}')
    assert depth.read(tmp_path / "d.png").camera.focal == (4, 4)
    (tmp_path / "d.json").write_text("[" * 100_000)
    with pytest.raises(FormatError, match="d.json"):
        depth.read(tmp_path / "d.png")


def test_files_of_any_name_are_shapes(tmp_path):
    names = [b"\xff.ply", b"a\nb.ply", "\u2028.ply".encode(), b"c.ply"]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    assert {os.fsencode(source.path.name) for source in detect.discover(tmp_path)} == set(names)
    assert [s.split for s in discover(tmp_path, 0.5, seed=1)] == [s.split for s in discover(tmp_path, 0.5, seed=1)]
    assert splits.drawn(["\ud800", "a"], 0.5, 0).keys() == {"\ud800", "a"}  # half of a pair, from JSON


# Written


@dataclasses.dataclass(frozen=True)
class Ball(Source):
    """Samples of a ball, without a mesh."""

    def shape(self, recipe, *, seed, frame, sign) -> Shape:
        rows = {"sdf": ([[1.0, 0, 0, 0.5]], [[0.0, 0, 0, -0.5]]), "occupancy": ([[0.5, 0, 0]], [[0.0, 0, 0]])}
        return Shape({name: tuple(map(np.float32, sides)) for name, sides in rows.items()}, Similarity())


NAMES = ["a/c/x", "b/c/x", "a_b/c/x", "a/b/c/x", "\u2028", os.fsdecode(b"\xff"), "a\nb", "a\\b", "...", "X", "x"]


@pytest.mark.parametrize("layout, frame", [("deepsdf", "sphere"), ("onet", "cube")])
def test_exports_hold_every_shape(tmp_path, layout, frame):
    sources = [Ball(name, "test" if i % 3 else "train") for i, name in enumerate(NAMES)]
    packed = store.build(tmp_path / "s", sources, Recipe(2, 2, surface=0), frame=frame, progress=False)
    assert packed.names == NAMES
    detect.export(packed, tmp_path / "out", layout)
    again = detect.discover(tmp_path / "out")
    assert len(again) == len(NAMES) and sum(source.split == "test" for source in again) == 7
    assert len({source.place.casefold() for source in again}) == len(NAMES)
    assert all(next(iter(source.paths.values())).is_file() for source in again)
    if layout == "onet":
        assert {source.place for source in again} >= {"a_c/x", "b_c/x"}
        assert onet_samples.read_metadata(tmp_path / "out" / "metadata.yaml")


@pytest.mark.parametrize("layout, frame", [("deepsdf", "sphere"), ("onet", "cube")])
def test_a_stopped_export_leaves_nothing_half(tmp_path, layout, frame, monkeypatch):
    packed = store.build(tmp_path / "s", [Ball("a"), Ball("b")], Recipe(2, 2, surface=0), frame=frame, progress=False)

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(splits, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            detect.export(packed, tmp_path / "out", layout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]
    detect.export(packed, tmp_path / "out", layout)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert before and not any(map(atomic.is_temporary, (tmp_path / "out").rglob("*")))
    with pytest.raises(OSError, match="not empty"):
        detect.WRITERS[layout](packed, tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_names_of_families_are_exported_as_they_are(tmp_path):
    packed = store.build(tmp_path / "s", [Procedural("mug", 0, 3)], Recipe(20, 20, surface=10), progress=False)
    detect.export(packed, tmp_path / "out", "deepsdf")
    assert (tmp_path / "out/SdfSamples/jonet/shapes/mug_0003.npz").is_file()


def test_links_to_folders_are_followed(tmp_path):
    disk, root = touch(tmp_path / "disk", "a/1.ply", "b/2.ply"), tmp_path / "data"
    touch(root, "train/3.ply")
    (root / "test").symlink_to(disk / "a")
    assert quietly(root) == {"1": "test", "3": "train"}
    for name, folder in (("again", root), ("round", root / "train")):  # lead back
        (root / "train" / name).symlink_to(folder)
    assert quietly(root) == {"1": "test", "3": "train"}
    touch(disk, *(f"synset/{i}/model.obj" for i in "abc"))
    (tmp_path / "shapenet").mkdir()
    (tmp_path / "shapenet/02691156").symlink_to(disk / "synset")
    assert detect.layout(tmp_path / "shapenet") == "shapenet" and set(quietly(tmp_path / "shapenet")) == set("abc")


def test_a_folder_that_cannot_be_searched_is_reported(tmp_path, monkeypatch):
    touch(tmp_path, "a.ply", "secret/b.ply")
    real = os.scandir

    def refusing(path="."):
        if os.path.basename(os.fspath(path)) == "secret":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.warns(UserWarning, match="secret: cannot be searched .Permission denied., so it is left out"):
        assert mesh_files.find(tmp_path) == [tmp_path / "a.ply"]


def test_hidden_files_belong_to_no_layout(tmp_path):
    ours = "d/c/{}.npz", "03001627/{}/points.npz", "03001627/{}/model.obj"
    hidden = (
        ("d/c/._{}.npz", "__MACOSX/c/._{}.npz"),
        (".git/{}/points.npz", "__MACOSX/{}/._points.npz"),
        (".old/{}/model.obj",),
    )
    for layout, own, others in zip(("deepsdf", "onet", "shapenet"), ours, hidden, strict=True):
        root = tmp_path / layout
        below = root / "SdfSamples" if layout == "deepsdf" else root
        touch(below, *(own.format(i) for i in "abc"))
        before = quietly(root)
        touch(below, *(other.format(i) for other in others for i in "abc"))
        assert detect.layout(root) == layout and quietly(root) == before and len(before) == 3
    touch(tmp_path / "onet", ".git/train.lst", "04000000/empty/.keep", "03001627/a/._x")
    assert quietly(tmp_path / "onet") == {
        name: split for name, split in found(tmp_path / "onet").items() if name in "abc"
    }


def test_meshes_of_a_run_are_no_shapes_whatever_it_lacks(tmp_path):
    touch(tmp_path, "a.ply", "b.ply", "run/meshes/test/a.ply", "job/a.ply", "job/manifest.1-2.csv")
    (tmp_path / "run/config.json").write_text('{"task": "deepsdf", "config": {}, "autotuned": {}, "done": {}}')
    (tmp_path / "job/job.json").write_text('{"verb": "reconstruct"}')
    assert set(quietly(tmp_path)) == {"a", "b"}
    (tmp_path / "run/config.json").write_text('{"model_type": "of somebody else"}')
    with pytest.warns(UserWarning, match="split at random"):
        assert len(found(tmp_path)) == 3


def test_a_folder_called_like_a_family_is_taken_with_a_word(tmp_path, monkeypatch):
    mesh_files.write(make("chair", 0, 0), tmp_path / "mug" / "a.ply")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="data is 'mug', which is taken for the folder of this name"):
        assert [source.name for source in Shapes().sources("mug", 0)] == ["a"]
    assert len(Shapes(train=2, test=1).sources("chair", 0)) == 3


def test_names_are_unique_whatever_files_are_called(tmp_path):
    touch(tmp_path, "a.obj", "a.ply", "a.obj.ply", "b/a.obj.off", "c.obj")
    assert set(quietly(tmp_path)) == {"a.obj", "a.ply", "a.obj.ply", "b/a.obj", "c"}
