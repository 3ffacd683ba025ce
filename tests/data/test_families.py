"""Procedural families: valid solids, the same everywhere, no two alike; and the helpers they are built with."""

import hashlib
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifold3d import Error, Manifold, Mesh64
from paths import PYTHONPATH, ROOT
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from jonet.data import families
from jonet.data.families import FAMILIES, make, parameters, solids
from jonet.data.families.draws import count, pick
from jonet.errors import ConfigError

LONGEST = {  # meters, of the longest side
    "chair": (0.4, 1.3),
    "table": (0.4, 1.9),
    "lamp": (0.28, 1.8),
    "mug": (0.06, 0.4),
    "aeroplane": (5, 75),
    "car": (3.4, 6),
    "guitar": (0.5, 1.25),
}
MEMBERS = 30
KINDS = {  # every value of every discrete parameter
    "chair": dict(
        support={"legs", "sled", "cantilever", "swivel", "rockers", "pedestal"},
        back={"ladder", "slats", "hoop", "shell", "none"},
        arms={"none", "posts", "loops", "closed"},
        leg_style={"round", "square", "turned"},
        stretchers={"none", "sides", "h", "box"},
        cushion={0, 1},
        legs={3, 4, 5},
        bars={1, 2, 3, 4, 5},
    ),
    "table": dict(
        use={"dining", "desk", "coffee", "side"},
        base={"legs", "pedestal", "trestle", "frames", "cabinets", "panels"},
        shape={"rect", "oval"},
        leg_style={"round", "square", "turned"},
        braces={"none", "h", "box"},
        drawers={0, 1, 2, 3},
        end={"t", "a", "x"},
        feet={0, 3, 4},
        cabinets={1, 2},
        cabinet_drawers={2, 3, 4},
    ),
    "lamp": dict(
        kind={"table", "floor", "desk", "pendant", "chandelier"},
        shade={"cone", "drum", "dome", "globe", "bell"},
        base={"vase", "balls", "column", "bottle"},
        legs={0, 3},
        balls={2, 3, 4},
        arms={3, 4, 5, 6},
    ),
    "mug": dict(
        kind={"mug", "cup", "tankard", "jug"},
        handles={0, 1, 2},
        handle={"ring", "ear", "square"},
        bands={0, 1},
    ),
    "aeroplane": dict(
        kind={"airliner", "fighter", "light", "biplane", "glider"},
        engines={"none", "nose", "props2", "under2", "under4", "tail2", "tail3", "jet1", "jet2"},
        tail_kind={"plain", "t", "v", "twin"},
        gear={"none", "wheels", "floats"},
        wing_level={"low", "high"},
        winglets={0, 1},
        blades={2, 3, 4},
    ),
    "car": dict(
        kind={"saloon", "hatchback", "estate", "coupe", "offroader", "van", "pickup", "roadster"},
        side_windows={1, 2, 3},
        panel_van={0, 1},
        spoiler={0, 1},
        rack={0, 1},
        spare={0, 1},
        mirrors={0, 1},
    ),
    "guitar": dict(
        kind={"acoustic", "electric", "bass", "ukulele"},
        head_style={"slotted", "pointed", "inline"},
        cutaways={0, 1, 2},
        pegs={2, 3},
        pickups={1, 2, 3},
        knobs={1, 2, 3, 4},
    ),
}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def members(request):
    return request.param, [make(request.param, 1, index) for index in range(50)]


def pieces(mesh) -> int:
    """Connected parts of the surface, vertices at one place counted as one."""
    _, place = np.unique(mesh.vertices, axis=0, return_inverse=True)
    a, b = place[mesh.faces[:, [0, 1]]].reshape(-1), place[mesh.faces[:, [1, 2]]].reshape(-1)
    used, edge = np.unique(np.concatenate([a, b]), return_inverse=True)
    graph = coo_matrix((np.ones(len(a)), edge.reshape(2, -1)), (len(used), len(used)))
    return connected_components(graph, directed=False)[0]


def test_every_family_is_described_here():
    assert set(FAMILIES) == set(LONGEST) == set(KINDS) and len(FAMILIES) >= 6


