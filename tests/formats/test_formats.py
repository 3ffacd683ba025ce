"""The authors' data layouts: read, packed and written, and refused if they are damaged."""

import dataclasses
import io
import json
import shutil
import tracemalloc
import zipfile

import numpy as np
import pytest
from paths import RECORDED
from PIL import Image

from jonet.data import splits, store
from jonet.data.sampling import Recipe
from jonet.data.sources import Procedural
from jonet.errors import ConfigError, FormatError, StoreError
from jonet.formats import deepsdf_samples, detect, labeled_points, onet_samples
from jonet.geometry import mesh_files
from jonet.geometry.mesh import Mesh, Similarity
from jonet.storage import archives

LAYOUTS = RECORDED / "layouts"
RECIPE = Recipe(near=400, uniform=101, surface=120, occupancies=333)
BRICK = "SdfSamples/solids/simple/brick.npz"


@pytest.fixture
def reading():
    return np.load(LAYOUTS / "layout_reading.npz")


def build(folder, sources, frame):
    return store.build(folder, sources, RECIPE, frame=frame, progress=False)


# DeepSDF


def test_deepsdf_data_in_the_published_layout(tmp_path):
    """Rows without a distance are dropped and counted; the others are there, and the surface in the samples' frame."""
    lying = np.load(LAYOUTS / "deepsdf" / BRICK)
    with pytest.warns(UserWarning, match="missing.npz"):
        split = tmp_path / "solids_train.json"
        split.write_text(json.dumps({"solids": {"simple": ["brick", "missing"]}}))
        packed = build(tmp_path / "store", detect.discover(LAYOUTS / "deepsdf", split=str(split)), "sphere")
    assert packed.names == ["brick"] and packed.splits.tolist() == ["train"]
    assert [entry["file"] for entry in packed.skipped] == ["SdfSamples/solids/simple/missing.npz"]
    for side, name in enumerate(("pos", "neg")):
        wanted = lying[name][np.isfinite(lying[name]).all(1)]
        got = np.split(packed.samples(0), packed.counts[0, :1])[side]
        assert sorted(map(tuple, got)) == sorted(map(tuple, wanted))
        assert not np.array_equal(got, wanted)  # the program's order, near samples before the others, is undone
    assert sum(np.isnan(lying[name]).any(1).sum() for name in ("pos", "neg")) == 3
    assert packed.index["sources"][0]["mark"]["dropped"] == 3
    assert packed.diagnoses == [None]
    points, normals = packed.surface(0)
    assert points.shape == (300, 3) and not len(normals)
    assert np.abs(points).max() <= 1 / 1.03 + 1e-6
    given = np.load(LAYOUTS / "deepsdf/NormalizationParameters/solids/simple/brick.npz")
    lines = (LAYOUTS / "deepsdf/SurfaceSamples/solids/simple/brick.ply").read_text().split("end_header\n")[1]
    own = np.loadtxt(lines.splitlines()[:300])
    np.testing.assert_allclose(points, (own + given["offset"]) * given["scale"], atol=1e-6)


def test_deepsdf_frame_and_names(tmp_path):
    with pytest.raises(StoreError, match="frame 'sphere'"), pytest.warns(UserWarning):
        build(tmp_path / "store", detect.discover(LAYOUTS / "deepsdf"), "cube")
    assert splits.short(["a/b/c", "a/b/d"]) == {"a/b/c": "c", "a/b/d": "d"}
    assert splits.short(["a/b/c", "a/e/c"]) == {"a/b/c": "b/c", "a/e/c": "e/c"}
    assert splits.short(["a/b/c"]) == {"a/b/c": "c"}


# Occupancy Networks


def test_onet_data_in_the_published_layout(tmp_path, reading):
    """What the published program read: points, their sides, surfaces, places."""
    with pytest.warns(UserWarning, match="4 shapes are in the lists of several splits"):
        sources = detect.discover(LAYOUTS / "onet")
    packed = build(tmp_path / "store", sources, "cube")
    assert packed.names == ["02691156/a1", "02691156/a2", "03001627/c1", "03001627/c2"]
    assert set(packed.splits) == {"train"}
    for i, name in enumerate(packed.names):
        points, inside = packed.occupancy(i)
        np.testing.assert_array_equal(packed.labeled(i)[1], inside)  # there is no mesh to tell the IoU by
        wanted = np.column_stack([reading[f"{name}/points_as_float32"], reading[f"{name}/occupancies"]])
        assert sorted(map(tuple, np.column_stack([points, inside]))) == sorted(map(tuple, wanted))
        lying = np.load(LAYOUTS / "onet" / name / "pointcloud.npz")
        for got, key in zip(packed.surface(i), ("points", "normals"), strict=True):
            np.testing.assert_array_equal(got, lying[key])
        np.testing.assert_allclose(packed.similarities[i](lying["loc"]), 0, atol=1e-12)
        np.testing.assert_allclose(packed.similarities[i].scale, 1 / lying["scale"], rtol=1e-12)


