"""Shapes whose files have another axis up: read as y-up, and back in their own axes."""

import dataclasses

import numpy as np
import pytest
import trimesh

from jonet import parser, representation
from jonet.bulk import inputs
from jonet.bulk.inputs import File
from jonet.commands import options
from jonet.data import scans
from jonet.data.sampling import RECIPES, Recipe
from jonet.data.sources import MeshFile
from jonet.errors import ConfigError, InputError
from jonet.geometry import axes, mesh_files
from jonet.geometry.mesh import Mesh
from jonet.settings.representation import Representation
from jonet.tasks.shapes import Shapes

FEW = dataclasses.replace(RECIPES["default"], near=400, uniform=100, surface=100)
BOX = trimesh.creation.box((1, 3, 2))  # y-up, its long side
BOX.apply_translation((5, 1, 0))


def lying(up: str) -> Mesh:
    """The box with this axis up."""
    return axes.upright(up).inverse().apply(Mesh(BOX.vertices, BOX.faces))


@pytest.mark.parametrize("up", axes.UP)
def test_every_axis_is_taken_to_y(up):
    sign, axis = (-1 if up[0] == "-" else 1), "xyz".index(up[-1])
    assert axes.upright(up)(sign * np.eye(3)[axis]).tolist() == [0, 1, 0]
    assert np.linalg.det(axes.UP[up]) == 1


@pytest.mark.parametrize("up", axes.UP)
def test_an_axis_beneath_another_one(up):
    """What is up after one turn, in the axes of the file: as of both turns at once."""
    assert axes.beneath("y", up) == up and axes.beneath(up, "y") == up
    for axis, rotation in axes.UP.items():
        direction = axes.upright(axes.beneath(up, axis)).inverse()([0, 1, 0])
        assert (rotation @ axes.UP[up] @ direction).tolist() == [0, 1, 0]


@pytest.mark.parametrize("up", axes.UP)
@pytest.mark.parametrize("kind", ["ply", "npy"])
def test_files_become_y_up_and_go_back(kind, up, tmp_path):
    mesh, path = lying(up), tmp_path / f"box.{kind}"
    points, index = trimesh.sample.sample_surface(mesh.trimesh(), 500, seed=0)
    normals = mesh.trimesh().face_normals[index]
    mesh_files.write(mesh, path) if kind == "ply" else np.save(path, np.column_stack([points, normals]))
    one = scans.read(path, surface=True, recipe=FEW, up=up)
    assert np.ptp(one.points, axis=0).argmax() == 1
    back = one.similarity.inverse()(one.points)
    middle = (axes.upright(up)(back) - [5, 1, 0]) / [0.5, 1.5, 1]
    np.testing.assert_allclose(np.abs(middle).max(1), 1, atol=1e-5)  # on the surface of the box
    face = np.abs(middle).argmax(1)
    np.testing.assert_allclose(one.normals, np.sign(middle) * np.eye(3)[face], atol=1e-3)


def test_y_up_is_what_was_before_to_the_bit(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).standard_normal((100, 3)) + 7)
    plain, turned = scans.read(tmp_path / "a.npy"), scans.read(tmp_path / "a.npy", up="y")
    np.testing.assert_array_equal(plain.points, turned.points)
    np.testing.assert_array_equal(plain.similarity.as_array(), turned.similarity.as_array())


def test_voxels_and_fields_are_upright(tmp_path):
    mesh_files.write(lying("z"), tmp_path / "box.ply")
    grid, transform = scans.grid(tmp_path / "box.ply", 16, "z")
    assert np.ptp(np.argwhere(grid), axis=0).argmax() == 1
    np.testing.assert_allclose(transform(lying("z").bounds.mean(0)), 0, atol=1e-12)
    few = Representation(near=2000, uniform=500)
    found = representation.of_file("box", tmp_path / "box.ply", few, up="z")
    inside = np.asarray(found.samples.points)[np.asarray(found.samples.distances) < 0]
    assert np.ptp(inside, axis=0).argmax() == 1
    assert np.ptp(found.similarity.inverse()(inside), axis=0).argmax() == 2


def test_training_shapes(tmp_path):
    for name in ("a", "b"):
        mesh_files.write(lying("z"), tmp_path / f"{name}.ply")
    (first, _), (plain, _) = (Shapes(up=up).sources(str(tmp_path), 0) for up in ("z", "y"))
    shape = first.shape(Recipe(near=0, uniform=0, surface=100), seed=0, frame="sphere", sign="auto")
    assert np.ptp(shape.rows["vertices"][0], axis=0).argmax() == 1
    assert np.ptp(shape.similarity.inverse()(shape.rows["vertices"][0]), axis=0).argmax() == 2
    assert first.unchanged(first.mark()) and not first.unchanged(plain.mark()) and not plain.unchanged(first.mark())
    with pytest.raises(ConfigError, match="shapes.up is 'z', but chair_0000 is no mesh file"):
        Shapes(up="z", train=1, test=1).sources("chair", 0)
    assert "shapes.up" in Shapes().unread("chair")


def test_other_axes_are_refused(tmp_path):
    with pytest.raises(InputError, match="up is 'w'"):
        _ = MeshFile("a", path=tmp_path, up="w").turn
    with pytest.raises(ConfigError, match="--up"):
        parser.parse(options.Represent, ["a.ply", "--out=b", "--up=w"], "jonet represent")


@pytest.mark.parametrize(
    "kind", [options.Fit, options.Reconstruct, options.Represent, options.Purify, options.Complete]
)
def test_verbs_have_the_option(kind):
    given = ["--model=m", "a"] if kind is options.Complete else ["m", "a"]
    if kind is options.Represent:
        given = ["a"]
    assert parser.parse(kind, [*given, "--out=b", "--up=-z"], "jonet")[0].up == "-z"


def test_bulk_readers_turn(tmp_path):
    from balls import Balls

    mesh_files.write(lying("z"), tmp_path / "box.ply")
    found = inputs.reader(Balls(), up="z")(File(tmp_path / "box.ply", "box"))
    assert np.ptp(found.data, axis=0).argmax() == 1 and found.similarity.rotation.tolist() == axes.UP["z"].tolist()
