"""Single steps from the shell.

python -m jonet train | fit | extract | reconstruct | sample | interpolate | evaluate | import | info

python -m jonet train meshes/ --out=runs/mine --minutes=10
python -m jonet fit runs/mine scans/ --out=codes.npz
python -m jonet extract runs/mine codes.npz --out=rebuilt/ --resolution=256
python -m jonet evaluate rebuilt/ meshes/
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jonet import config as configs
from jonet import learn, model, parallel
from jonet.data import meshes, observed
from jonet.data.meshes import Mesh
from jonet.errors import ConfigError, JonetError
from jonet.evaluation import metrics
from jonet.inference.latents import FitConfig
from jonet.inference.prior import Prior
from jonet.model import Codes, Model
from jonet.networks import published


def train(options) -> None:
    learn.train(
        options.data,
        options.task,
        workdir=options.out,
        preset=options.preset,
        minutes=options.minutes,
        seed=options.seed,
    )
    print(f"model: {Path(options.out) / 'model'}")


def fit(options) -> None:
    codes = fitted(model.load(options.model), options.inputs)
    codes.save(options.out)
    print(f"{len(codes)} codes: {options.out}")


def fitted(trained: Model, paths: Sequence[str]) -> Codes:
    """Codes of meshes and clouds in own units; files that cannot be used are warned of and left out."""
    groups: dict[tuple, list[observed.Observed]] = {}
    for path in [file for given in paths for file in observed.find(given)]:
        try:
            one = observed.read(path, trained.frame)
        except JonetError as error:
            warnings.warn(f"skipped: {error}", stacklevel=1)
            continue
        groups.setdefault(one.kind, []).append(one)
    if not groups:
        raise ConfigError(f"no usable mesh or cloud in {', '.join(map(str, paths))}")
    parts = []
    for kind, shapes in groups.items():
        given = {name: [getattr(shape, name) for shape in shapes] for name in kind}
        found = trained.fit(**given, names=[shape.name for shape in shapes])
        parts.append(found.placed([shape.similarity for shape in shapes]))
    codes = Codes.joined(parts)
    for i, name in enumerate(codes.names):
        doubts = " · not converged" * bool(not codes.converged[i])
        doubts += " · a stranger to the space" * bool(codes.stranger[i])
        print(f"{name}: residual {codes.residual[i]:.5f} · explained {codes.explained[i]:.1%}{doubts}")
    return codes


def extract(options) -> None:
    write_all(model.load(options.model).extract(Codes.load(options.codes), options.resolution), options)


def reconstruct(options) -> None:
    trained = model.load(options.model)
    write_all(trained.extract(fitted(trained, options.inputs), options.resolution), options)


def sample(options) -> None:
    write_all(model.load(options.model).sample(options.count, options.seed, options.resolution), options)


def interpolate(options) -> None:
    trained = model.load(options.model)
    a, b = (trained.codes[name] for name in (options.a, options.b))
    write_all(trained.interpolate(a, b, options.count, options.resolution), options)


def write_all(made: Sequence[Mesh], options) -> None:
    for i, mesh in enumerate(made):
        path = Path(options.out) / f"{mesh.name or f'shape_{i:03d}'}.{options.format}"
        if not len(mesh.faces):
            print(f"{path.stem}: no surface, nothing is written", file=sys.stderr)
            continue
        meshes.write(mesh, path)
        print(path)


def evaluate(options) -> None:
    """Scores of meshes against the true ones of the same names, each in units of the true one's longest side."""
    made, truths = ({p.stem: p for p in meshes.find(folder)} for folder in (options.made, options.truth))
    if len(made) == len(truths) == 1:
        truths = dict(zip(made, truths.values(), strict=True))
    names = sorted(made.keys() & truths.keys())
    if not names:
        raise ConfigError(f"no file in {options.made} has the name of one in {options.truth}")
    pairs = []
    for name in names:
        truth, way = meshes.normalize(meshes.orient(meshes.read(truths[name])), "sphere")
        pairs.append((way.apply(meshes.read(made[name])), truth))
    scores = metrics.evaluate_all(pairs)
    if options.json:
        shapes = [{"name": name, **row} for name, row in zip(names, scores, strict=True)]
        configs.write_json(options.json, {"summary": metrics.summary(scores), "shapes": shapes})
    print(metrics.table(metrics.summary(scores), len(scores)))


