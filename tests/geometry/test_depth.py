"""Depth views: closed forms of a sphere, free space, noise, depth images of cameras, and invalid files."""

import dataclasses
import json

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jonet.errors import FormatError, InputError
from jonet.geometry import depth
from jonet.geometry.mesh import Mesh
from jonet.geometry.rays import Camera

RADIUS = 0.7


@pytest.fixture(scope="module")
def ball():
    made = trimesh.creation.icosphere(5, RADIUS)
    return Mesh(made.vertices, made.faces)


def camera(distance=2.5, back=(0.3, 0.4, 0.8), pixels=64, orthographic=False):
    focal = pixels / 2 if orthographic else 1.2 * pixels
    return Camera.towards(back, (0, 0, 0), distance, focal, (pixels, pixels), orthographic)


def to_lines(points, eye):
    """Distances of the center from the lines through `eye` and points."""
    direction = points - eye
    return np.linalg.norm(np.cross(direction, eye), axis=1) / np.linalg.norm(direction, axis=1)


@pytest.mark.parametrize("orthographic", [False, True])
def test_a_sphere_is_seen_from_outside(ball, orthographic):
    one = camera(orthographic=orthographic)
    seen = depth.view(ball, one)
    points, normals = seen.surface()
    assert len(points) > 500 and seen.normals.shape == (64, 64, 3)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), RADIUS, rtol=2e-3)
    np.testing.assert_allclose(normals, points / RADIUS, atol=0.05)  # flat faces
    back = -one.rotation[2]
    assert (points @ back > (-0.01 if orthographic else RADIUS**2 / 2.5 - 0.01)).all()  # nothing beyond the horizon


def test_inside_out_looks_the_same(ball):
    turned = Mesh(ball.vertices, ball.faces[:, ::-1])
    np.testing.assert_allclose(
        depth.view(turned, camera()).surface()[1], depth.view(ball, camera()).surface()[1], atol=1e-6
    )