def test_onet_voxels_and_views(tmp_path, reading):
    for name in ("02691156/a1", "03001627/c2"):
        voxels = onet_samples.read_voxels(LAYOUTS / "onet" / name / "model.binvox")
        np.testing.assert_array_equal(voxels, reading[f"{name}/voxels"])
        onet_samples.write_voxels(voxels, tmp_path / "again.binvox")
        np.testing.assert_array_equal(onet_samples.read_voxels(tmp_path / "again.binvox"), voxels)
        views = onet_samples.read_views(LAYOUTS / "onet" / name / "img_choy2016")
        assert views.images.shape == (2, 137, 137, 3) and views.images.dtype == np.uint8
        for i in range(2):
            np.testing.assert_allclose(views.world[i], reading[f"{name}/world_mat_{i}"], rtol=1e-6)
    points = reading["projection/points"][0]
    views = onet_samples.read_views(LAYOUTS / "onet/02691156/a1/img_choy2016")
    seen = points @ views.world[0, :, :3].T + views.world[0, :, 3]
    np.testing.assert_allclose(seen, reading["projection/camera_space"][0], atol=1e-5)
    pixels = seen @ views.camera[0].T
    pixels = 2 * pixels[:, :2] / pixels[:, 2:] / 137 - 1
    np.testing.assert_allclose(pixels, reading["projection/pixels_minus1_to_1"][0], atol=1e-4)


