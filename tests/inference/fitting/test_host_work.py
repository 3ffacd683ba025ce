"""What a warm fit costs the host: programs that are dispatched, arrays that are sent, and no tracing.

The limits are those of today's code: an accelerator that waits for the host notices more.
"""

import threading

import jax
import numpy as np
import pytest
from chairs import QUICK, Ellipsoids, fit, load_chairs

from jonet import parallel
from jonet.inference.fitting import latents, methods, observations, sharded_batch
from jonet.networks.bound import BoundNetwork
from jonet.settings.fitting import Adam, FitConfig, GaussNewton

pytestmark = pytest.mark.unoptimized


@pytest.fixture
def counted(monkeypatch):
    """Numbers of traces of a network, dispatched programs, and arrays and bytes that are sent."""
    counts = {"traces": 0, "programs": 0, "arrays": 0, "bytes": 0}

    def counting(owner, name, count):
        before = getattr(owner, name)

        def call(*arguments, **options):
            count(*arguments)
            return before(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    def sent(tree, _):
        leaves = jax.tree.leaves(tree)
        counts["arrays"] += len(leaves)
        counts["bytes"] += sum(np.asarray(leaf).nbytes for leaf in leaves)

    def one(name):
        def count(*_):
            counts[name] += 1

        return count

    counting(BoundNetwork, "fold", one("traces"))
    counting(parallel, "_place", sent)
    counting(sharded_batch, "program", one("programs"))
    counting(methods, "_initial", one("programs"))
    return counts


@pytest.mark.parametrize(
    ("config", "programs", "arrays"),
    [(QUICK, 14, 34), (FitConfig(method="adam", adam=Adam(steps=4)), 3, 18)],
    ids=["gauss_newton", "adam"],
)
def test_a_warm_fit_traces_nothing_and_sends_little(counted, config, programs, arrays):
    chairs = load_chairs()
    shapes = [rows[:2000] for rows in chairs.samples[:4]]
    wanted = fit(chairs, shapes, config=config).values
    counted |= dict.fromkeys(counted, 0)
    np.testing.assert_array_equal(fit(chairs, shapes, config=config).values, wanted)
    assert counted["traces"] == 0
    assert 0 < counted["programs"] <= programs and 0 < counted["arrays"] <= arrays
    # the rows of four shapes once (twice for Adam, sorted by group), although four starts of each are tried
    assert counted["bytes"] < (2 if config.method == "adam" else 1) * 4 * 2048 * 8 * 4 * 1.2


def test_a_network_is_copied_to_the_devices_once(counted):
    network = BoundNetwork(Ellipsoids(), np.float32(1))
    assert network.replicated is network.replicated and counted["arrays"] == 1
    with parallel.use(1):
        assert network.replicated is network.replicated
    latents.check_fitted(network)
    assert counted["traces"] == 1
    latents.check_fitted(network)
    assert counted["traces"] == 1


def test_tries_share_the_rows_of_their_shape():
    rows = [np.full((n, observations.COLUMNS), n, np.float32) for n in (1, 2, 3, 4, 5)]
    batch = methods.sharded(rows)
    tries = batch.tried(3)
    found = tries.map(_first, BoundNetwork(Ellipsoids(), np.float32(1)), None, tries.scatter(np.zeros(15, np.float32)))
    np.testing.assert_array_equal(tries.gather(found), np.repeat([1, 2, 3, 4, 5], 3))


def _first(network, _, problem, data):
    return problem + data["rows"][0, 0, 0]


@pytest.mark.parametrize("size", [1, 8, 3000])
def test_rows_with_equal_rounded_values_are_shuffled_by_their_own(size):
    """The order is that of two sorted numbers of each row: of its rounded and of its exact values."""
    rng = np.random.default_rng(0)
    points = rng.integers(-4, 4, (size, 3)) / 8 + rng.normal(0, 1e-5, (size, 3))
    points[size // 2 :: 7] = points[0]  # equal rows, which keep their order
    [shape] = observations.observe(observations.ObservedArrays.checked([np.column_stack([points, points[:, 0]])]))
    columns = observations._columns(shape)
    order = observations._shuffled(columns, np.random.default_rng(1))
    start = np.random.default_rng(1).integers(2**64, dtype=np.uint64)
    values = columns[[0, 1, 2, observations.LOW, observations.HIGH, observations.GROUP]]
    coarse = observations._mixed(np.round(values * observations.CELLS), start)
    np.testing.assert_array_equal(order, np.lexsort((observations._mixed(values, start), coarse)))


def test_an_accelerator_solves_a_piece_while_the_host_prepares_another(monkeypatch):
    """In pieces of two, whose codes are those of one piece."""
    chairs = load_chairs()
    shapes = [rows[:1000] for rows in [*chairs.samples, chairs.samples[0]]]
    quick = FitConfig(gauss_newton=GaussNewton(points=(1024,), huber_epsilon=(0.01,), phases=(2,)), starts=1)
    together, threads, before = set(), set(), methods.sharded

    def sharded(packed, **more):
        together.add(len(packed))
        threads.add(threading.get_ident())
        return before(packed, **more)

    with parallel.assuming(parallel.Platform("gpu", 16 << 30)):
        wanted = fit(chairs, shapes, config=quick)
        monkeypatch.setattr(sharded_batch, "MANY", 2)
        monkeypatch.setattr(methods, "sharded", sharded)
        found = fit(chairs, shapes, config=quick)
    assert together == {1, 2} and len(threads) == 2 and threading.get_ident() not in threads
    np.testing.assert_allclose(found.values, wanted.values, atol=1e-5)
    np.testing.assert_allclose(found.values[4], found.values[0], atol=0.02)  # the same rows in another order
