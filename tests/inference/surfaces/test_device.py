"""Surfaces made by compiled programs: those of the host, of all kinds of networks; short lists, lids, empty shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import ball, balls, batch, field, logits, rods, waves
from chairs import load_chairs
from manifolds import accepts
from onet_recorded import drawn

from jonet import parallel
from jonet.errors import InputError
from jonet.inference.surfaces import block_meshes, blocks, device, extraction
from jonet.inference.surfaces.grid import FieldEvaluator, lattice
from jonet.networks import spline, spline_levels
from jonet.networks.bound import BoundNetwork
from jonet.networks.field import TILE, Field
from jonet.networks.occupancy import OccupancyNetwork, Specs

pytestmark = pytest.mark.unoptimized


def refuse(*arguments):
    raise AssertionError("the host finds the cells of a surface")


def compared(fields, resolution, other="host", **options):
    """The meshes of the device, which are those of the host (or of another method): the same arrays to rounding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "locate", refuse)
        made = extraction.extract(fields, resolution, backend="device", **options)
    given = {"backend": "host"} if other == "host" else {"method": other}
    cells = np.ptp(np.asarray(fields.per_shape["box"]), axis=1) / resolution
    for mesh, expected, cell in zip(
        made, extraction.extract(fields, resolution, **given, **options), cells, strict=True
    ):
        np.testing.assert_array_equal(mesh.faces, expected.faces)
        assert len(mesh.vertices) == len(expected.vertices)
        away = np.abs(mesh.vertices - expected.vertices) / cell
        # Where a value is within rounding of the limit up to which vertices are left, one of both is moved once more.
        assert (away > 1e-4).any(1).sum() <= 1e-3 * len(away) and away.max(initial=0) < 1e-2
        if expected.normals is not None:
            close = (away < 1e-4).all(1)
            np.testing.assert_allclose(mesh.normals[close], expected.normals[close], rtol=0, atol=1e-3)
        if len(mesh.faces):
            assert mesh.watertight and mesh.volume > 0 and accepts(mesh)
    return made


def occupancy() -> Field:
    """An Occupancy Network that is not trained, its logits shifted so that half of the box is inside its shapes."""
    network = OccupancyNetwork(Specs(decoder="simple", encoder="null", c_dim=0, z_dim=4, hidden_size=16, n_blocks=2))
    shared, batch_stats = drawn(jax.eval_shape(network.start, jax.random.key(0)), seed=3)
    decoder = shared["params"]["decoder"]
    decoder["fc_p"]["kernel"] *= 20  # folds, holes and parts
    bound = BoundNetwork(network, shared, batch_stats)
    codes = np.float32(2 * np.random.default_rng(0).standard_normal((5, 4)))
    points = np.random.default_rng(1).uniform(-0.55, 0.55, (5, 500, 3)).astype(np.float32)
    fields = bound.fields(codes)
    decoder["fc_out"]["bias"] += np.median(fields.per_shape["level"]) - np.median(fields(points))
    return parallel.host(bound.fields(codes))


def splines() -> Field:
    """A noisy ball on a dense grid of 8³ cells, and finer cells around one place of it."""
    rng = np.random.default_rng(0)
    every = spline_levels.every_cell(8)
    centers = (spline_levels.around(every, 8) + 0.5) / 4 - 1
    values = np.float32(np.linalg.norm(centers, axis=1) - 0.6 + 0.05 * rng.standard_normal(len(centers)))
    fine = spline_levels.every_cell(16)
    fine = fine[np.linalg.norm((fine + 0.5) / 8 - 1 - [0.6, 0, 0], axis=1) < 0.3].astype(np.int32)
    waves = np.float32(0.03 * rng.standard_normal(len(spline_levels.around(fine, 16))))
    return Field.stack([spline.field([spline_levels.Level(8, every, values), spline_levels.Level(16, fine, waves)])])


def chairs() -> Field:
    trained = load_chairs()
    return parallel.host(trained.network.fields(trained.codes[:5]))


KINDS = {"deepsdf": chairs, "occupancy": occupancy, "spline": splines}


