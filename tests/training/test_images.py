"""Inputs of networks: renderings, voxels and near-surface points in a store, and batches of them."""

import dataclasses

import jax
import numpy as np
import pytest
import trimesh
from drawn_batches import KEY, run
from hypothesis import given, settings
from hypothesis import strategies as st

from jonet.data import sampling, store
from jonet.data.sampling import Recipe
from jonet.data.sources import Procedural
from jonet.errors import ConfigError, StoreError
from jonet.formats import onet_samples
from jonet.geometry import voxels
from jonet.geometry.mesh import Mesh
from jonet.geometry.rays import Camera
from jonet.rendering import network_views
from jonet.training.batches import BatchSpec, Resident, RowSampling, Streamed
from jonet.training.lanes import Lanes

pytestmark = pytest.mark.unoptimized

RECIPE = Recipe(0, 0, surface=400, occupancies=600, near_occupancies=500, voxels="ray", images=3, image_size=32)
LAYOUT = dataclasses.replace(RECIPE, near_occupancies=0)  # what its files hold
SHAPES = [Procedural("chair", seed=1, index=i, split="test" if i == 4 else "train") for i in range(5)]
INPUTS = {
    "points": (RowSampling("surface_points", 30), 0.005),
    "voxels": (RowSampling("voxels", 1), 0.0),
    "images": (RowSampling("images", 1), 0.0),
}


def ball(radius=0.5, middle=(0.0, 0.0, 0.0)) -> Mesh:
    t = trimesh.creation.icosphere(4, radius)
    return Mesh(t.vertices + middle, t.faces)


def build(folder, recipe=RECIPE, sources=SHAPES, **options):
    return store.build(folder, sources, recipe, frame="cube", progress=False, **options)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("images") / "chairs", seed=2)


# Renderings


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.floats(0.02, 1)] * 3), st.integers(0, 1000))
def test_nothing_is_cut_off(extents, seed):
    t = trimesh.creation.box(extents)
    mesh = Mesh(t.vertices + 7, t.faces)
    for camera in network_views.cameras(mesh, 4, 64, np.random.default_rng(seed)):
        pixels, depth = camera.project(mesh.vertices)
        assert (pixels > 0).all() and (pixels < 64).all() and (depth > 0).all()
        height = (camera.position - 7)[1] / np.linalg.norm(camera.position - 7)
        assert 25 <= np.degrees(np.arcsin(height)) <= 30


def test_a_ball_in_closed_form():
    """The disc that a ball covers, brighter towards the lamp, and gray where the lamp looks along the viewer."""
    distance, radius, size = 2.0, 0.5, 64
    camera = Camera.towards((0, 0, 1), (0, 0, 0), distance, network_views.FOCAL * size, (size, size))
    picture = network_views.render(ball(radius), [camera])[0]
    reach = network_views.FOCAL * size * np.tan(np.arcsin(radius / distance))
    rows, columns = np.indices(picture.shape) + 0.5 - size / 2
    away = np.hypot(rows, columns)
    assert (picture[away < reach - 1.5] < 240).all() and (picture[away > reach + 1.5] == 255).all()
    upper_left, lower_right = picture[22, 22], picture[42, 42]
    assert upper_left > lower_right + 40
    normal = np.array([0.0, 0.0, 1.0])
    lamp = np.array([-0.5, 1.0, 0.7]) / np.linalg.norm([0.5, 1.0, 0.7])
    linear = network_views.GRAY * (0.72 * normal @ lamp + 0.22)
    assert picture[31:33, 31:33].mean() == pytest.approx(255 * (1.055 * linear ** (1 / 2.4) - 0.055), abs=3)


def test_a_picture_depends_on_the_shape_and_not_on_its_place_size_or_winding():
    mesh = SHAPES[0].load()
    one = network_views.render(mesh, network_views.cameras(mesh, 2, 48, np.random.default_rng(3))).astype(int)
    for other in (Mesh(mesh.vertices * 20 + 300, mesh.faces), Mesh(mesh.vertices, mesh.faces[:, ::-1])):
        two = network_views.render(other, network_views.cameras(other, 2, 48, np.random.default_rng(3))).astype(int)
        assert (np.abs(one - two) > 2).mean() < 0.005
    assert np.abs(one[0] - one[1]).mean() > 2