def test_members_are_whole_closed_solids(members):
    family, meshes = members
    for mesh in meshes[:MEMBERS]:
        assert mesh.watertight and mesh.volume > 0, mesh.name
        assert pieces(mesh) == 1, f"{mesh.name} falls apart, or hides a cavity"
        assert len(mesh.faces) <= 6000, mesh.name
        assert mesh.vertices.dtype == np.float64 and mesh.faces.dtype == np.int32
        again = Manifold(Mesh64(mesh.vertices, mesh.faces.astype(np.uint64)))
        assert again.status() == Error.NoError and again.volume() == pytest.approx(mesh.volume, rel=1e-6), mesh.name
        low, high = LONGEST[family]
        assert low < np.ptp(mesh.bounds, axis=0).max() < high, mesh.name


def test_no_two_members_are_alike(members):
    _, meshes = members
    looks = np.array([[m.volume, m.area, *np.ptp(m.bounds, axis=0)] for m in meshes])
    looks = np.log(looks)
    apart = np.abs(looks[:, None] - looks[None]).max(-1) + np.eye(len(looks))
    assert apart.min() > 0.004  # of 1,225 pairs the most alike differ by this share in some measure


def test_a_member_depends_on_its_family_seed_and_index_alone():
    mesh = make("chair", 3, 7)
    assert mesh.name == "chair_3_0007"
    make("table", 3, 7)
    again = make("chair", 3, 7)
    assert np.array_equal(mesh.vertices, again.vertices) and np.array_equal(mesh.faces, again.faces)
    assert not np.array_equal(mesh.bounds, make("chair", 4, 7).bounds)
    assert not np.array_equal(mesh.bounds, make("chair", 3, 8).bounds)


def digests(order) -> list[str]:
    return sorted(
        f"{family} {hashlib.sha256(mesh.vertices.tobytes() + mesh.faces.tobytes()).hexdigest()}"
        for family in order
        for mesh in [make(family, 0, 5)]
    )


def test_another_process_makes_the_same_in_another_order():
    code = "from test_families import *; print('\\n'.join(digests(sorted(FAMILIES)[::-1])))"
    path = os.pathsep.join([str(ROOT / "tests" / "data"), PYTHONPATH])
    environment = {**os.environ, "PYTHONPATH": path}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.split("\n")[:-1] == digests(sorted(FAMILIES))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_all_kinds_occur(family):
    drawn = [parameters(family, 0, index) for index in range(200)]
    assert all(list(p) == list(drawn[0]) for p in drawn) and len(drawn[0]) >= 8
    assert all(type(value) in (int, float, str) for p in drawn for value in p.values())
    found = {name: {p[name] for p in drawn} for name in KINDS[family]}
    assert found == KINDS[family]
    discrete = {name for name, value in drawn[0].items() if isinstance(value, int | str)}
    assert discrete == set(KINDS[family])


def test_parameters_are_those_of_the_member():
    built = FAMILIES["chair"].shape(parameters("chair", 0, 3))
    assert np.array_equal(built.vertices, make("chair", 0, 3).vertices)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_no_member_loses_more_than_a_splinter(family):
    for index in range(MEMBERS):
        solid = FAMILIES[family].build(SimpleNamespace(**parameters(family, 1, index)))
        assert make(family, 1, index).volume == pytest.approx(solid.volume(), rel=2e-3)


def test_chairs_face_the_front_and_stand_on_the_floor():
    for index in range(MEMBERS):
        mesh, drawn = make("chair", 2, index), parameters("chair", 2, index)
        assert abs(mesh.bounds[0, 1]) < 2e-3
        np.testing.assert_allclose(-mesh.bounds[0, 0], mesh.bounds[1, 0], rtol=0.05)
        if drawn["back"] != "none":
            assert mesh.vertices[mesh.vertices[:, 1] > drawn["seat_height"] + 0.3, 2].mean() < -0.1


def test_aeroplanes_have_the_tail_behind():
    for index in range(10):
        mesh = make("aeroplane", 2, index)
        high = mesh.vertices[mesh.vertices[:, 1] > 0.7 * mesh.bounds[1, 1]]
        if parameters("aeroplane", 2, index)["kind"] != "biplane":
            assert high[:, 2].mean() < 0