@pytest.mark.parametrize("kind, resolution", [("deepsdf", 64), ("occupancy", 45), ("spline", 64)])
def test_networks_of_all_kinds(kind, resolution):
    meshes = compared(KINDS[kind](), resolution)
    assert all(len(mesh.faces) > 1000 for mesh in meshes)


def several(middle, radius, small=0.07) -> Field:
    """Eleven small balls and a large one."""
    centers = np.random.default_rng(0).uniform(-0.8, 0.8, (11, 3))
    return field(balls, centers=[*centers, middle], radii=[*[small] * 11, radius])


# A multiple of 4 has blocks that lie outside of the box; with coarse=2 the search descends through larger cells.
@pytest.mark.parametrize("resolution, options", [(33, {}), (64, {}), (33, {"coarse": 2}), (64, {"coarse": 2})], ids=str)
def test_lids_parts_and_empty_shapes_of_different_sizes(resolution, options):
    fields = batch(
        several((0, 0, 0), 0.5),
        several((0, 0, 0), -0.5, -0.6),
        several((1, 0.1, -0.2), 0.55),
        several((-1, 1, 1), 0.9),
        several((0, 0, 0), 2.0),
    )
    with pytest.warns(UserWarning, match="field 1 has no surface at level 0") as seen:
        meshes = compared(fields, resolution, **options)
    assert len(seen) == 2 and str(seen[0].message) == str(seen[1].message)  # one of each backend
    assert not len(meshes[1].faces) and meshes[1].normals.shape == (0, 3)
    assert all(mesh.euler_number > 8 for mesh in (meshes[0], meshes[2]))
    lid = meshes[2].vertices[:, 0] == 1  # exactly
    assert lid.sum() > 50 and meshes[2].bounds[1, 0] == 1
    inner = lid & (np.linalg.norm(meshes[2].vertices - [1, 0.1, -0.2], axis=1) < 0.5)
    np.testing.assert_array_equal(meshes[2].normals[inner], np.broadcast_to([1, 0, 0], (inner.sum(), 3)))
    np.testing.assert_array_equal(meshes[4].bounds, [[-1] * 3, [1] * 3])  # inside everywhere: the box
    np.testing.assert_allclose(meshes[4].volume, 8)


def test_every_box_and_level():
    long = [[-4, -1, -1], [4, 1, 1]]
    boxes = (long, long, [[-1, 0, 2], [1, 3, 4.0]])
    balls = zip([(-3.7, 0, 0), (3.9, 0, 0), (0, 1, 3)], (0.3, 0.3, 9.0), boxes, strict=True)
    meshes = compared(batch(*(field(ball, center=at, radius=r, box=box) for at, r, box in balls)), 40, refine_steps=0)
    np.testing.assert_array_equal(meshes[2].bounds, boxes[2])
    np.testing.assert_allclose(meshes[2].volume, 12)
    # off center: in one like its mirror image, a vertex within rounding of a limit (`compared`) is eight
    box = [[-0.543, -0.56, -0.535], [0.557, 0.54, 0.565]]
    steep = batch(field(logits, steepness=8.0, radius=0.35, box=box, inside=1))
    compared(steep, 40, level=-1.4, normals=False)


@pytest.mark.parametrize("resolution, coarse", [(33, 1), (24, 100), (1, 2)])
def test_the_first_grid_may_be_as_coarse_as_one_cell(resolution, coarse):
    compared(batch(field(ball, center=(0.1, 0, 0), radius=0.6)), resolution, coarse=coarse)


def test_what_a_wrong_bound_hid_is_followed_from_block_to_block():
    """A bound that is far too small hides most of a long spike."""
    spike = field(rods, start=[(-0.3, 0, 0), (0, 0, 0)], end=[(0.3, 0, 0), (0.1, 0.9, 0.2)], radii=[0.3, 0.03])
    fields = batch(spike)
    compared(fields, 80, other="dense", lipschitz=0.3)