def test_grazing_cameras_and_other_boxes_than_the_picture():
    """A shape that extends beyond the image is cut at its border; one outside leaves it white."""
    camera = Camera.towards((0, 0, 1), (0, 0, 0), 1.0, 64.0, (32, 48))
    assert (network_views.render(ball(0.9, (0, 0, -2)), [camera])[0] < 255).all(0).any()
    assert (network_views.render(ball(0.1, (5, 0, 0)), [camera])[0] == 255).all()


# Columns of a store


def test_columns_match_the_recipe(built):
    assert {name: packed.values.shape[1:] for name, packed in built.arrays.items()} == {
        "sdf": (4,),
        "occupancy": (3,),
        "occupancy_near": (3,),
        "surface_points": (3,),
        "surface_normals": (3,),
        "vertices": (3,),
        "faces": (3,),
        "voxels": (4096,),
        "images": (32, 32, 1),
        "cameras": (3, 4),
    }
    built.verify()
    assert [built.rows("images", i).shape[0] for i in range(5)] == [3] * 5
    assert built.image(0).shape == (32, 32, 3) and (built.image(0, 1) != built.image(0, 0)).any()


def test_voxels_are_those_of_the_stored_mesh(built):
    for i in (0, 3):
        grid, mesh = built.voxels(i), built.mesh(i)
        assert grid.dtype == bool and (grid >= voxels.voxelize(mesh, 32, "surface")).all()
        centers = (np.argwhere(voxels.voxelize(mesh, 32, "interior")) + 0.5) / 32 - 0.5
        deep = sampling.signed_distances(mesh, centers) < -0.05 / 32 * np.sqrt(3)  # whatever the jitter
        assert grid[tuple(((centers[deep] + 0.5) * 32).astype(int).T)].all()
        empty = (np.argwhere(~grid) + 0.5) / 32 - 0.5
        assert (sampling.signed_distances(mesh, empty) > -0.05 / 32 * np.sqrt(3)).all()


def test_images_show_the_stored_mesh_through_the_stored_cameras(built):
    lens = network_views.intrinsics(32)
    for i in (1, 4):
        points = built.surface(i)[0]
        for seen, camera in zip(built.rows("images", i), built.rows("cameras", i), strict=True):
            pixels = (points @ camera[:, :3].T + camera[:, 3]) @ lens.T
            column, row = np.floor(pixels[:, :2] / pixels[:, 2:]).astype(int).T
            assert (seen[row, column, 0] < 255).mean() > 0.9  # all but what lies at an edge, between two rays
            dark = np.zeros((34, 34), bool)
            dark[row + 1, column + 1] = True
            near = np.any([np.roll(dark, (a, b), (0, 1)) for a in (-1, 0, 1) for b in (-1, 0, 1)], 0)[1:-1, 1:-1]
            assert (near | (seen[..., 0] == 255)).mean() > 0.98


def test_near_points_hug_the_surface_and_know_their_side(built):
    packed = built.arrays["occupancy_near"]
    for i in range(2):
        points, (outside, inside) = built.rows("occupancy_near", i).astype(np.float64), packed.counts[i]
        distances = sampling.signed_distances(built.mesh(i), points)
        assert (distances[:outside] >= 0).all() and (distances[outside:] <= 0).all() and inside > 100
        assert np.abs(distances).max() < 0.06 and 0.003 < np.abs(distances).mean() < 0.01  # of N(0, 0.01²) at walls


def test_the_store_does_not_depend_on_how_it_is_built(tmp_path, built):
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        other = build(tmp_path / "s", sources=SHAPES, seed=2, executor=pool)
    assert all(other.index["arrays"][name] == about for name, about in built.index["arrays"].items())
    with pytest.raises(StoreError, match=r"recipe.images: 3 → 4.*"):
        build(tmp_path / "s", dataclasses.replace(RECIPE, images=4), seed=2)


