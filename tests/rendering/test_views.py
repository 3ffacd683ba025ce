"""Cameras, rays, the visible shell, images and voxel grids."""

import os
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from paths import RECORDED

from jonet.errors import InputError, MeshError
from jonet.geometry import voxels
from jonet.geometry.mesh import Mesh, normalize
from jonet.geometry.mesh_files import read
from jonet.geometry.rays import VIEWS, Camera, Scene, cast, direction
from jonet.geometry.shell import shell, spiral, visible
from jonet.rendering import sheets
from jonet.rendering.shading import shade

VOXELS = np.load(RECORDED / "views" / "voxelisation.npz")
DATA = os.environ.get("JONET_DATA")


def sphere(radius=0.8, center=(0, 0, 0)):
    ball = trimesh.creation.icosphere(subdivisions=4, radius=radius)
    return Mesh(ball.vertices + center, ball.faces, name="ball")


def box(size=(1, 1, 1), center=(0, 0, 0)):
    solid = trimesh.creation.box(size)
    return Mesh(solid.vertices + center, solid.faces, name="box")


def join(*meshes):
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.faces + s for m, s in zip(meshes, starts, strict=False)]),
        name="parts",
    )


def turned(mesh):
    return Mesh(mesh.vertices, mesh.faces[:, ::-1], name=mesh.name)


# cameras


@pytest.mark.parametrize("orthographic", [False, True])
@pytest.mark.parametrize("view", [*VIEWS, (200.0, -35.0), (10.0, -90.0)])
def test_a_pixels_ray_projects_onto_the_pixel(view, orthographic):
    camera = Camera.towards(direction(view), (0.3, -0.2, 0.1), 3.0, 40.0, (5, 7), orthographic)
    np.testing.assert_allclose(camera.rotation @ camera.rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(camera.rotation) > 0
    origins, directions = camera.rays()
    pixels, depth = camera.project(origins + 2.5 * directions)
    rows, columns = np.indices((5, 7)) + 0.5
    np.testing.assert_allclose(pixels, np.stack([columns, rows], -1), atol=1e-9)
    np.testing.assert_allclose(depth, 2.5)
    np.testing.assert_allclose(camera.unproject(np.full((5, 7), 2.5)), origins + 2.5 * directions)


def test_up_is_up_and_right_is_right_seen_from_the_front():
    camera = Camera.framing(box().vertices, "front")
    (x0, y0), (x1, _), (_, y2) = camera.project([[0, 0, 0], [0.2, 0, 0], [0, 0.2, 0]])[0]
    assert x1 > x0 and y2 < y0
    (x0, _), (x1, _) = Camera.framing(box().vertices, "right").project([[0, 0, 0], [0, 0, 0.2]])[0]
    assert x1 < x0  # from the side +x, the front points to the left
    (_, y0), (_, y1) = Camera.framing(box().vertices, "top").project([[0, 0, 0], [0, 0, 0.2]])[0]
    assert y1 > y0  # from above, the front points to the picture's foot


@settings(max_examples=20, deadline=None)
@given(
    points=hnp.arrays(float, (9, 3), elements=st.floats(-50, 50), unique=True),
    azimuth=st.floats(-180, 180),
    elevation=st.floats(-90, 90),
)
def test_framing_holds_all_points_and_fills_the_picture(points, azimuth, elevation):
    points[1] = points[0] + 1.0
    camera = Camera.framing(points, (azimuth, elevation), (60, 80), margin=0.1)
    pixels, depth = camera.project(points)
    assert (depth > 0).all()
    fraction = np.abs(pixels - [40, 30]) / [40, 30]
    assert fraction.max() <= 0.8 + 1e-6 and fraction.max() > 0.7


def test_an_unknown_view_is_refused():
    with pytest.raises(InputError, match="three-quarter"):
        shade(box(), view="sideways")


# rays


def test_depth_of_a_sphere():
    camera = Camera.towards((0, 0, 1), (0, 0, 0), 3.0, 100.0, (64, 64))
    hits = cast(sphere(), camera)
    origins, directions = camera.rays()
    length = np.linalg.norm(directions, axis=-1)
    b = 3.0 / length
    root = b**2 - (9 - 0.8**2)
    exact = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / length, np.inf)
    middle = np.isfinite(exact) & (root > 0.05)
    np.testing.assert_allclose(hits.depth[middle], exact[middle], atol=4e-3)
    assert np.isinf(hits.depth[~np.isfinite(exact)]).all() and (hits.face[~np.isfinite(exact)] == -1).all()
    assert (np.einsum("hwc,hwc->hw", hits.normals, directions)[middle] < 0).all()
    np.testing.assert_allclose(camera.unproject(hits.depth)[middle], hits.points[middle], atol=1e-9)
    corners = sphere().corners[hits.face[middle]]
    np.testing.assert_allclose(
        np.einsum("nk,nkc->nc", hits.barycentric[middle], corners), hits.points[middle], atol=1e-5
    )


