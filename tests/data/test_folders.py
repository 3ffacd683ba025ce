"""Folders as they are: links, patterns, the home folder, endings, tables, and kinds that are not read."""

import warnings

import numpy as np
import pytest
from solids import CUBE

from jonet import parser
from jonet.bulk import inputs
from jonet.commands import options
from jonet.data import scans, sources
from jonet.errors import ConfigError
from jonet.formats import detect
from jonet.geometry import mesh_files
from jonet.storage import search
from jonet.tasks.shapes import Shapes

POINTS = np.random.default_rng(0).standard_normal((20, 3))


def meshes(folder, *names):
    return [mesh_files.write(CUBE, folder / name) for name in names]


def test_linked_folders_are_searched_once_and_cycles_end(tmp_path):
    meshes(tmp_path / "disk", "a.ply", "inner/b.ply")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "inner" / "back").symlink_to(tmp_path / "disk")
    (tmp_path / "data" / "here").symlink_to(tmp_path / "data")
    found = [path.relative_to(tmp_path / "data").as_posix() for path in scans.find(tmp_path / "data")]
    assert found == ["link/a.ply", "link/inner/b.ply"]
    assert len(detect.discover(tmp_path / "data")) == 2


def test_each_folder_is_searched_once(tmp_path):
    """Links side by side to the next folder would be 2 ** 20 paths; the folder itself goes before links to it."""
    for i in range(20):
        (tmp_path / "chain" / f"{i}").mkdir(parents=True)
        for name in ("a", "b") if i else ():
            (tmp_path / "chain" / f"{i - 1}" / name).symlink_to(tmp_path / "chain" / f"{i}")
    (path,) = meshes(tmp_path / "chain" / "19", "x.ply")
    assert scans.find(tmp_path / "chain") == mesh_files.find(tmp_path / "chain") == [path]
    assert search.matching(tmp_path / "chain" / "**" / "*.ply") == [path]
    found = search.matching(tmp_path / "chain" / "1?" / "**" / "x*")  # one of each folder that `1?` matches
    assert len(found) == 10 and {each.resolve() for each in found} == {path}
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "first").symlink_to(tmp_path / "late")
    (late,) = meshes(tmp_path / "late", "y.ply")
    (tmp_path / "linked").symlink_to(tmp_path / "chain" / "18")
    assert mesh_files.find(tmp_path) == [path, late]
    assert mesh_files.find(tmp_path / "linked") == [tmp_path / "linked" / "a" / "x.ply"]


def test_patterns_in_folders_with_brackets(tmp_path):
    (path,) = meshes(tmp_path / "scans" / "[1]", "x.ply")
    assert search.matching(tmp_path / "scans" / "**" / "*.ply") == [path]


def test_a_name_that_begins_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    meshes(tmp_path, "~scan.ply", "~/inner.ply")
    for name in ("~scan.ply", "~no such user.ply", "~"):
        assert [str(path) for path in search.matching(name)] == [name]
    assert inputs.find("~scan.ply").keys() == {"~scan.ply"}


def test_a_file_below_two_inputs_is_one(tmp_path):
    a, b = meshes(tmp_path / "scans", "a.ply", "sub/b.ply")
    (tmp_path / "link").symlink_to(tmp_path / "scans")
    places = [tmp_path / "scans", tmp_path / "scans" / "sub", b, tmp_path / "link", tmp_path / "scans" / "*.ply"]
    assert inputs.find(places) == {"a.ply": a, "sub/b.ply": b}
    (tmp_path / "scans" / "c.ply").symlink_to(a)  # a name of its own in one folder
    assert list(inputs.find(places)) == ["a.ply", "c.ply", "sub/b.ply"]


def test_home_and_patterns(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    a, b, c = meshes(tmp_path / "scans", "a.ply", "b.ply", "deep/c.ply")
    assert search.matching("~/scans/*.ply") == [a, b] and search.matching("~/scans/**/*.ply") == [a, b, c]
    assert search.matching("~/scans") == [tmp_path / "scans"]
    assert inputs.find("~/scans/*.ply") == {"a.ply": a, "b.ply": b}
    assert inputs.find(["~/scans/deep", str(tmp_path / "scans" / "[ab].ply")]) == {"c.ply": c, "a.ply": a, "b.ply": b}
    found = Shapes().sources("~/scans/*.ply", 0)
    assert [source.path for source in found] == [a, b] and {source.split for source in found} == {"train", "test"}
    with pytest.raises(ConfigError, match="'~/scans/\\*.obj' is neither a file or folder"):
        Shapes().sources("~/scans/*.obj", 0)


def test_a_name_with_brackets_that_exists_is_no_pattern(tmp_path):
    (path,) = meshes(tmp_path, "chair[1].ply")
    meshes(tmp_path, "chair1.ply")
    assert search.matching(path) == [path] and inputs.find(str(path)) == {path.name: path}


def test_home_in_values_of_options(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    parsed, _ = parser.parse(options.Represent, ["~/scans", "a~b", "--out=~/fields"], "jonet represent")
    assert parsed.inputs == (str(tmp_path / "scans"), "a~b") and parsed.out == str(tmp_path / "fields")


def test_files_whose_names_differ_by_their_ending_only(tmp_path):
    meshes(tmp_path, "a.ply", "a.obj", "a.PLY.stl")
    np.save(tmp_path / "a.npy", POINTS)
    assert len(set(inputs.names(inputs.find(tmp_path)).values())) == 4
    assert len({source.name for source in sources.discover(tmp_path)}) == 3


def test_tables_are_clouds_if_they_hold_points(tmp_path):
    for name in ("a.csv", "b.txt", "c.asc", "d.xyz", "e.pts"):
        np.savetxt(tmp_path / name, POINTS, header="x y z" if name == "b.txt" else "")
    (tmp_path / "log.csv").write_text("epoch,loss,rate\n1,0.5,3\n2,0.4,3\n")
    (tmp_path / "notes.txt").write_text("Chairs of the first floor\n\n1 2\n")
    (tmp_path / "x.csv").write_text("id,x,y,z\n" + "".join(f"{i},{x},{y},{z}\n" for i, (x, y, z) in enumerate(POINTS)))
    assert [path.name for path in scans.find(tmp_path)] == ["a.csv", "b.txt", "c.asc", "d.xyz", "e.pts", "x.csv"]


def test_kinds_that_are_not_read_are_counted(tmp_path):
    meshes(tmp_path, "a.ply")
    for name in ("b.fbx", "c.BLEND", "deep/d.blend", "e.step", ".hidden.fbx", "f.e57", "g.png", "h.xyz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1 2 3\n")
    with pytest.warns(UserWarning) as caught:
        assert [path.name for path in scans.find(tmp_path)] == ["a.ply", "h.xyz"]
    said = sorted(str(warning.message).removeprefix(f"{tmp_path}: ") for warning in caught)
    assert said[0].startswith("1 .e57: not read; open in CloudCompare")
    assert said[1].startswith("1 .step: not read; export STL")
    assert said[2].startswith("2 .blend, 1 .fbx: not read; open in Blender") and len(said) == 3
    with pytest.warns(UserWarning, match="1 .xyz: not read; training takes meshes"):
        assert len(detect.discover(tmp_path)) == 1


def test_folders_of_what_is_read_say_nothing(tmp_path):
    meshes(tmp_path, "a.ply", "日本/ä.obj", "x" * 200 + ".stl")
    (tmp_path / "日本" / "a.mtl").write_text("newmtl a\n")
    with warnings.catch_warnings(action="error"):
        assert len(scans.find(tmp_path)) == 3 and len(detect.discover(tmp_path)) == 3