@pytest.mark.parametrize("runs", [1, 254, 255, 256, 1000])
def test_long_runs_of_voxels(tmp_path, runs):
    voxels = (np.arange(16**3) // runs % 2 == 1).reshape((16,) * 3)
    onet_samples.write_voxels(voxels, tmp_path / "v.binvox")
    np.testing.assert_array_equal(onet_samples.read_voxels(tmp_path / "v.binvox"), voxels)


def test_onet_categories_and_lists(tmp_path):
    def names(**options):
        return [source.name for source in detect.discover(LAYOUTS / "onet", **options)]

    with pytest.warns(UserWarning, match="several splits"):
        assert names(category="chair") == names(category="03001627") == ["c1", "c2"]
        assert names(category="aeroplane") == ["a1", "a2"]  # a name of its metadata.yaml
    with pytest.raises(ConfigError, match="category 02958343 does not exist; there are 02691156, 03001627"):
        names(category="car")
    for word, content in {"train": "a1\nc1\n\n", "test": "03001627/c2"}.items():
        (tmp_path / f"{word}.lst").write_text(content)
    found = detect.discover(LAYOUTS / "onet", split=f"{tmp_path}/train.lst,{tmp_path}/test.lst")
    assert {source.place: source.split for source in found} == {
        "02691156/a1": "train",
        "03001627/c1": "train",
        "03001627/c2": "test",
    }


def test_onet_without_packing_or_lists(tmp_path):
    """User data: occupancies as plain bools, points as float32, no lists."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.5, 0.5, (200, 3)).astype(np.float32)
    for name in ("one", "two", "three"):
        (tmp_path / "shapes" / name).mkdir(parents=True)
        np.savez(tmp_path / "shapes" / name / "points.npz", points=points, occupancies=points[:, 0] > 0)
    found = detect.discover(tmp_path, test_fraction=0.4)
    assert sorted(source.split for source in found) == ["test", "train", "train"]
    (outside, inside), similarity, ordered = onet_samples.read_points(tmp_path / "shapes/one/points.npz")
    assert (outside[:, 0] <= 0).all() and (inside[:, 0] > 0).all() and len(outside) + len(inside) == 200 and ordered
    np.testing.assert_array_equal(similarity.as_array(), Similarity().as_array())


# Both ways


@pytest.mark.parametrize("layout, frame", [("deepsdf", "sphere"), ("onet", "cube")])
@pytest.mark.parametrize("names", ["flat", "nested"])
def test_export_reads_back_equal(tmp_path, layout, frame, names):
    sources = [Procedural("mug", 0, i, split) for i, split in enumerate(("train", "train", "test", "val"))]
    if names == "nested":
        sources = [Renamed(f"{'aabb'[i]}/{i}", source.split, source) for i, source in enumerate(sources)]
    packed = build(tmp_path / "store", sources, frame)
    detect.export(packed, tmp_path / "out", layout)
    assert detect.layout(tmp_path / "out") == layout
    again = build(tmp_path / "again", detect.discover(tmp_path / "out"), frame)
    assert again.names == packed.names and again.splits.tolist() == packed.splits.tolist()
    kinds = {"deepsdf": ("sdf",), "onet": ("occupancy",)}[layout] + ("surface_points", "surface_normals")
    for kind in kinds:
        np.testing.assert_array_equal(again.arrays[kind].counts, packed.arrays[kind].counts)
        np.testing.assert_array_equal(again.arrays[kind].values, packed.arrays[kind].values)
    for ours, theirs in zip(again.similarities, packed.similarities, strict=True):
        np.testing.assert_allclose(ours.as_array(), theirs.as_array(), rtol=1e-15)
    with pytest.raises(ConfigError, match="not empty"):
        detect.export(packed, tmp_path / "out", layout)
    other = {"deepsdf": "onet", "onet": "deepsdf"}[layout]
    with pytest.raises(ConfigError, match="in the frame"):
        detect.export(packed, tmp_path / "other", other)


@dataclasses.dataclass(frozen=True)
class Renamed(store.Source):
    of: store.Source = None

    def load(self):
        return self.of.load()


def test_export_as_the_programs_read_it(tmp_path):
    """The keys, types and lists that the published programs' readers expect."""
    cube = build(tmp_path / "cube", [Procedural("mug", 0, i) for i in range(2)], "cube")
    detect.export(cube, tmp_path / "onet", "onet")
    model = tmp_path / "onet/shapes/mug_0000"
    points = np.load(model / "points.npz")
    assert points["points"].dtype == np.float16 and points["occupancies"].dtype == np.uint8
    inside = np.unpackbits(points["occupancies"])[: len(points["points"])]
    assert inside.sum() == cube.occupancy(0)[1].sum()
    assert (tmp_path / "onet/shapes/train.lst").read_text().split("\n") == ["mug_0000", "mug_0001"]  # no '' at the end
    own = points["points"] * points["scale"] + points["loc"]
    np.testing.assert_allclose(cube.similarities[0](own), points["points"], atol=1e-6)
    voxels = onet_samples.read_voxels(model / "model.binvox")
    cells = np.clip((points["points"].astype(float) + 0.5) * 32, 0, 31).astype(int)
    assert (voxels[tuple(cells.T)] >= inside)[inside > 0].mean() > 0.95
    sphere = build(tmp_path / "sphere", [Procedural("mug", 0, i) for i in range(2)], "sphere")
    detect.export(sphere, tmp_path / "deepsdf", "deepsdf")
    samples = np.load(tmp_path / "deepsdf" / "SdfSamples/jonet/shapes/mug_0001.npz")
    assert (samples["pos"][:, 3] > 0).all() and (samples["neg"][:, 3] <= 0).all() and samples["pos"].dtype == np.float32
    assert json.loads((tmp_path / "deepsdf/train.json").read_text()) == {"jonet": {"shapes": ["mug_0000", "mug_0001"]}}
    surface = mesh_files.read(tmp_path / "deepsdf/SurfaceSamples/jonet/shapes/mug_0001.ply")
    scales = np.load(tmp_path / "deepsdf/NormalizationParameters/jonet/shapes/mug_0001.npz")
    normalized = (surface.vertices + scales["offset"]) * scales["scale"]
    np.testing.assert_allclose(normalized, sphere.surface(1)[0], atol=1e-7)


# Raw ShapeNet and plain folders


def shapenet(root, version):
    for place in ("02691156/x1", "02691156/x2", "03001627/y1", "03001627/x2"):
        file = root / place / ("model.obj" if version == 1 else "models/model_normalized.obj")
        vertices, faces = _box()
        mesh_files.write(Mesh(vertices * [1, 1, 1 + len(list(root.rglob("*.obj")))], faces), file)
        (file.parent / "model_normalized.json").write_text("{}")
    return root


def _box():
    corners = np.array(np.meshgrid([0, 1], [0, 1], [0, 2], indexing="ij"), float).reshape(3, -1).T
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    return corners, [t for a, b, c, d in quads for t in ([a, b, c], [a, c, d])]


@pytest.mark.parametrize("version", [1, 2])
def test_raw_shapenet(tmp_path, version):
    root = shapenet(tmp_path / "ShapeNetCore", version)
    assert detect.layout(root) == "shapenet"
    found = detect.discover(root, test_fraction=0.25)
    assert [source.name for source in found] == ["02691156/x1", "02691156/x2", "03001627/x2", "03001627/y1"]
    assert sorted(source.split for source in found) == ["test", "train", "train", "train"]
    assert [source.name for source in detect.discover(root, category="chair")] == ["x2", "y1"]
    assert found[0].load().watertight
    split = tmp_path / "sv2_train.json"
    split.write_text(json.dumps({"ShapeNetV2": {"02691156": ["x1", "x2", "gone"], "03001627": ["y1"]}}))
    (tmp_path / "test.lst").write_text("03001627/x2\n")
    listed = detect.discover(root, split=f"{split}, {tmp_path}/test.lst", category="02691156,chair")
    assert {source.name: source.split for source in listed} == {
        "02691156/x1": "train",
        "02691156/x2": "train",
        "02691156/gone": "train",
        "03001627/y1": "train",
        "03001627/x2": "test",
    }
    with pytest.warns(UserWarning, match="no such file"):
        packed = build(tmp_path / "store", listed, "sphere")
    assert len(packed) == 4 and len(packed.skipped) == 1
    (tmp_path / "vague.lst").write_text("x2")
    with pytest.raises(FormatError, match="x2, which could be 02691156/x2 or 03001627/x2"):
        detect.discover(root, split=str(tmp_path / "vague.lst"))


def test_plain_folders_take_lists_too(tmp_path):
    for name in ("a", "b", "c"):
        mesh_files.write(Mesh(*_box()), tmp_path / "meshes" / f"{name}.ply")
    (tmp_path / "train.lst").write_text("a\nb")
    found = detect.discover(tmp_path / "meshes", split=str(tmp_path / "train.lst"))
    assert [(source.name, source.split) for source in found] == [("a", "train"), ("b", "train")]
    with pytest.raises(ConfigError, match="no category"):
        detect.discover(tmp_path / "meshes", category="chair")


# What is wrong


def refused(path, read, said):
    """A typed error that names the file and its cause, while little memory is taken."""
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=said) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 27
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


