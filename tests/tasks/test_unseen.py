"""Which shapes a network was trained on: they are left out of tests and matched by content."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import trimesh

from experiments import compare
from jonet.codes import Codes
from jonet.data import sources
from jonet.data import store as stores
from jonet.data.sampling import Recipe
from jonet.errors import ConfigError
from jonet.geometry.mesh import Similarity
from jonet.tasks import purify, unseen
from jonet.tasks.setup import autotune

pytestmark = pytest.mark.unoptimized

NOTHING = sources.content({})


def a_store(names, contents, splits):
    """What `unseen` needs of a store; each shape is one unit further along x than the one before."""
    splits = np.array(splits)
    return SimpleNamespace(
        names=names,
        contents=contents,
        splits=splits,
        similarities=[Similarity(1.0, np.eye(3), [i, 0, 0]) for i in range(len(names))],
        select=lambda split: np.flatnonzero(splits == split),
    )


def a_model(names=(), contents=None, **history):
    codes = Codes(np.arange(len(names), dtype=np.float32)[:, None], tuple(names), sources=contents)
    return SimpleNamespace(codes=codes, history=history)


HELD = a_store(["a", "b", "c", "d", "e"], ["A", "B", "C", "D", "B"], ["train", "train", "test", "test", "test"])


def test_test_shapes_that_were_learned_from_are_left_out():
    with pytest.warns(UserWarning, match="2 of 3 test shapes are left out, since the network learned from them: d, e"):
        assert unseen.unseen(HELD, a_model(["x", "y"], ("D", "B"))).tolist() == [2]
    with pytest.raises(ConfigError, match="all 3 test shapes .* another --seed"):
        unseen.unseen(HELD, a_model(["x", "y", "z"], ("D", "B", "C")))
    assert unseen.unseen(HELD, a_model(["c"], ("other",))).tolist() == [2, 3, 4]  # of the same name only


def test_a_network_without_recorded_shapes_is_not_checked():
    for model in (a_model(["c"]), SimpleNamespace(codes=None, history={})):
        with pytest.warns(UserWarning, match="does not say"):
            assert unseen.unseen(HELD, model).tolist() == [2, 3, 4]
        assert unseen.matched_training(HELD, model) == [] and unseen.rebuilt_codes(HELD, model) is None
        assert not len(unseen.training(HELD, model))
    assert unseen.count(model) is None and unseen.count(a_model(["c"])) == 1
    assert unseen.count(a_model(["c"], shapes=7)) == 7


def test_training_shapes_are_matched_by_content():
    model = a_model(["a", "e", "gone", "new"], ("X", "B", "Y", "C"))
    assert unseen.matched_training(HELD, model) == [
        (1, 4),
        (3, 2),
    ]  # of two alike that of its name; a's is another shape
    codes = unseen.rebuilt_codes(HELD, model)
    assert codes.names == ("e", "c") and codes.values.ravel().tolist() == [1, 3]
    assert [transform.translation[0] for transform in codes.similarities] == [4, 2]
    assert not len(unseen.training(HELD, model))  # of some nothing is here
    assert unseen.training(HELD, a_model(["q", "r"], ("B", "A"))).tolist() == [0, 1]


def test_sources_without_a_description_have_no_identity():
    store = a_store(["a", "b"], [NOTHING, NOTHING], ["train", "test"])
    model = a_model(["a"], (NOTHING,))
    assert unseen.unseen(store, model).tolist() == [1] and unseen.matched_training(store, model) == []


# The same unseen shapes for several networks


@pytest.fixture
def folder(tmp_path):
    for i in range(10):
        path = tmp_path / "meshes" / f"{i}.ply"
        path.parent.mkdir(exist_ok=True)
        trimesh.creation.box((1, 1 + i, 2)).export(path)
    return tmp_path / "meshes"


def contents(folder, names):
    return tuple(sources.content(s.mark()) for s in sources.discover(folder) if s.name in names)


@pytest.mark.parametrize("seed", range(3))
def test_of_a_folder_the_shapes_that_the_runs_kept(folder, tmp_path, capsys, seed):
    """Whatever the seed, and although the folder was moved."""
    one, two = "01234567", "12345678"
    models = {tmp_path / name: a_model(name, contents(folder, name)) for name in (one, two)}
    moved = folder.rename(tmp_path / "moved")
    assert [s.name for s in compare.unseen(str(moved), models, 16, seed)] == ["9"]
    assert "9 of 10 shapes are left out" in capsys.readouterr().err
    models[tmp_path / "all"] = a_model("9", contents(moved, "9"))
    with pytest.raises(ConfigError, match="none that no network learned from"):
        compare.unseen(str(moved), models, 16, seed)


def test_shapes_that_validated_a_run_are_no_test(folder, tmp_path):
    found = [dataclasses.replace(s, split="val" if s.name == "3" else s.split) for s in sources.discover(folder)]
    recipe = Recipe(near=0, uniform=0, surface=10, occupancies=0)
    store = stores.build(tmp_path / "run" / "store", found, recipe, progress=False)
    names = [store.names[i] for i in store.select("train")]
    kept = {store.names[i] for i in store.select("test")}
    for model in (a_model(names, contents(folder, names)), a_model(names)):  # an older one is told by names
        found = compare.unseen(str(folder), {tmp_path / "run": model}, 16, 5)
        assert {s.name for s in found} == kept


def test_a_seed_of_a_family_that_a_network_knows_is_refused(tmp_path):
    known = [sources.Procedural("mug", seed=1, index=i) for i in range(9)]
    model = a_model([s.name for s in known], tuple(sources.content(s.mark()) for s in known))
    with pytest.raises(ConfigError, match="another --seed"):
        compare.unseen("mug", {tmp_path: model}, 4, 1)
    assert len(compare.unseen("mug", {tmp_path: model}, 4, 2)) == 4
    assert [s.index for s in compare.unseen("mug", {tmp_path: model}, 10, 1)] == [9, 10]


def test_the_table_of_a_comparison_names_the_runs():
    times = {"code_seconds": 0.5, "mesh_seconds": 0.25}
    row = {"data": "mug", "run": "runs/a", "network": "deepsdf", "method": "fitted, 300 points", **times}
    lines = compare.table([row | dict.fromkeys(compare.SHOWN, 0.5) | {"iou": None}]).splitlines()
    assert lines[2] == "| mug | runs/a (deepsdf) | fitted, 300 points | – | 0.5000 | 0.500 | 0.500 | 0.500 | 0.250 |"
    assert all(line.count("|") == lines[2].count("|") for line in lines)


# Classes


def test_classes_are_the_folders_of_the_shapes(tmp_path):
    for kind, first in (("chair", 0), ("mug", 100)):
        for split in ("train", "test"):
            for i in range(2):
                path = tmp_path / split / kind / "new" / f"{first + i:03d}{split[1:3]}.ply"
                path.parent.mkdir(parents=True, exist_ok=True)
                trimesh.creation.box((1, 1, 2)).export(path)
    recipe = Recipe(near=0, uniform=0, surface=10, occupancies=0)
    store = stores.build(tmp_path / "store", sources.discover(tmp_path), recipe, progress=False)
    classes, labels = purify.families(stores.open(store.folder), range(len(store)))
    assert classes == ["chair", "mug"]
    assert [classes[label] for label in labels] == ["chair" if name < "1" else "mug" for name in store.names]


def test_classes_of_families_and_of_names():
    def classes(names, categories):
        return purify.families(SimpleNamespace(names=names, categories=categories), range(len(names)))[0]

    assert classes(["a_0", "a_1", "b_0"], ["car", "car", "mug"]) == ["car", "mug"]
    assert classes(["chair_0", "chair_1", "train/mug_1"], [""] * 3) == ["chair", "mug"]
    for names in (["000", "001", "002"], ["mug_0", "mug_1"]):
        with pytest.raises(ConfigError, match="several classes"):
            classes(names, [""] * len(names))


def test_what_is_measured_is_measured_once():
    chosen, asked = {"place": "streamed"}, []

    def measure():
        asked.append(1)
        return 2048

    assert autotune(chosen, "place", measure) == "streamed" and not asked
    assert autotune(chosen, "micro_batch", measure) == autotune(chosen, "micro_batch", measure) == 2048
    assert len(asked) == 1 and chosen == {"place": "streamed", "micro_batch": 2048}
