"""The precision of products: what is compiled for each platform, and what it does to surfaces and codes."""

import functools
import re
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chairs import QUICK, load_chairs
from jax import lax
from jax.interpreters import mlir

from jonet import parallel, products
from jonet.codes import Codes
from jonet.geometry.mesh import Mesh
from jonet.inference.encode import Inputs
from jonet.inference.fitting import latents
from jonet.inference.surfaces import extraction, refinement
from jonet.model import Model
from jonet.networks.bound import BoundNetwork
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.networks.occupancy import OccupancyNetwork
from jonet.networks.occupancy import Specs as OccupancySpecs
from jonet.settings.fitting import LBFGS, Adam, FitConfig, GaussNewton, PoseConfig

pytestmark = pytest.mark.unoptimized

CPU, TPU, GPU = (parallel.Platform(kind, 16 << 30) for kind in ("cpu", "tpu", "gpu"))
ASKED = [(TPU, "highest"), (TPU, "high"), (TPU, "default"), (CPU, "default")]
STATED = dict(zip(ASKED, ("HIGHEST", "HIGH", "DEFAULT", "HIGHEST"), strict=True))  # in StableHLO
by_platform = pytest.mark.parametrize(("platform", "precision"), ASKED, ids=lambda x: getattr(x, "kind", x))


# What is compiled


@pytest.fixture
def compiled(tmp_path):
    """A function that gives the precisions of the products, or the convolutions, of all programs compiled so far."""

    def precisions(what="dot_general"):
        found = set()
        for path in tmp_path.glob("*.mlir"):
            for line in path.read_text().splitlines():
                if f"stablehlo.{what}" in line and "xf32>" in line:
                    found |= set(re.findall(r"\b(HIGHEST|HIGH|DEFAULT)\b", line) or ["none"])
        return found

    jax.config.update("jax_dump_ir_to", str(tmp_path))
    yield precisions
    jax.config.update("jax_dump_ir_to", "")