def npy(shape, kind, content=b""):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": kind, "fortran_order": False, "shape": shape})
    return out.getvalue() + content


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_damaged_and_hostile_samples(tmp_path):
    path, good = tmp_path / "x.npz", (LAYOUTS / "deepsdf" / BRICK).read_bytes()
    neg = npy((1, 4), "<f4", bytes(16))

    def check(said, read=deepsdf_samples.read_samples):
        refused(path, read, said)

    check("no such file")
    for content, said in [
        (b"", "damaged or cut off"),
        (good[: len(good) // 2], "damaged or cut off"),
        (good[:-30], "damaged or cut off"),
        (b"ply\nformat ascii 1.0\n", "damaged or cut off"),
    ]:
        path.write_bytes(content)
        check(said)
    flipped = bytearray(good)
    flipped[2000] ^= 1
    path.write_bytes(flipped)
    check("CRC")
    np.savez(path, pos=np.zeros((3, 4), np.float32))
    check("lacks neg; it holds pos")
    np.savez(path, pos=np.zeros((3, 3)), neg=np.zeros((3, 4)))
    check("rows of 4 numbers")
    np.savez(path, pos=np.array([{}, []], object), neg=np.zeros((3, 4)))
    check("must be of numbers")
    np.savez(path, pos=np.array(["a"]), neg=np.zeros((3, 4)))
    check("must be of numbers")
    zipped(path, {"pos.npy": npy((10**12, 4), "<f4", bytes(64)), "neg.npy": neg})
    check("claims shape")
    zipped(path, {"pos.npy": npy((-1, 4), "<f4", bytes(64)), "neg.npy": neg})
    check("damaged|claims shape")
    zipped(path, {"pos.npy": b"\x93NUMPY\x01\x00\xff\xff{", "neg.npy": neg})
    check("damaged")
    zipped(path, {"pos.npy": npy((10**8,), "|u1") + bytes(10**8), "neg.npy": neg}, zipfile.ZIP_DEFLATED)
    check("claims to unpack")


def test_damaged_lists_and_scales(tmp_path):
    path = tmp_path / "train.json"
    for content, said in [
        ("", "not JSON"),
        ("[1]", "names and values"),
        ('{"a": {"b": "chair"}}', "no split file"),
        ('{"a": ["b"]}', "no split file"),
        ('{"a": {"b": [1]}}', "no split file"),
        ('{"a": {"b": []}}', "names no shapes"),
        ('{"a": {"b": ["../../../secret"]}}', "no name of a shape"),
        ("[" * 100_000, "not JSON"),
    ]:
        path.write_text(content)
        refused(path, splits.read, said)
    path.write_bytes(b"\xff\xfe\x00")
    refused(path, splits.read, "cannot be read as text")
    (tmp_path / "train.lst").write_text("\n/etc/passwd\n")
    refused(tmp_path / "train.lst", splits.read, "no name of a shape")
    scales = tmp_path / "s.npz"
    for content in ({"offset": np.zeros(2), "scale": 1.0}, {"offset": np.zeros(3), "scale": [0.0]}):
        np.savez(scales, **content)
        refused(scales, deepsdf_samples.read_similarity, "offset must be|scale above 0")
    with (tmp_path / "huge.lst").open("wb") as file:
        file.truncate(archives.TEXT + 1)
    refused(tmp_path / "huge.lst", splits.read, "at most")


def test_damaged_occupancies_voxels_and_views(tmp_path):
    path = tmp_path / "points.npz"
    np.savez(path, points=np.zeros((20, 3)), occupancies=np.zeros(2, np.uint8))
    refused(path, onet_samples.read_points, "2 occupancies, packed or not")
    np.savez(path, points=np.zeros((20, 3)), occupancies=np.zeros(3, np.uint8), scale=0.0)
    refused(path, onet_samples.read_points, "scale one above 0")
    for wrong in (0.5, 2, -1, np.nan, "1"):
        np.savez(path, points=np.zeros((20, 3)), occupancies=np.full(20, wrong), loc=np.zeros(3), scale=1.0)
        for reader in (onet_samples.read_points, labeled_points.read):
            refused(path, reader, "occupancies must be 0 .outside. or 1 .inside.|must be of numbers")
    cloud = tmp_path / "pointcloud.npz"
    np.savez(cloud, points=np.zeros((20, 3)), normals=np.zeros((19, 3)))
    refused(cloud, onet_samples.read_cloud, "19 normals")
    voxels, header = tmp_path / "model.binvox", "#binvox 1\ndim {0} {0} {0}\ntranslate 0 0 0\nscale 1\ndata\n"
    for size, body in [(32, b""), (10**9, b"\x01\xff"), (2, b"\x01\x07"), (2, b"\x01"), (2, b"\x01\xff")]:
        voxels.write_bytes(header.format(size).encode() + body)
        refused(voxels, onet_samples.read_voxels, "no .binvox file, or damaged")
    views = tmp_path / "img_choy2016"
    shutil.copytree(LAYOUTS / "onet/02691156/a1/img_choy2016", views)
    image = (views / "001.jpg").read_bytes()
    (views / "001.jpg").write_bytes(image[:300])
    refused(views, onet_samples.read_views, "cannot be read as an image")
    (views / "001.jpg").unlink()
    assert onet_samples.read_views(views).images.shape[0] == 1
    (tmp_path / "metadata.yaml").write_text("a: [1, 2]")
    refused(tmp_path / "metadata.yaml", onet_samples.read_metadata, "no list of categories")


def test_one_bad_file_is_listed(tmp_path):
    """Damaged and missing instances are entries in the store, and no more."""
    root = tmp_path / "onet"
    shutil.copytree(LAYOUTS / "onet", root)
    (root / "02691156/a1/points.npz").write_bytes(b"PK\x03\x04nonsense")
    (root / "03001627/c1/points.npz").unlink()
    with pytest.warns(UserWarning):
        packed = build(tmp_path / "store", detect.discover(root), "cube")
    assert packed.names == ["02691156/a2", "03001627/c2"]
    reasons = {entry["file"]: entry["reason"] for entry in packed.skipped}
    assert "damaged" in reasons["02691156/a1/points.npz"] and "no such file" in reasons["03001627/c1/points.npz"]
    with pytest.warns(UserWarning):
        again = build(tmp_path / "store", detect.discover(root), "cube")
    assert len(again) == 2
    shutil.copy(LAYOUTS / "onet/02691156/a2/points.npz", root / "02691156/a1/points.npz")
    with pytest.raises(StoreError, match="changed"), pytest.warns(UserWarning):
        build(tmp_path / "store", detect.discover(root), "cube")


def test_views_have_the_matrices_of_their_numbers(tmp_path):
    for i in range(11):
        Image.fromarray(np.full((4, 4, 3), 20 * i, np.uint8)).save(tmp_path / f"{i}.jpg")
    matrices = {f"world_mat_{i}": np.eye(4)[:3] * i for i in range(11)}
    np.savez(tmp_path / "cameras.npz", **matrices, **{f"camera_mat_{i}": np.eye(3) for i in range(11)})
    views = onet_samples.read_views(tmp_path)
    np.testing.assert_array_equal(views.world[:, 0, 0], range(11))
    np.testing.assert_allclose(views.images.mean((1, 2, 3)), 20 * np.arange(11), atol=1)