def import_(options) -> None:
    """A network of the authors' programs as a model of ours: OUT/model, and its codes."""
    found, out = published.read(options.source, options.checkpoint, options.options), Path(options.out)
    codes, prior = None, None
    if found.codes is not None:
        codes = Codes(found.codes, found.names, found.similarities)
        prior = Prior.of(found.codes) if found.codes.shape[1] else None
    parts = {name: getattr(found, name) for name in ("kind", "network", "shared", "statistics", "frame", "history")}
    fitting = FitConfig(starts=4)  # a space of few shapes has several valleys
    Model(**parts, codes=codes, prior=prior, fitting=fitting).save(out / "model")
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"model: {out / 'model'}")
    if codes is not None:
        codes.save(out / "codes.npz")
        print(f"{len(codes)} codes of training shapes: {out / 'codes.npz'}")
    if found.fitted:
        Codes(np.stack(list(found.fitted.values())), tuple(found.fitted)).save(out / "fitted.npz")
        print(f"{len(found.fitted)} codes that were fitted to other shapes: {out / 'fitted.npz'}")


def info(options) -> None:
    print(parallel.describe())
    if options.model:
        trained = model.load(options.model)
        print(json.dumps({"kind": trained.kind, "frame": trained.frame, **trained.history}, indent=2))
        print(json.dumps(configs.to_dict(trained.config), indent=2))
        print(f"{len(trained.codes or ())} training codes")


def parser() -> argparse.ArgumentParser:
    """The options of every verb."""
    top = argparse.ArgumentParser("python -m jonet", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(do, help: str, *arguments):
        added = verbs.add_parser(do.__name__.rstrip("_"), help=help, description=help)
        added.set_defaults(do=do)
        for names, settings in arguments:
            added.add_argument(*names, **settings)

    def option(*names, **settings):
        return names, settings

    trained = option("model", help="a run folder or model folder")
    resolution = option("--resolution", type=int, help="cells a side (default: the model's own)")
    out = option("--out", required=True, help="folder for the meshes")
    form = option("--format", default="ply", choices=("ply", "obj", "stl", "glb", "off"))
    inputs = option("inputs", nargs="+", help="meshes or clouds (PLY, XYZ, NPY, NPZ), files or folders, in own units")
    verb(
        train,
        "trains a network on a folder of meshes or a family",
        option("data"),
        option("--task", default="deepsdf", choices=learn.TASKS),
        option("--out", required=True, help="run folder"),
        option("--preset", default="quick"),
        option("--minutes", type=float),
        option("--seed", type=int, default=0),
    )
    verb(fit, "finds the codes of shapes", trained, inputs, option("--out", required=True, help="codes.npz"))
    verb(extract, "pulls meshes out of codes", trained, option("codes", help="codes.npz"), out, form, resolution)
    verb(reconstruct, "fits codes and pulls out meshes", trained, inputs, out, form, resolution)
    count = option("--count", type=int, default=8)
    seed = option("--seed", type=int, default=0)
    verb(sample, "draws new shapes from the prior of the training codes", trained, count, seed, out, form, resolution)
    ends = option("a", help="name of a training shape"), option("b", help="name of another")
    verb(interpolate, "shapes between two training shapes", trained, *ends, count, out, form, resolution)
    verb(
        evaluate,
        "scores meshes against true ones of the same names",
        option("made"),
        option("truth"),
        option("--json", help="file for all scores"),
    )
    verb(
        import_,
        "takes over a network that the authors' programs trained (needs torch: pip install 'jonet[import]')",
        option("source", help="DeepSDF experiment folder, or Occupancy Networks' .pt file"),
        option("--out", required=True, help="run folder"),
        option("--checkpoint", help="which one of a folder (default: latest, or model_best)"),
        option("--options", help="YAML of an Occupancy Network (default: the one beside it)"),
    )
    verb(info, "devices, precision and versions; what a model is", option("model", nargs="?"))
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        options.do(options)
    except JonetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print(f"\n{stopped or 'stopped'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
