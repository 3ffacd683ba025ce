"""Unusual names of files: they are found, named, stored in the manifest, and used for outputs."""

import csv
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from balls import Balls, write_clouds
from hypothesis import given, settings
from hypothesis import strategies as st

from jonet import bulk
from jonet.bulk import inputs
from jonet.bulk.manifest import Manifest, Row
from jonet.codes import Codes
from jonet.commands import evaluate
from jonet.geometry import mesh_files
from jonet.storage.names import unique

pytestmark = pytest.mark.unoptimized

if sys.platform != "linux":
    pytest.skip("elsewhere file systems refuse many names", allow_module_level=True)

ODD = [
    "\r",
    "\u2028",
    "\n",
    '"',
    ",",
    "=1+1",
    "-",
    "\\",
    ":",
    "\x85",
    "\udcff",
    "\x1b[31m",
    "..",
    "日本",
    "é",
    "é",
    "'",
]
STEMS = st.one_of(
    st.binary(min_size=1, max_size=60).map(lambda data: data.decode("utf-8", "surrogateescape")),
    st.text(max_size=60),
    st.lists(st.sampled_from([*ODD, "a", ".", "npy", " ", "_"]), min_size=1, max_size=4).map("".join),
)


def possible(stem: str) -> bool:
    """Whether Linux can have it; hidden files are no inputs."""
    try:
        data = f"{stem}.npy".encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        return False
    return (
        len(data) <= 255
        and not {b"/", b"\0"} & {data[i : i + 1] for i in range(len(data))}
        and stem[:1] not in ("", ".")
    )


NAMES = st.lists(
    st.tuples(STEMS.filter(possible), st.sampled_from([".npy", ".xyz", ".NPY"])), min_size=2, max_size=3, unique=True
)