@pytest.fixture
def layouts(monkeypatch):
    """The layouts of the searches that are made."""
    found, program = [], blocks.program
    monkeypatch.setattr(blocks, "program", lambda platform, layout: found.append(layout) or program(platform, layout))
    return found


def test_one_sample_that_the_estimated_bound_hides():
    """Splines with one coefficient of a finer grid, so steep that the bound of the coarsest samples does not hold.

    It puts one sample inside, three cells from a plane: the device evaluates it with the rest of its block.
    """
    cell, every = 2 / 32, spline_levels.every_cell(8)
    plane = (spline_levels.around(every, 8)[:, 0] + 0.5) / 4 - 1 - (15.5 * cell - 1)
    steep = np.zeros(27, np.float32)
    steep[13] = -8.58 * cell
    levels = [spline_levels.Level(8, every, np.float32(plane)), spline_levels.Level(16, np.full((1, 3), 9), steep)]
    fields = Field.stack([spline.field(levels)])
    options = {"normals": False, "refine_steps": 0}
    (mesh,) = compared(fields, 32, other="dense", **options)
    missing, whole = (extraction.extract(fields, 32, backend="host", lipschitz=L, **options)[0] for L in (None, 9.0))
    assert len(missing.faces) == len(mesh.faces) - 8
    np.testing.assert_array_equal(whole.faces, mesh.faces)  # 9 holds


@pytest.mark.parametrize("places", [16, 1024])  # fewer blocks than the surface has, or enough
def test_lists_that_are_too_short_grow(monkeypatch, layouts, places):
    fields = batch(*(field(waves, frequency=3.0 + i) for i in range(2)))
    monkeypatch.setattr(device, "_grown", {(40, 8, 4): device.Sizes(16, places, 128)})
    options = {"coarse": 5, "refine_steps": 1, "normals": False}
    compared(fields, 40, **options)
    (sizes,) = device._grown.values()
    assert sizes.large > 16 and sizes.blocks >= places and len(layouts) > 1
    # a second call begins with lists that are long enough
    layouts.clear()
    extraction.extract(fields, 40, backend="device", **options)
    assert [(layout.large, layout.blocks) for layout in layouts] == [sizes[:2]]


def test_growth_is_kept_but_not_that_of_one_wild_shape(monkeypatch):
    first, key = device.Sizes(128, 1024, 128), (64, 8, 1)
    monkeypatch.setattr(device, "_grown", {})
    device._remember(key, first, first._replace(blocks=4096), 100, 3000)
    device._remember(key, first, first, 100, 1000)  # of a call that began earlier, or in another thread
    assert device._grown[key] == first._replace(blocks=4096)
    device._remember(key, first, first._replace(blocks=1 << 20), 100, 1 << 19)
    assert device._grown[key].blocks == 1 << 20
    device._remember(key, first, first._replace(blocks=1 << 20), 100, 3000)  # the first places were too few: kept
    assert device._grown[key].blocks == 1 << 20
    device._remember(key, first, first._replace(blocks=1 << 20), 100, 1000)
    assert device._grown[key] == first


def test_places_for_vertices_are_of_few_sizes_and_little_more_than_needed():
    counts = range(1, 1 << 17, 61)
    sizes = [device.places(count) for count in counts]
    assert all(count <= size for count, size in zip(counts, sizes, strict=True))
    assert all(size == device.LEAST or size < 1.5 * count for count, size in zip(counts, sizes, strict=True))
    assert set(sizes) == {1024 << k for k in range(8)} | {1536 << k for k in range(7)}
    assert all(size % TILE == 0 for size in sizes)


def unsteady(shared, per_shape, points):
    """A ball, but a point's value depends on its place among the points."""
    noise = jnp.where(jnp.arange(len(points)) % 3 == 0, 0.02, -0.02)
    return ball(shared, per_shape, points) + noise