@pytest.mark.parametrize("orthographic", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_free_space_is_seen_through(ball, orthographic, background):
    """Before the sphere or, on rays that pass it by, anywhere: never in it, never behind it."""
    one = camera(orthographic=orthographic)
    seen = depth.view(ball, one)
    free_space = seen.free_space(4000, np.random.default_rng(0), background=background)
    assert free_space.shape == (4000, 3) and (np.linalg.norm(free_space, axis=1) > 0.99 * RADIUS).all()
    if orthographic:
        beside = np.linalg.norm(free_space - np.outer(free_space @ one.rotation[2], one.rotation[2]), axis=1) > RADIUS
    else:
        beside = to_lines(free_space, one.position) > RADIUS
    before = free_space @ -one.rotation[2] > -0.02
    assert (beside | before).all()
    assert beside.any() == background
    assert (np.linalg.norm(free_space, axis=1) < 2.2 * RADIUS).all()  # within the ball around what was seen


def test_noise_has_the_given_deviation_and_normals_are_estimated(ball):
    rng = np.random.default_rng(0)
    plain, noisy = depth.view(ball, camera()), depth.view(ball, camera(), noise=0.004, rng=rng)
    seen = np.isfinite(plain.depth)
    np.testing.assert_array_equal(np.isfinite(noisy.depth), seen)
    assert np.std(noisy.depth[seen] - plain.depth[seen]) == pytest.approx(0.004, rel=0.1)
    points, normals = noisy.surface()
    cosine = np.einsum("nc,nc->n", normals, points) / np.linalg.norm(points, axis=1)
    assert np.median(cosine) > 0.97 and (cosine > 0).mean() > 0.97
    free_space = noisy.free_space(2000, rng, margin=0.02, background=False)
    assert (np.linalg.norm(free_space, axis=1) > RADIUS).all()
    with pytest.raises(InputError, match="rng"):
        depth.view(ball, camera(), noise=0.1)


@given(seed=st.integers(0, 99), margin=st.floats(0, 0.2), away=st.floats(0, 5))
@settings(max_examples=30, deadline=None)
def test_free_space_lies_on_lines(seed, margin, away):
    rng = np.random.default_rng(seed)
    ends, eye = rng.uniform(-1, 1, (20, 3)), np.array([0, 0, away])
    free_space = depth.free_space(eye, ends, 200, rng, margin=margin, ball=(np.zeros(3), 1.5)).astype(np.float64)
    assert (np.linalg.norm(free_space, axis=1) < 1.5 + 1e-5).all()
    direction, length = ends - eye, np.linalg.norm(ends - eye, axis=1)
    along = (free_space - eye) @ direction.T / length
    beside = np.linalg.norm(free_space[:, None] - eye - along[..., None] * direction / length[:, None], axis=-1)
    on = (beside < 1e-5) & (along >= -1e-6) & (along <= length - margin + 1e-5)
    assert on.any(1).all()


def test_lines_without_room_give_nothing():
    rng = np.random.default_rng(0)
    assert depth.free_space([0, 0, 1], np.eye(3), 50, rng, margin=9).shape == (0, 3)
    with pytest.raises(InputError, match="no surface"):
        depth.Depth(camera(), np.full((64, 64), np.inf)).free_space(10, rng)
    with pytest.raises(InputError, match="three"):
        depth.normals_towards(np.zeros((2, 3)), [0, 0, 1])


def save(folder, seen, levels=None):
    """A depth picture in millimeters, and its camera in all three spellings."""
    levels = np.where(np.isfinite(seen.depth), seen.depth * 1000, 0).round() if levels is None else levels
    Image.fromarray(levels.astype(np.uint16)).save(folder / "view.png")
    (fx, fy), (cx, cy) = seen.camera.focal, np.array(seen.camera.center) - 0.5  # OpenCV counts from a pixel's center
    forms = {
        "view": {"fx": fx, "fy": fy, "cx": cx, "cy": cy},
        "open3d": {"width": 64, "height": 48, "intrinsic_matrix": [fx, 0, 0, 0, fy, 0, cx, cy, 1]},
        "matrix": {"camera_matrix": [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]},
    }
    for name, values in forms.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder / "view.png"


@pytest.fixture
def taken(ball):
    """A view with pixels that are no squares."""
    away = Mesh(ball.vertices + [0.1, 0, 2], ball.faces)
    return depth.view(away, Camera(np.zeros(3), np.eye(3), (70.0, 60.0), (30.5, 25.0), (48, 64)))


@pytest.mark.parametrize("form", [None, "open3d", "matrix"])
def test_pictures_of_depth_cameras(taken, tmp_path, form):
    path = save(tmp_path, taken)
    got = depth.read(path, form and tmp_path / f"{form}.json")
    np.testing.assert_allclose(got.surface()[0], taken.surface()[0], atol=1e-3)
    assert np.isnan(got.depth[~np.isfinite(taken.depth)]).all()  # level 0 says nothing
    np.testing.assert_allclose(got.camera.project(taken.surface()[0])[0].max(0), [57, 47], atol=12)
    far = depth.read(path, 65, far=1.6)
    assert np.isposinf(far.depth).any() and far.camera.focal == (65, 65) and far.camera.center == (32, 24)


@pytest.mark.parametrize("form", ["fields", "intrinsic_matrix", "camera_matrix"])
def test_a_plane_in_opencvs_convention(tmp_path, form):
    """Pixel (row i, column j) sees along ((j - cx) / fx, (i - cy) / fy, 1): of n · p = d the depth is d / (n · ray)."""
    fx, fy, cx, cy = 60.0, 50.0, 30.25, 20.5
    normal, distance = np.array([0.5, -0.3, 1.0]), 1.5
    j, i = np.meshgrid(np.arange(64), np.arange(48))
    rays = np.stack([(j - cx) / fx, (i - cy) / fy, np.ones_like(j)], -1)
    levels = (20_000 * distance / (rays @ normal)).round()
    Image.fromarray(levels.astype(np.uint16)).save(tmp_path / "plane.png")
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    values = {"fields": {"fx": fx, "fy": fy, "cx": cx, "cy": cy}, "camera_matrix": {"camera_matrix": matrix.tolist()}}
    values["intrinsic_matrix"] = {"intrinsic_matrix": matrix.T.ravel().tolist()}
    (tmp_path / "plane.json").write_text(json.dumps(values[form]))
    seen = depth.read(tmp_path / "plane.png", scale=20_000)
    points, normals = seen.surface()
    np.testing.assert_allclose(points @ normal, distance, atol=1e-4)
    np.testing.assert_allclose(points, (rays * (levels / 20_000)[..., None]).reshape(-1, 3), atol=1e-12)
    away = normals @ -normal / np.linalg.norm(normal)
    assert away.min() > 0.999  # towards the camera


def test_a_focal_length_alone_has_its_point_in_the_middle(tmp_path):
    """What is seen of a plane in front of the camera is symmetric."""
    Image.fromarray(np.full((6, 8), 1000, np.uint16)).save(tmp_path / "wall.png")
    points, _ = depth.read(tmp_path / "wall.png", 4.0).surface()
    np.testing.assert_allclose(points.mean(0), [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(np.ptp(points, axis=0), [7 / 4, 5 / 4, 0], atol=1e-12)


def test_what_is_no_depth_picture(taken, tmp_path):
    path = save(tmp_path, taken)
    whole = path.read_bytes()
    for content in (b"", b"solid", whole[:200], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(FormatError, match="cannot be read as an image"):
            depth.read(path)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    with pytest.raises(FormatError, match="mode RGB"):
        depth.read(path)
    Image.new("L", (8000, 8000)).save(path)
    with pytest.raises(FormatError, match="8000 x 8000"):
        depth.read(path)
    save(tmp_path, taken, np.zeros((48, 64)))
    with pytest.raises(FormatError, match="no pixel"):
        depth.read(path)
    save(tmp_path, taken)
    for content in (
        "{",
        "[]",
        "3",
        "[" * 10**5,
        '{"fx": 1%s, "fy": 1, "cx": 0, "cy": 0}' % ("0" * 400),
        '{"fx": 1}',
        '{"camera_matrix": [1]}',
        '{"fx": 0, "fy": 1, "cx": 0, "cy": 0}',
    ):
        (tmp_path / "view.json").write_text(content)
        with pytest.raises(FormatError, match="view.json"):
            depth.read(path)
    with pytest.raises(FormatError, match="focal length"):
        depth.read(path, tmp_path / "other.json")
    with pytest.raises(InputError, match="scale"):
        depth.read(path, 60, scale=0)


def test_views_far_from_the_origin_keep_their_digits(ball):
    """What is seen at surveyors' coordinates is what is seen at the origin, moved."""
    away = np.array([5e5, 120, 4.2e6])
    here = camera()
    there = dataclasses.replace(here, position=here.position + away)
    pictures = depth.view(ball, here), depth.view(Mesh(ball.vertices + away, ball.faces), there)
    (points, normals), (far, turned) = (picture.surface(400) for picture in pictures)
    np.testing.assert_allclose(far - away, points, atol=1e-6)
    np.testing.assert_allclose(turned, normals, atol=1e-4)
    free_space = [
        depth.free_space(o.position, p, 500, np.random.default_rng(0)) for o, p in ((here, points), (there, far))
    ]
    np.testing.assert_allclose(free_space[1] - away, free_space[0], atol=1e-6)
    free_space = [picture.free_space(500, np.random.default_rng(0)) for picture in pictures]
    np.testing.assert_allclose(free_space[1] - away, free_space[0], atol=1e-4)