def test_a_store_older_than_an_option_is_known_by_the_options_default(tmp_path):
    import json

    from jonet.data.store import _index_checksum

    recipe = Recipe(100, 20, surface=10)
    store.build(tmp_path / "s", SHAPES[:1], recipe, progress=False)
    index = json.loads((tmp_path / "s/index.json").read_text())
    for name in ("voxels", "images", "image_size", "sigma"):
        del index["settings"]["recipe"][name]
    index.pop("checksum")
    (tmp_path / "s/index.json").write_text(json.dumps(index | {"checksum": _index_checksum(index)}))
    assert store.build(tmp_path / "s", SHAPES[:1], recipe, progress=False).recipe == recipe
    with pytest.raises(StoreError, match="recipe.images: 0 → 2"):
        store.build(tmp_path / "s", SHAPES[:1], dataclasses.replace(recipe, images=2), progress=False)


def test_missing_images_and_other_frames_are_refused(tmp_path, built):
    with pytest.raises(ConfigError, match="frame 'cube', but the frame is 'sphere'"):
        store.build(tmp_path / "s", SHAPES, RECIPE)
    plain = build(tmp_path / "plain", Recipe(0, 0, surface=10), SHAPES[:1])
    with pytest.raises(StoreError, match="has no images; build it with a recipe that includes them"):
        plain.image(0)
    with pytest.raises(ConfigError, match="no array 'images' to draw from"):
        Resident(
            plain.arrays,
            Lanes.deal([0], 1, 0, 1),
            BatchSpec(RowSampling("surface_points", 4), inputs=RowSampling("images", 1)),
            KEY,
        )


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"voxels": "cubes"}, "must be 'none' or one of ray, fill, interior, surface"),
        ({"images": -1}, "images is -1"),
        ({"image_size": 4}, "image_size is 4"),
        ({"image_channels": 2}, "image_channels 2"),
        ({"sigma": 0.0}, "sigma is 0.0"),
    ],
)
def test_recipes_that_make_no_sense(wrong, match):
    with pytest.raises(ConfigError, match=match):
        Recipe(**wrong)


# Batches


def plan(kind, how="rows", array="occupancy", sides="any") -> BatchSpec:
    inputs, noise = INPUTS[kind]
    return BatchSpec(RowSampling(array, 40, how, sides), "occupancies", dataclasses.replace(inputs, how=how), noise)


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_have_the_form_that_networks_take(built, kind):
    for batch in run(Resident(built.arrays, Lanes.deal(range(5), 3, 0, 1), plan(kind), KEY), range(3)).values():
        assert batch.inputs.dtype == np.float32
        for s, i in enumerate(batch.index):
            if kind == "voxels":
                np.testing.assert_array_equal(batch.inputs[s], built.voxels(i))
            if kind == "images":
                views = np.stack([built.image(i, view) for view in range(3)]) / np.float32(255)
                assert (np.abs(batch.inputs[s] - views).max((1, 2, 3)) < 1e-6).sum() == 1
            if kind == "points":
                away = np.linalg.norm(batch.inputs[s][:, None] - built.surface(i)[0], axis=-1).min(1)
                assert batch.inputs.shape == (3, 30, 3) and 1e-4 < away.mean() < 0.02


@pytest.mark.parametrize("kind", INPUTS)
def test_streamed_inputs_equal_resident_ones(built, kind):
    dealt = Lanes.deal(range(5), 2, 0, 1)
    whole = run(Resident(built.arrays, dealt, plan(kind, "windows"), KEY), range(5))
    parts = run(Streamed(built.arrays, dealt, plan(kind, "windows"), KEY, chunk=2), range(5))
    for step, batch in whole.items():
        jax.tree.map(np.testing.assert_array_equal, batch, parts[step])