def test_rays_do_not_lose_digits_far_from_the_origin():
    offset = np.array([1e6, -2e6, 5e5])
    near = cast(sphere(), Camera.framing(sphere().vertices, shape=(32, 32)))
    there = sphere(center=offset)
    far = cast(there, Camera.framing(there.vertices, shape=(32, 32)))
    np.testing.assert_allclose(far.depth, near.depth, atol=1e-5)


def test_blocked_knows_how_far_it_looks():
    scene = Scene(box())
    origins, directions = np.array([[0, 0, 3.0]] * 2), np.array([[0, 0, -1.0], [0, 0, 1.0]])
    assert scene.blocked(origins, directions).tolist() == [True, False]
    assert scene.blocked(origins, directions, reach=2.4).tolist() == [False, False]
    assert scene.blocked(origins, directions, reach=2.6).tolist() == [True, False]


def test_nothing_to_see_is_an_error():
    with pytest.raises(MeshError, match="no faces"):
        shade(Mesh(np.zeros((3, 3)), np.zeros((0, 3), int)))


# the visible shell


@pytest.mark.parametrize("wound", [lambda m: m, turned])
def test_shell_of_a_sphere_looks_outwards_however_it_is_wound(wound):
    seen = shell(wound(sphere()), views=20, resolution=60)
    np.testing.assert_allclose(np.linalg.norm(seen.points, axis=1), 0.8, atol=4e-3)
    assert (np.einsum("nc,nc->n", seen.points, seen.normals) > 0.79).all()
    assert seen.points.dtype == seen.normals.dtype == np.float32
    assert seen.statistics["observations"] == len(seen.points)
    assert seen.statistics["two_sided_triangles"] == 0 and not seen.statistics["rejected"]
    expected = 20 * np.pi * (0.8 * 30) ** 2  # pixels of a disc, in every orthographic view
    assert abs(len(seen.points) / expected - 1) < 0.02


def test_the_shell_excludes_inner_surfaces():
    seen = shell(join(sphere(0.8), turned(sphere(0.4))), views=20, resolution=60)
    assert np.linalg.norm(seen.points, axis=1).min() > 0.7


def test_shell_rejects_a_single_sheet():
    sheet = Mesh([[-0.6, 0, -0.6], [0.6, 0, -0.6], [0.6, 0, 0.6], [-0.6, 0, 0.6]], [[0, 1, 2], [0, 2, 3]])
    statistics = shell(sheet, views=20, resolution=60).statistics
    assert statistics["rejected"] and statistics["two_sided_triangles"] == 1
    # the spiral climbs: ten views from below, then ten from above, each of which contradicts the first
    assert 0.45 < statistics["two_sided_observations"] < 0.55


def test_spiral_covers_the_sphere():
    directions = spiral(100)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    np.testing.assert_allclose(directions.mean(0), 0, atol=0.02)
    nearest = np.sort(directions @ directions.T, axis=1)[:, -2]
    assert np.degrees(np.arccos(nearest)).min() > 14


def test_visible_points_and_flipped_normals():
    camera = Camera.framing(box().vertices, shape=(20, 20))
    points, normals, away = visible(box(), camera)
    assert not away.any() and visible(turned(box()), camera)[2].all()
    np.testing.assert_allclose(np.abs(points).max(1), 0.5, atol=1e-5)
    assert (np.einsum("nc,nc->n", normals, camera.position - points) > 0).all()


# pictures


def test_a_picture_is_white_around_a_shape_and_repeats():
    image = shade(sphere(), 64)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert (image[[0, 0, -1, -1], [0, -1, 0, -1]] > 250).all()
    middle = image[28:36, 28:36].reshape(-1, 3).mean(0)
    assert middle[2] > middle[1] > middle[0]  # blue
    np.testing.assert_array_equal(image, shade(sphere(), 64))
    assert image[8:24].min() > 30 and image[20:26, 32].mean() > image[50:54, 32].mean()  # light falls from above