@given(NAMES)
@settings(max_examples=300, deadline=None)
def test_any_name_goes_through(files):
    with tempfile.TemporaryDirectory() as folder:
        scans, job = Path(folder, "scans"), Path(folder, "job")
        scans.mkdir()
        job.mkdir()
        for stem, suffix in files:
            (scans / f"{stem}{suffix}").touch()
        found = inputs.find(scans)
        assert sorted(found) == sorted(f"{stem}{suffix}" for stem, suffix in files)
        called = inputs.names(found)
        assert len(set(called.values())) == len(files)
        places = unique(list(called.values()))
        manifest = Manifest(job)
        rows = [Row(file, f"failed: {name}", 0.5, None, 1.0, place, "x", {"path": file}, {"sha256": place})
                for (file, name), place in zip(called.items(), places, strict=True)]  # fmt: skip
        for row in rows:
            manifest.add(row)
        for _ in range(2):
            assert Manifest(job).rows() == {row.file: [row] for row in rows}
            manifest.join(rows, [])
        with (job / "manifest.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = list(csv.DictReader(file))
        assert {Path(row["file"]) for row in table} == {Path(row.file) for row in rows}
        assert all(row["file"][0] not in "=+-@" for row in table)
        for place in places:
            path = job / "out" / f"{place}.ply"
            assert os.path.abspath(path).startswith(f"{job}/out/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("x").close()


def test_a_row_that_was_cut_off_within_a_name(tmp_path):
    manifest = Manifest(tmp_path)
    for name in ("a\nb", "c\n\nd"):
        manifest.add(Row(name, "ok"))
    both = manifest.path.read_bytes()
    whole = both[: both.index(b'"c')]
    for size in range(len(whole), len(both)):
        manifest.path.write_bytes(both[:size])
        assert list(manifest.rows()) == ["a\nb"]
        manifest.mend()
        assert manifest.path.read_bytes() == whole
    manifest.add(Row("c\n\nd", "ok"))
    assert manifest.path.read_bytes() == both


NASTY = [
    "a\rb",
    "u\u2028v",
    "n\nm",
    'q"q',
    "c,d",
    "=1+1",
    "b\\s",
    "a:b",
    "x\udcff",
    "CON",
    "y" * 250,
    " z ",
    "\x1b[31m",
]


def test_from_scan_to_score(tmp_path, capsys):
    names = [*NASTY, "a_b", "A_B", "b"]
    write_clouds(tmp_path / "scans", np.linspace(1, 2, len(names)), names)
    bulk.fit(Balls(), tmp_path / "scans", tmp_path / "codes.npz")
    codes = Codes.load(tmp_path / "codes.npz")
    assert sorted(codes.names) == sorted(names)
    model = Balls()
    bulk.fit(model, tmp_path / "scans", tmp_path / "codes.npz")
    bulk.extract(Balls(), tmp_path / "codes.npz", tmp_path / "made")
    assert bulk.extract(model, tmp_path / "codes.npz", tmp_path / "made").before == len(names) and not model.seen
    bulk.reconstruct(Balls(), tmp_path / "scans", tmp_path / "rebuilt")
    for name, radius in zip(names, np.linspace(1, 2, len(names)), strict=True):
        row = Manifest(tmp_path / "made").rows()[name][0]
        mesh = mesh_files.read(tmp_path / "made" / row.output)
        assert np.ptp(mesh.bounds[:, 0]) == pytest.approx(2 * radius, rel=1e-3)
        assert not set(row.output) & set('<>:"|?*\\\n\r')
        (tmp_path / "truth").mkdir(exist_ok=True)
        with open(tmp_path / "truth" / f"{name}.stl", "wb") as file:
            file.write(mesh_files.write(mesh, tmp_path / "ball.stl").read_bytes())
    ground_truths = evaluate._found(str(tmp_path / "truth"), "")
    for folder in ("made", "rebuilt"):
        pairs, missing, alone = evaluate.matched(evaluate._found(str(tmp_path / folder), ""), ground_truths)
        assert sorted(pairs) == sorted(names) and not missing and not alone
        for made, true in pairs.values():
            np.testing.assert_allclose(mesh_files.read(made).bounds, mesh_files.read(true).bounds, rtol=1e-3)


def test_names_that_are_found_in_two_folders(tmp_path):
    """Of three files no one hides another."""
    for folder in ("a", "b", "c/b"):
        write_clouds(tmp_path / folder, [1.0], ["x"])
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        found = inputs.find(["a", "b", "c"])
    finally:
        os.chdir(here)
    assert len(found) == 3
    assert len({os.path.abspath(path) for path in found.values()}) == 3
    alike = ["a.npy", "a.xyz", "a_npy.npy", "a.npy.xyz"]
    called = inputs.names(alike)
    assert list(called) == alike and len(set(called.values())) == 4


def test_what_verbs_call_a_shape_is_scored_against_its_file(tmp_path):
    called = inputs.names(["a.ply", "a.obj", "what?.ply", "b=1.off"])
    for labels in (called.values(), unique(list(called.values()))):
        made = {f"{label}.ply": tmp_path / f"{label}.ply" for label in labels}
        pairs, missing, alone = evaluate.matched(made, {key: tmp_path / "true" / key for key in called})
        assert {true.name for _, true in pairs.values()} == set(called) and not missing and not alone
        assert {made.name: true.name for made, true in pairs.values()} == dict(zip(made, called, strict=True))


@pytest.mark.parametrize("output, stamps", [("../a.npz", "{}"), ("/a.npz", "{}"), ("a.npz", "[" * 10**5)])
def test_rows_that_no_job_writes_are_ignored(output, stamps, tmp_path):
    """Those that name files elsewhere, above all: they could be removed."""
    Manifest(tmp_path).add(Row("b.ply", "ok", output="b.npz"))
    with (tmp_path / "manifest.csv").open("a") as file:
        file.write(f"a.ply,ok,,,0,{output},0123,{stamps},\n")
    assert list(Manifest(tmp_path).rows()) == ["b.ply"]
