"""Error of fitted codes against time:  python -m experiments.fitting_study RUN FOLDER [--shapes=8] [--rows=NAME;…]

Unseen shapes of a run are fitted to 8,000 of their samples, with one setting changed at a time; the error is the mean
clamped error on the other samples.  FOLDER gets `fitting.json` (stored rows are not measured again) and
`codes_error_time.png`, a plot of error against time; a table is printed.  Times are processor seconds, summed over all
cores, which are little affected by other programs.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import jonet
from experiments import study
from experiments.bench.fitting import divided
from jonet.data import store as stores
from jonet.inference.fitting import latents
from jonet.inference.fitting.observations import ObservedArrays, observe
from jonet.settings.fitting import LBFGS, Adam, FitConfig, GaussNewton
from jonet.tasks.unseen import unseen

PUBLISHED = "Adam, 800 steps"
GIVEN = 8000  # samples of a shape
COLORS = {"Gauss-Newton": (214, 96, 20), "L-BFGS": (40, 110, 160), "Adam": (110, 110, 110)}


def curves() -> dict[str, dict[str, FitConfig]]:
    """Each method with increasing budgets."""
    levels = ((0.03, 0.003, 0.001), (1024, 2048, 8192))
    budgets = ((1,), (2,), (4,), (4, 2), (4, 4), (4, 4, 2), (4, 4, 4), (4, 4, 6), (6, 6, 12))
    newton = {
        f"Gauss-Newton, {'+'.join(map(str, phases))} phases": FitConfig(
            gauss_newton=GaussNewton(levels[1][: len(phases)], levels[0][: len(phases)], phases)
        )
        for phases in budgets
    }
    lbfgs = {f"L-BFGS, {n} steps": FitConfig("lbfgs", lbfgs=LBFGS(n)) for n in (5, 10, 20, 40, 100)}
    adam = {f"Adam, {n} steps": FitConfig("adam", adam=Adam(n)) for n in (25, 50, 100, 200, 400, 800)}
    return {"Gauss-Newton": newton, "L-BFGS": lbfgs, "Adam": adam}


def ablation() -> dict[str, FitConfig]:
    """The default with one setting changed."""
    rows = {"default": FitConfig()}
    rows |= {f"starts {n}": FitConfig(starts=n) for n in (1, 2, 8, 16)}
    rows |= {f"candidates {n}": FitConfig(candidates=n) for n in (1, 16, 64)}
    rows |= {f"prior {weight:g}": FitConfig(prior=weight) for weight in (0.0, 1e-5, 1e-3)}
    newton = {
        "last level of 2,048 points": GaussNewton(points=(1024, 2048, 2048)),
        "last level of 4,096 points": GaussNewton(points=(1024, 2048, 4096)),
        "all levels of 8,192 points": GaussNewton(points=(8192,) * 3),
        "half the phases": GaussNewton(phases=(2, 2, 3)),
        "twice the phases": GaussNewton(phases=(8, 8, 12)),
        "one level": GaussNewton((8192,), (0.001,), (12,)),
        "huber epsilon at last 0.003": GaussNewton(huber_epsilon=(0.03, 0.01, 0.003)),
        "huber epsilon at last 0.0003": GaussNewton(huber_epsilon=(0.03, 0.003, 0.0003)),
        "tolerance 0.001": GaussNewton(tolerance=0.001),
    }
    return rows | {name: FitConfig(gauss_newton=settings) for name, settings in newton.items()}


def measure(model, given, held, config: FitConfig, repeats: int) -> dict:
    """Processor seconds per shape (minimum of `repeats`, without compilation) and the held-out loss of each shape."""
    config = dataclasses.replace(config, clamp=0.1)
    training = dict(prior=model.prior, starts=model.codes.values)

    def fit(shapes, index=None):
        first = None if index is None else np.arange(index, index + len(shapes))
        observed = observe(ObservedArrays.checked(shapes), config, first)
        return latents.fit(model.network, observed, first, config=config, **training)

    if config.solver == "gauss_newton":
        fit(given)
        times = []
        for _ in range(repeats):
            begun = time.process_time()
            codes = fit(given).values
            times.append(time.process_time() - begun)
    else:  # slow, so it is compiled with one shape, and measured once, in batches of the size compiled for
        fit(given[:1])
        begun = time.process_time()
        codes = np.concatenate([fit(given[i : i + 4], i).values for i in range(0, len(given), 4)])
        times = [time.process_time() - begun]
    losses, _ = latents.errors(model.network, codes, held, config)
    return {"seconds": min(times) / len(given), "losses": [float(loss) for loss in losses]}


def table(rows: dict[str, dict]) -> str:
    """The rows as Markdown: mean held-out loss, its ratio to the published loop's, the worst shape's, and time."""
    base = np.array(rows[PUBLISHED]["losses"])
    lines = ["| | loss | ratio to Adam | worst shape's ratio | processor seconds per shape |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        losses = np.array(row["losses"])
        ratios = losses.mean() / base.mean(), (losses / base).max()
        lines.append(f"| {name} | {losses.mean():.6f} | {ratios[0]:.3f} | {ratios[1]:.2f} | {row['seconds']:.3f} |")
    return "\n".join(lines)


def plot(rows: dict[str, dict], size=(900, 560), scale: int = 2) -> Image.Image:
    """A log-log plot of mean held-out loss against processor seconds per shape, one line per method."""
    lines = {}
    for method, settings in curves().items():
        found = [(rows[name]["seconds"], np.mean(rows[name]["losses"])) for name in settings if name in rows]
        if found:
            lines[method] = np.array(sorted(found))
    every = np.concatenate(list(lines.values()))
    low, high = every.min(0) / 1.15, every.max(0) * 1.15
    image = Image.new("RGB", (size[0] * scale, size[1] * scale), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(14 * scale)
    corner, extent = np.array([80, 20]) * scale, (np.array(size) - [110, 80]) * scale

    def place(xy):
        fraction = np.log(np.asarray(xy) / low) / np.log(high / low)
        return tuple(corner + extent * [fraction[0], 1 - fraction[1]])

    for axis, unit in ((0, "{:g} s"), (1, "{:g}")):
        for tick in (d * 10.0**e for e in range(-5, 4) for d in (1, 2, 5)):
            if not low[axis] <= tick <= high[axis]:
                continue
            ends = [(tick, low[1]), (tick, high[1])] if axis == 0 else [(low[0], tick), (high[0], tick)]
            pen.line([place(end) for end in ends], fill=(225, 225, 225), width=scale)
            x, y = place(ends[0])
            anchor, spot = ("mt", (x, y + 6 * scale)) if axis == 0 else ("rm", (x - 6 * scale, y))
            pen.text(spot, unit.format(tick), fill=(80, 80, 80), font=font, anchor=anchor)
    for method, line in lines.items():
        path = [place(spot) for spot in line]
        pen.line(path, fill=COLORS[method], width=3 * scale)
        for x, y in path:
            pen.ellipse([x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale], fill=COLORS[method])
        x, y = path[0]
        pen.text((x + 8 * scale, y - 8 * scale), method, fill=COLORS[method], font=font, anchor="lb")
    pen.text(
        tuple(corner + extent * [0.5, 1] + [0, 34 * scale]), "processor seconds per shape", (80, 80, 80), font, "mt"
    )
    pen.text((12 * scale, 6 * scale), "held-out loss", fill=(80, 80, 80), font=font, anchor="lt")
    return image


def main() -> None:
    parser = study.parser(__doc__)
    parser.add_argument("--shapes", type=int, default=8, help="number of unseen shapes")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of Gauss-Newton; other methods run once")
    options = parser.parse_args()
    model, store = jonet.load(options.run), stores.open(options.run / "store")
    tested = unseen(store, model)[: options.shapes]
    given, held = map(list, zip(*(divided(store.samples(i), GIVEN) for i in tested), strict=True))
    wanted = {name: config for settings in (*curves().values(), ablation()) for name, config in settings.items()}

    def row(config):
        return measure(model, given, held, config, options.repeats)

    rows = study.measured(options, "fitting.json", wanted, row, shapes=len(tested), given=GIVEN)
    if PUBLISHED in rows:
        print(table(rows))
        plot(rows).quantize(64).save(options.folder / "codes_error_time.png", optimize=True)


if __name__ == "__main__":
    main()