def test_a_transparent_picture_over_white_is_the_white_one():
    white = shade(sphere(), 48)
    clear = shade(sphere(), 48, background="transparent")
    assert clear.shape == (48, 48, 4) and clear[0, 0, 3] == 0 and clear[24, 24, 3] == 255
    solid = clear[..., 3] == 255
    assert np.abs(clear[solid][:, :3].astype(int) - white[solid]).max() <= 1
    shadow = (clear[..., 3] > 8) & ~solid
    assert shadow.any() and not (shade(sphere(), 48, background="transparent", ground=False)[..., 3][30:, :5]).any()
    with pytest.raises(InputError, match="transparent"):
        shade(sphere(), 48, background="black")
    with pytest.raises(InputError, match=r"\[3\] or \[2562, 3\], but has \[4, 3\]"):
        shade(sphere(), 48, color=np.zeros((4, 3)))


def test_vertex_colors_and_a_common_frame():
    mesh = box()
    colors = np.where(mesh.vertices[:, :1] > 0, [[0.8, 0.05, 0.05]], [[0.05, 0.05, 0.8]])
    image = shade(mesh, 64, "front", color=colors).astype(int)
    left, right = image[32, 16], image[32, 48]
    assert left[2] > left[0] and right[0] > right[2]
    small = shade(box((0.2, 0.2, 0.2)), 64, frame=mesh.vertices, ground=False)
    covered = (small < 250).any(-1).sum() / (shade(mesh, 64, ground=False) < 250).any(-1).sum()
    assert 0.02 < covered < 0.08  # a fifth of the side is a twenty-fifth of the picture


@pytest.mark.parametrize("mesh", [turned(box()), Mesh([[0, 0, 0], [1, 0, 0], [0, 0, 1]], [[0, 1, 2]], name="sheet")])
def test_inside_out_and_open_meshes_are_shown(mesh):
    image = shade(mesh, 64, ground=False)
    assert (image < 230).any(-1).mean() > 0.05
    assert image.min() > 10  # both sides take light: no black holes


def test_a_sheet_has_a_place_for_every_picture():
    tile = np.full((40, 50, 3), 200, np.uint8)
    page = sheets.sheet([tile] * 5, 3, gap=4)
    assert page.shape == (2 * 44 + 4, 3 * 54 + 4, 3)
    assert (page == 200).all(-1).sum() == 5 * 40 * 50
    labeled = sheets.sheet([tile] * 5, 3, ["one", "two", 3, "a name that is far too long", "<five>"], gap=4)
    assert labeled.shape[0] > page.shape[0] and (labeled == 200).all(-1).sum() >= 5 * 40 * 50
    assert sheets.sheet([np.dstack([tile, 0 * tile[..., :1]])], 3, gap=4).min() == 255  # transparent is white
    with pytest.raises(InputError, match="at least one"):
        sheets.sheet([], 3)


# voxels


@pytest.mark.parametrize("method", [method for method in voxels.METHODS if method != "random"])
@pytest.mark.parametrize("name", ["icosphere", "rotated_box", "torus"])
def test_grids_are_the_recorded_ones(name, method):
    class Noise:
        def random(self, shape):
            return VOXELS["noise"].reshape(shape)

    mesh = Mesh(VOXELS[f"{name}/vertices"], VOXELS[f"{name}/faces"])
    np.testing.assert_array_equal(voxels.voxelize(mesh, 16, method, Noise()), VOXELS[f"{name}/{method}"].astype(bool))


@pytest.mark.parametrize(("name", "size"), [("icosphere", (914, 1824)), ("rotated_box", (688, 1372))])
def test_blocks_have_the_recorded_size(name, size):
    mesh = voxels.blocks(VOXELS[f"{name}/ray"])
    assert (len(mesh.vertices), len(mesh.faces)) == size