def test_blocks_that_disagree_about_a_sign_are_left_to_the_host(monkeypatch):
    fields = batch(*[field(unsteady, center=(0.0, 0, 0), radius=0.5)] * 3)
    monkeypatch.setattr(device, "BATCH", 40**2)  # three calls of the device, one warning
    with pytest.warns(UserWarning, match="3 of 3 fields .*gave one point two signs.*slower") as seen:
        mesh = extraction.extract(fields, 40, backend="device")[0]
    assert len(seen) == 1
    expected = extraction.extract(fields[:1], 40, backend="host")[0]
    np.testing.assert_array_equal(mesh.faces, expected.faces)
    np.testing.assert_array_equal(mesh.vertices, expected.vertices)
    assert mesh.watertight
    evaluator = FieldEvaluator(fields, lattice(fields, 40), np.zeros(3))
    with pytest.raises(device.Unsteady, match="two signs"):
        device.extract(evaluator, 16, None, 12, True)


def test_more_blocks_than_can_be_numbered_are_left_to_the_host(monkeypatch):
    fields = batch(field(ball, center=(0.0, 0, 0), radius=0.9))
    monkeypatch.setattr(device, "_grown", {(40, 2, 1): device.Sizes(512, 128, 1024)})
    monkeypatch.setattr(device, "MOST_BLOCKS", 256)
    with pytest.warns(UserWarning, match="1 of 1 field .*found more blocks than it can number.*slower"):
        (mesh,) = extraction.extract(fields, 40, backend="device")
    assert mesh.watertight


def test_coordinates_far_from_the_origin_are_rounded_once():
    """Where a float32 has two thousandths of a cell, vertices are those of the host, which has float64."""
    box = [[1000.013, 2000.027, -500.041], [1001.013, 2001.027, -499.041]]
    compared(batch(field(ball, center=(1000.5, 2000.5, -499.5), radius=0.4, box=box)), 20)


def test_blocks_beside_are_found_wherever_they_are_listed():
    layout, rng = blocks.Layout(40, 2, 2, 128, 256), np.random.default_rng(0)
    listed = np.sort(rng.choice(2 * layout.side**3, 200, replace=False))
    numbers = np.append(listed, np.full(56, blocks.NONE)).astype(np.int32)
    place, here = blocks._beside(layout, numbers)
    beside = numbers[:200] + (blocks.NEIGHBORS @ [layout.side**2, layout.side, 1])[:, None]
    np.testing.assert_array_equal(here, np.pad(np.isin(beside, listed), [(0, 0), (0, 56)]))
    np.testing.assert_array_equal(numbers[place][here], beside[np.asarray(here)[:, :200]])


def test_signs_on_the_edges_of_shared_faces_are_compared():
    """Two blocks, one above the other, without the one across an edge of the face that both have."""
    inside = np.zeros((5, 5, 5, 2), bool)
    inside[4, 4, 2, 0] = True
    beside, here = np.zeros((8, 2), np.int32), np.zeros((8, 2), bool)
    beside[:, 0], here[0], here[4, 0] = [0, 0, 0, 0, 1, 0, 0, 0], True, True
    assert np.array_equal(blocks.NEIGHBORS[4], [1, 0, 0]) and int(blocks._disagreeing(inside, beside, here)) == 1
    inside[0, 4, 2, 1] = True
    assert int(blocks._disagreeing(inside, beside, here)) == 0


def test_a_field_that_is_not_finite_is_named(monkeypatch, layouts):
    """Before its lists, which would hold the whole grid, are made longer."""
    fields = batch(*(field(ball, center=(0, 0, 0), radius=radius) for radius in (0.5, np.nan)))
    monkeypatch.setattr(device, "_grown", {(32, 2, 4): device.Sizes(128, 128, 1024)})
    with pytest.raises(InputError, match="field 1 is nan at"):
        extraction.extract(fields, 32, backend="device")
    assert len(layouts) == 1


def spot(shared, per_shape, points):
    """A ball, but infinite near one point that is far from it."""
    away = jnp.linalg.norm(points + 0.75, axis=-1)
    return jnp.where(away < 0.02, jnp.inf, ball(shared, per_shape, points))