def parameters(module, *arrays) -> dict:
    """Variables of a module without its initialization, whose products would be compiled, too."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *arrays))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), dict(shapes))


def decoder(width: int) -> Model:
    """An untrained DeepSDF; each test has a width of its own, so that nothing is compiled yet."""
    module = DeepSDFDecoder(Specs(latent_size=3, dims=(width,) * 2, dropout=(), norm_layers=(0, 1), latent_in=(1,)))
    return Model("deepsdf", BoundNetwork(module, parameters(module, jnp.zeros((1, 3)), jnp.zeros((1, 4, 3)))), "sphere")


def encoder(kind: str, size: int, name: str, width: int) -> Model:
    specs = OccupancySpecs(c_dim=width, hidden_size=8, n_blocks=1, encoder=name, encoder_width=width)
    module, inputs = OccupancyNetwork(specs), Inputs(kind, size)
    arrays = [np.zeros(shape, np.float32) for shape in ((1, 4, 3), (1, 4), (1, *inputs.shape), (1, 0))]
    variables = parameters(module, *arrays)
    stats = variables.pop("batch_stats")
    return Model("occupancy", BoundNetwork(module, variables, stats), "cube", inputs=inputs)


@by_platform
def test_evaluation_extraction_and_refinement_are_compiled_with_the_precision(compiled, platform, precision):
    model = decoder(9 + ASKED.index((platform, precision)))
    with parallel.assuming(platform), jax.default_matmul_precision("tensorfloat32"):  # the caller's does not matter
        field = model.field(np.zeros((2, 3), np.float32), precision=precision)
        field(np.zeros((2, 5, 3), np.float32))
        field.gradient(np.zeros((2, 5, 3), np.float32))
        refinement.refine(field, [Mesh(np.eye(3), np.array([[0, 1, 2]]))] * 2, steps=1)
    assert compiled() == {STATED[platform, precision]}


def test_extraction_has_the_precision_in_all_of_its_threads(compiled, monkeypatch):
    monkeypatch.setattr(extraction, "BATCH", 1)
    model = decoder(20)
    with parallel.assuming(TPU), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there may be no surface
        model.extract(np.zeros((3, 3), np.float32), 8, precision="default")
    assert compiled() == {"DEFAULT"}


LEVEL = GaussNewton(points=(1024,), huber_epsilon=(0.01,), phases=(1,), steps=1)
FITS = {
    "gauss_newton": FitConfig(gauss_newton=LEVEL),
    "adam": FitConfig("adam", adam=Adam(steps=2, rows=8)),
    "lbfgs": FitConfig("lbfgs", lbfgs=LBFGS(steps=2)),
}


@by_platform
def test_gauss_newton_is_compiled_with_the_precision(compiled, platform, precision):
    fits(decoder(30 + ASKED.index((platform, precision))), platform, precision, "gauss_newton")
    assert compiled() == {STATED[platform, precision]}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adam", "lbfgs"])
def test_other_fits_are_compiled_with_the_precision(compiled, method):
    fits(decoder(40 + len(method)), TPU, "high", method)
    assert compiled() == {"HIGH"}


def fits(model: Model, platform, precision, method):
    with parallel.assuming(platform):
        model.fit(np.ones((2, 8, 4), np.float32), config=FITS[method], precision=precision)


@pytest.mark.slow
def test_poses_are_compiled_with_the_precision(compiled):
    config = PoseConfig(tries=1, keep=(1,), fitting=FITS["gauss_newton"])
    cloud = np.random.default_rng(0).normal(size=(1, 9, 3))
    with parallel.assuming(TPU):
        decoder(50).fit_pose(cloud, config=config, precision="high")
        assert compiled() == {"HIGH"}
        decoder(51).complete(cloud, config=config, precision="default")
        assert compiled() == {"HIGH", "DEFAULT"}


@by_platform
def test_encoders_of_points_are_compiled_with_the_precision(compiled, platform, precision):
    model = encoder("points", 9, "pointnet_simple", 9 + ASKED.index((platform, precision)))
    with parallel.assuming(platform):
        model.encode(points=np.zeros((1, 9, 3)), precision=precision)
    assert compiled() == {STATED[platform, precision]}


@pytest.mark.parametrize(
    ("platform", "precision", "stated"), [(TPU, "high", "HIGH"), (GPU, "high", "HIGHEST"), (GPU, "default", "DEFAULT")]
)
def test_convolutions_are_compiled_with_the_precision(compiled, platform, precision, stated):
    """On a GPU there are none of three products."""
    model = encoder("images", 63, "simple_conv", 1 + len(stated) - len("HIGH"))
    with parallel.assuming(platform):
        model.encode(images=np.zeros((1, 63, 63, 3)), precision=precision)
    assert compiled("convolution") == compiled() == {stated}


@pytest.mark.parametrize("capability", ["7.5", "8.0", "10.0", "gfx942"])
def test_gpus_compute_three_products_of_bfloat16_where_they_have_it(monkeypatch, capability):
    monkeypatch.setattr(parallel, "working", lambda: [SimpleNamespace(platform="gpu", compute_capability=capability)])
    square = jax.grad(lambda x: jnp.sum((x @ x) ** 2))  # derivatives have the precision, too
    with parallel.assuming(GPU), products.precise("high"):
        text = jax.jit(square).trace(np.zeros((4, 4), np.float32)).lower(lowering_platforms=("cuda",)).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    three = ["rhs_precision_type = bf16" in line and "num_primitive_operations = 3" in line for line in lines]
    assert len(lines) == 3 and all(three) == (capability != "7.5")
    assert any(three) or all("[HIGHEST, HIGHEST]" in line for line in lines)


# What it does, on a CPU in the place of a TPU

HIGHEST, HIGH = ((precision,) * 2 for precision in (lax.Precision.HIGHEST, lax.Precision.HIGH))


def as_on_tpu(a, b, *, precision, **dimensions):
    """The product of float32 operands as a TPU computes it: of one or three products of operands in bfloat16."""
    dot = functools.partial(lax.dot_general_p.bind, precision=HIGHEST, **dimensions)
    if a.dtype != b.dtype or a.dtype != jnp.float32:
        return dot(a, b)
    first, second = lax.reduce_precision(a, 8, 7), lax.reduce_precision(b, 8, 7)
    if precision != HIGH:
        return dot(first, second)
    rest, other = lax.reduce_precision(a - first, 8, 7), lax.reduce_precision(b - second, 8, 7)
    return dot(first, second) + (dot(first, other) + dot(rest, second))


@pytest.fixture
def tpu():
    """This machine in the place of a TPU: with its programs, and with its products where less than all is asked."""

    def lowered(context, *operands, precision, **more):
        rule = plain if precision == HIGHEST else simulated
        return rule(context, *operands, precision=precision, **more)

    rules = mlir._platform_specific_lowerings["cpu"]
    before, plain = rules[lax.dot_general_p], rules[lax.dot_general_p].rule
    simulated = mlir.lower_fun(as_on_tpu, multiple_results=False)
    mlir.register_lowering(lax.dot_general_p, lowered, platform="cpu")
    try:
        with parallel.assuming(parallel.Platform("tpu", 1234)):  # of a memory that no other test has compiled for
            yield
    finally:
        rules[lax.dot_general_p] = before
        jax.clear_caches()  # of what was compiled with these products


@pytest.fixture(scope="module")
def chairs():
    return load_chairs()


def test_vertices_are_those_of_full_float32_with_three_products_and_not_with_one(tpu, chairs):
    """In cells of a grid of 128³, whose sides are 1 / 64."""
    model, codes = Model("deepsdf", chairs.network, "sphere"), chairs.codes[:2]
    true, (mesh, _) = model.field(codes, precision="highest"), model.extract(codes, 64, precision="highest")
    points = mesh.vertices.astype(np.float32)
    off, moved = {}, {}
    for precision in ("high", "default"):
        values = model.field(codes, precision=precision)[0](points)
        off[precision] = np.quantile(64 * np.abs(values - true[0](points)), 0.99)
        vertices = model.extract(codes, 64, precision=precision)[0].vertices
        moved[precision] = np.median(64 * np.abs(true[0](vertices.astype(np.float32))))
    assert off["high"] < 3e-4 and off["default"] > 50 * off["high"]  # 0.00024: a thousandth of a cell of 512³
    assert moved["high"] < 3e-4 and moved["default"] > 50 * moved["high"]


def test_codes_fitted_with_three_products_have_the_loss_of_full_float32(tpu, chairs):
    codes = Codes(chairs.codes, tuple(map(str, range(len(chairs.codes)))))
    model = Model("deepsdf", chairs.network, "sphere", codes, chairs.prior, QUICK)
    loss = {}
    for precision in ("highest", "high"):
        values = model.fit(chairs.samples, precision=precision).values
        judge = model.with_precision("highest").network
        loss[precision] = latents.errors(judge, values, chairs.held_out)[0].mean()
    assert loss["high"] == pytest.approx(loss["highest"], rel=1e-3)