@settings(max_examples=20, deadline=None)
@given(grid=hnp.arrays(bool, (4, 4, 4)))
def test_blocks_enclose_the_cells_that_are_set(grid):
    if grid.any():
        mesh = voxels.blocks(grid)
        np.testing.assert_allclose(mesh.volume, grid.mean(), atol=1e-9)
        np.testing.assert_array_equal(
            mesh.bounds, [np.argwhere(grid).min(0) / 4 - 0.5, np.argwhere(grid).max(0) / 4 - 0.25]
        )
        edges = np.sort(mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
        assert (np.unique(edges, axis=0, return_counts=True)[1] % 2 == 0).all()  # closed


def test_cells_of_a_box_in_closed_form():
    mesh = box((0.5, 0.25, 0.75))
    inside = voxels.voxelize(mesh, 32, "interior")
    assert inside.sum() == 16 * 8 * 24 and inside[8:24, 12:20, 4:28].all()
    touched = voxels.voxelize(box((0.51, 0.26, 0.76)), 32, "surface")
    assert touched.sum() == 18 * 10 * 26 - 16 * 8 * 24
    lopsided = voxels.voxelize(box((0.2, 0.2, 0.2), (0.3, -0.3, 0.1)), 32)
    x, y, z = np.argwhere(lopsided).mean(0) / 32 - 0.5 + 1 / 64
    np.testing.assert_allclose([x, y, z], [0.3, -0.3, 0.1], atol=1 / 32)
    with pytest.raises(InputError, match="surface"):
        voxels.voxelize(mesh, 32, "solid")


def test_cells_have_one_random_point_each():
    """Of a slab inside a layer of cells, 0.6 of a cell thick, beside a mesh that touches none of them."""

    def inside(points):
        return np.abs(32 * points[:, 1] - 0.5) < 0.3

    def layer(method, rng=None):
        grid = voxels.voxelize(Mesh(np.full((3, 3), 5.0), [[0, 1, 2]]), 32, method, rng, inside)
        assert not grid[:, np.arange(32) != 16].any()
        return grid[:, 16]

    assert layer("ray", np.random.default_rng(0)).all() and layer("random").all()  # the centers are inside
    assert layer("random", np.random.default_rng(0)).mean() == pytest.approx(0.6, abs=3 * (0.6 * 0.4) ** 0.5 / 32)
    mesh = box((0.5, 0.25, 0.75))
    grids = [voxels.voxelize(mesh, 32, "random", np.random.default_rng(seed)) for seed in (0, 0)]
    assert (grids[0] >= voxels.voxelize(mesh, 32, "surface")).all() and (grids[0] == grids[1]).all()


@pytest.mark.skipif(not DATA, reason="JONET_DATA names no folder of meshes")
def test_real_meshes_are_seen():
    for path in sorted(Path(DATA, "meshes").glob("*/test/*.ply"))[::8]:
        mesh, _ = normalize(read(path), "cube")
        assert 0.02 < (shade(mesh, 48, ground=False) < 240).any(-1).mean() < 0.9, path
        assert 50 < voxels.voxelize(mesh, 32).sum() < 15000, path


# pictures of anything


def test_points_are_shown_as_balls():
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0.0]])
    mesh = sheets.balls(points, 0.1)
    assert len(mesh.faces) == 60 and mesh.volume > 0
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices.reshape(3, 12, 3) - points[:, None], axis=-1), 0.1)
    assert len(sheets.balls(np.random.default_rng(0).normal(size=(1000, 3)), 0.1, limit=100).faces) == 2000


@pytest.mark.parametrize(
    "thing",
    [
        box(),
        np.random.default_rng(0).normal(size=(30, 3)),
        np.ones((4, 4, 4), bool),
        np.full((20, 60, 3), 40, np.uint8),
    ],
    ids=["mesh", "points", "voxels", "picture"],
)
def test_anything_has_a_picture(thing):
    image = sheets.picture(thing, 64)
    assert image.shape[:2] == (64, 64) and image.dtype == np.uint8
    assert (image[..., :3] < 200).any()


def test_what_has_no_picture_is_refused():
    with pytest.raises(InputError, match=r"float64 \[4, 4, 4\]"):
        sheets.picture(np.zeros((4, 4, 4)))


def test_a_banner_has_a_row_a_label():
    page = sheets.banner({"truth": [box(), sphere()], "rebuilt": [sphere(), box()]}, 64)
    assert page.shape[0] == 128 and page.shape[1] > 128
    assert sheets.banner({"truth": [box()]}, 64, labels=False).shape == (64, 64, 3)
    with pytest.raises(InputError, match=r"equal length, but got \[1, 2\]"):
        sheets.banner({"truth": [box()], "rebuilt": [box(), box()]})