def test_every_view_is_drawn_and_a_shape_s_views_differ_by_epoch(built):
    seen = set()
    for batch in run(Resident(built.arrays, Lanes.deal([2], 1, 0, 1), plan("images"), KEY), range(20)).values():
        views = np.stack([built.image(2, view) for view in range(3)]) / np.float32(255)
        seen.add(int(np.abs(batch.inputs[0] - views).max((1, 2, 3)).argmin()))
    assert seen == {0, 1, 2}


def test_published_samplings_of_points(built):
    """uniform, equal and surface of the ablation, as draws."""
    dealt = Lanes.deal(range(5), 5, 0, 1)
    equal = run(Resident(built.arrays, dealt, plan("voxels", sides="half"), KEY), [0])[0]
    assert (equal.values.sum(1) == 20).all()
    near = run(Resident(built.arrays, dealt, plan("voxels", array="occupancy_near"), KEY), [0])[0]
    for s, i in enumerate(near.index):
        distances = sampling.signed_distances(built.mesh(i), near.points[s])
        np.testing.assert_array_equal(near.values[s] > 0, distances <= 0)
        assert np.abs(distances).max() < 0.06


def test_draws_of_whole_inputs_that_make_no_sense():
    with pytest.raises(ConfigError, match="a draw of 2 images; a step sees one of each shape"):
        RowSampling("images", 2)
    with pytest.raises(ConfigError, match="noise of 0.1 belongs to inputs that are points"):
        BatchSpec(RowSampling("occupancy", 4), "occupancies", RowSampling("voxels", 1), 0.1)
    for inputs, values in ((RowSampling("voxels", 1), "occupancies"), (RowSampling("surface_points", 5), "distances")):
        with pytest.raises(
            ConfigError, match="scale_augmentation of 0.1 belongs to occupancies, with inputs that are points"
        ):
            BatchSpec(RowSampling("occupancy", 4), values, inputs, scale_augmentation=0.1)
    with pytest.raises(ConfigError, match="importance_weighted points are drawn as 'half'"):
        BatchSpec(RowSampling("occupancy", 4, sides="any"), "occupancies", importance_weighted=True)


# The published layout


def test_voxels_and_views_leave_and_come_back(tmp_path, built):
    onet_samples.write(built, tmp_path / "out")
    again = build(tmp_path / "s", LAYOUT, onet_samples.discover(tmp_path / "out"), seed=2)
    assert sorted(name.split("/")[-1] for name in again.names) == sorted(built.names)
    for j, name in enumerate(again.names):
        i = built.names.index(name.split("/")[-1])
        np.testing.assert_array_equal(again.voxels(j), built.voxels(i))
        np.testing.assert_allclose(again.rows("cameras", j), built.rows("cameras", i), atol=1e-5)
        assert np.abs(again.image(j).astype(int) - built.image(i)).mean() < 3  # JPEG


def test_views_that_are_missing_are_listed(tmp_path, built):
    onet_samples.write(built, tmp_path / "out")
    sources = onet_samples.discover(tmp_path / "out")
    (tmp_path / "out" / sources[0].place / "img_choy2016/002.jpg").unlink()
    (tmp_path / "out" / sources[1].place / "model.binvox").unlink()
    with pytest.warns(UserWarning, match="skipped"):
        made = build(tmp_path / "s", LAYOUT, sources, seed=2)
    assert len(made) == 3 and "holds 2 views, but the recipe requires 3" in made.skipped[0]["reason"]
    assert "model.binvox" in made.skipped[1]["reason"]


def test_pictures_in_other_sizes():
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None], (64, 64))
    pictures = np.stack([np.repeat(ramp[..., None], 3, -1)] * 2)
    assert network_views.resized(pictures, 64) is pictures
    small = network_views.resized(pictures, 32)
    assert small.shape == (2, 32, 32, 3)
    np.testing.assert_allclose(small[0, 4:-4, 0, 0], np.arange(32)[4:-4] * 2 + 0.5, atol=1)