def test_a_value_of_a_larger_cell_that_is_not_finite_is_seen():
    """The middle of a cell of 16: no sample of the first grid or of a block near the surface."""
    fields = batch(field(spot, center=(0.0, 0, 0), radius=0.5))
    evaluator = FieldEvaluator(fields, lattice(fields, 64), np.zeros(1))
    with pytest.raises(device.Unsteady, match="not finite"):
        device.extract(evaluator, 2, None, 12, True)


def test_a_bound_that_is_given_is_not_estimated():
    gradients = []

    @jax.custom_vjp
    def counted(points):
        return jnp.linalg.norm(points, axis=-1) - 0.5

    def backward(points, cotangent):
        jax.debug.callback(lambda: gradients.append(1))
        return (cotangent[:, None] * points,)

    counted.defvjp(lambda points: (counted(points), points), backward)
    fields = batch(field(lambda shared, per_shape, points: counted(points)))
    for lipschitz, times in ((1.0, 0), (None, 1)):
        extraction.extract(fields, 16, backend="device", coarse=4, lipschitz=lipschitz, refine_steps=0, normals=False)
        jax.effects_barrier()
        assert bool(gradients) == times


def test_the_first_grid_of_the_device_has_a_limit():
    one = field(ball, center=(0, 0, 0), radius=0.5)
    with pytest.raises(InputError, match="coarse is 2000, .* at most 1024 cells a side"):
        extraction.extract(one, 4096, backend="device", coarse=2000)


def test_only_the_largest_part_and_fewer_faces():
    fields = batch(field(balls, centers=[(0.5, 0, 0), (-0.4, 0, 0)], radii=[0.2, 0.4]))
    compared(fields, 32, largest=True)
    (simple,) = extraction.extract(fields, 32, faces=300, backend="device")
    assert len(simple.faces) <= 310 and simple.normals is not None


def test_a_second_batch_compiles_nothing(compilations):
    fields = batch(*(field(ball, center=(0, 0, 0), radius=0.5 + 0.01 * i) for i in range(7)))
    extraction.extract(fields[3:], 32, backend="device")
    with compilations() as seen:
        extraction.extract(fields[:4], 32, backend="device")
        extraction.extract(fields[:3], 32, backend="device")
    assert not seen, seen


def test_the_device_is_chosen_by_the_platform():
    assert extraction.chosen("auto", 128) == "host"
    for kind in ("gpu", "tpu"):
        with parallel.assuming(parallel.Platform(kind, 1 << 34)):
            assert extraction.chosen("auto", 128) == "device" and extraction.chosen("host", 128) == "host"
            assert extraction.chosen("auto", 5000) == "host"
    assert extraction.chosen("device", 128) == "device"
    one = field(ball, center=(0, 0, 0), radius=0.5)
    for options in ({"backend": "magic"}, {"backend": "device", "method": "dense"}):
        with pytest.raises(InputError, match="backend"):
            extraction.extract(one, 16, **options)
    with pytest.raises(InputError, match="4096"):
        extraction.extract(one, 5000, backend="device")


@pytest.mark.parametrize("kind, platform", [("tpu", "tpu"), ("gpu", "cuda")])
def test_programs_are_lowered_for_other_platforms(kind, platform):
    target, layout = parallel.Platform(kind, 16 << 30), blocks.Layout(128, 8, 4, 512, 1024)
    fields = batch(*(field(waves, frequency=f) for f in (3.0, 5.0, 6.0, 7.0)))
    rows, count = np.arange(4, dtype=np.int32)[None], np.full(1, 4, np.int32)
    axes = np.zeros((1, 4, 3, 129), np.float32)
    grids = blocks.Grids(axes, axes, *(np.ones((1, 4), np.float32) for _ in range(3)))
    find = blocks.program(target, layout)
    assert jax.export.export(find.jitted(), platforms=[platform])(fields, rows, grids, count).platforms == (platform,)
    found, *_ = jax.eval_shape(find.jitted(), fields, rows, grids, count)
    make = block_meshes.program(target, layout, 1024, True)
    exported = jax.export.export(make.jitted(), platforms=[platform])(fields, rows, grids, found, np.int32(12))
    assert exported.platforms == (platform,)