def test_chairs_are_as_thin_as_furniture():
    fraction = [m.volume / np.ptp(m.bounds, axis=0).prod() for m in (make("chair", 0, i) for i in range(40))]
    assert 0.08 < np.median(fraction) < 0.13 and max(fraction) < 0.35


def test_an_unknown_family_is_named():
    with pytest.raises(ConfigError, match="'sofa'.*chair"):
        make("sofa", 0, 0)


# Drawing and building helpers


def test_a_pick_follows_its_weights():
    rng = np.random.default_rng(0)
    drawn = [pick(rng, rare=0.1, never=0.0, often=0.9) for _ in range(400)]
    assert drawn.count("never") == 0 and 20 < drawn.count("rare") < 60
    assert {count(rng, 2, 4) for _ in range(50)} == {2, 3, 4}


@given(st.floats(0.1, 2), st.floats(0.1, 2), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_outline_has_the_area_of_a_rounded_rectangle(width, height, roundness):
    x, y = solids.outline(width, height, roundness, points=64, edge=3).T
    area = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
    assert area == pytest.approx(width * height * (1 - roundness**2 * (1 - np.pi / 4)), rel=2e-3)


def test_solids_have_the_volumes_of_the_textbook():
    square = solids.outline(1, 2, 0.0, points=4)
    assert solids.plate(square, 0.5, 0.8).volume() == pytest.approx(0.6)
    circle = 16 * np.sin(np.pi / 8) / 2  # sixteen corners on the unit circle
    assert solids.turned((1, 1), (0, 2), points=16).volume() == pytest.approx(2 * circle)
    assert solids.turned((2, 1), (0, 3), points=16).volume() == pytest.approx(circle * (4 + 2 + 1))
    dodecagon = 12 * np.sin(np.pi / 6) / 2
    assert solids.limb((0, 0, 0), (0, 0, 3), 0.1).volume() == pytest.approx(0.03 * dodecagon)
    leaning = solids.limb((0, 0, 0), (0.5, 3, 0.2), 0.1, 0.1)
    assert leaning.volume() == pytest.approx(0.03 * dodecagon)  # cut level: a shear keeps the volume
    assert leaning.bounding_box()[1] == pytest.approx(0)
    bowl = solids.revolved([(0, 0), (2, 0), (2, 3), (1, 3), (1, 1), (0, 1)], points=96)
    assert bowl.volume() == pytest.approx(np.pi * (4 * 3 - 1 * 2), rel=2e-3)


def test_a_bowed_board_bends_towards_its_front():
    path = np.linspace([0, 0, 0], [0, 1, 0], 5)
    board = solids.sweep(path, 1.0, 0.1, 0.0, up=solids.FRONT, bow=0.3, edge=9)
    low, high = np.reshape(board.bounding_box(), (2, 3))
    assert (low, high) == (pytest.approx([-0.5, 0, -0.05]), pytest.approx([0.5, 1, 0.35]))
    assert board.volume() == pytest.approx(0.1, rel=0.01)


def test_paths_keep_to_their_points():
    points = np.array([(0, 0, 0), (1, 0, 0), (1, 2, 0), (3, 2, 1)], float)
    path = solids.curve(points, count=31)
    np.testing.assert_allclose(path[[0, 10, 20, 30]], points, atol=1e-12)
    bent = solids.rounded(points, radius=0.25)
    np.testing.assert_allclose(bent[[0, 1, 4, -1]], [(0, 0, 0), (0.75, 0, 0), (1, 0.25, 0), (3, 2, 1)], atol=1e-12)


def test_arrangements_mirror_and_rotate():
    peg = solids.turned((0.1, 0.1), (0, 1), at=(1, 0))
    left = solids.pair(peg)[1]
    assert left.bounding_box()[0] == pytest.approx(-peg.bounding_box()[3]) and left.volume() > 0
    ring = solids.union(solids.around(peg, 5))
    assert ring.volume() == pytest.approx(5 * peg.volume()) and len(ring.decompose()) == 5


def test_a_chair_can_be_built_from_changed_parameters():
    changed = parameters("chair", 0, 0) | {"back_height": 0.7}
    assert changed.keys() == parameters("chair", 0, 0).keys()
    taller = families.chair.build(SimpleNamespace(**changed))
    assert taller.bounding_box()[4] > make("chair", 0, 0).bounds[1, 1]
