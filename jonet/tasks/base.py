"""What every task is: `Task`, the steps of a run that depend on the task, and `TaskConfig`, its options."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np

from jonet.chips import Precision
from jonet.codes import Codes
from jonet.data import store as stores
from jonet.data.sampling import Recipe
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.evaluation.gallery import Gallery, Part
from jonet.evaluation.report import Table
from jonet.model import Model
from jonet.settings.metrics import MetricsConfig
from jonet.settings.surfaces import Surfaces
from jonet.tasks.setup import TrainingSetup
from jonet.tasks.shapes import NO_DATA, Shapes


@dataclasses.dataclass(frozen=True)
class TaskConfig(abc.ABC):
    """Options of a task: a frozen dataclass whose fields all have defaults, with the help of each as a comment.

    The properties are what the stages read of every config, so each config has fields of these names.
    """

    learned_samples: ClassVar[tuple[str, ...]] = ()  # counts of `samples`; training needs one of them above 0

    @property
    @abc.abstractmethod
    def data(self) -> str:
        """Procedural families joined by commas, a folder of meshes, or one mesh file; "": to be named by the user."""

    @property
    @abc.abstractmethod
    def seed(self) -> int:
        """Seed of all random numbers, 0 or more."""

    @property
    @abc.abstractmethod
    def shapes(self) -> Shapes:
        """Which shapes are used, and how many."""

    @property
    @abc.abstractmethod
    def samples(self) -> Recipe:
        """What is sampled from each shape."""

    @property
    @abc.abstractmethod
    def surfaces(self) -> Surfaces:
        """How meshes are extracted."""

    @property
    @abc.abstractmethod
    def precision(self) -> Precision:
        """The precision of matrix products after training (`Model.with_precision`)."""

    @property
    @abc.abstractmethod
    def scores(self) -> MetricsConfig:
        """How many points the metrics use."""

    @property
    @abc.abstractmethod
    def rebuilt_train(self) -> int:
        """Number of training shapes that are rebuilt for comparison, 0 or more."""

    @property
    @abc.abstractmethod
    def generated(self) -> int:
        """Number of samples from the prior, and of meshes between two unseen shapes; 0 or more."""

    @property
    def no_data(self) -> str:
        """What to say where no data are named."""
        return NO_DATA

    def unread(self) -> dict[str, str]:
        """Options that have no effect with the others, each with the reason."""
        return self.shapes.unread(self.data)

    def resolved(self, given: set[str]) -> Self:
        """This config after checking the options that the user gave; the others are a preset's.

        given: full names of these options.  Raises ConfigError for one that has no effect with the others.
        """
        unread = self.unread()
        for option in sorted(given):
            for name, reason in unread.items():
                if f"{option}.".startswith(f"{name}."):
                    raise ConfigError(f"{option} is given, but not read: {reason}")
        if not stores.is_there(self.data):
            return self
        recipe = stores.open(self.data).recipe
        if any(option.startswith("samples.") for option in given) and self.samples != recipe:
            raise ConfigError(f"samples are given, but not read: data is the store {self.data}, which has its own")
        return dataclasses.replace(self, **{"samples": recipe})

    def check_later(self) -> None:
        """ConfigError if stages after training could not work with these options."""
        names = self.learned_samples
        if names and not any(getattr(self.samples, name) for name in names):
            raise ConfigError(
                f"of {' and '.join(f'samples.{name}' for name in names)} at least one must be above 0; with 0 there is "
                "nothing to learn from"
            )
        if self.samples.surface < 1:
            raise ConfigError(
                "samples.surface is 0, but metrics and nearest shapes need points on each shape's surface"
            )
        if not self.rebuilt_train and self.shapes.untested(self.data):
            raise ConfigError(
                f"rebuilt_train is 0 and {self.data} leaves no shape to test with, so nothing would be rebuilt; set "
                "rebuilt_train to 1 or more, or shapes.test"
            )


@dataclasses.dataclass(frozen=True)
class TimedConfig(TaskConfig):
    """Options of a task whose training lasts a number of steps, or as many as fit into a number of minutes."""

    @property
    @abc.abstractmethod
    def steps(self) -> int:
        """Training steps, 1 or more."""

    @property
    @abc.abstractmethod
    def minutes(self) -> float:
        """Training time in minutes; 0: `steps`."""

    def resolved(self, given: set[str]) -> Self:
        """As for every config; of steps, minutes and epochs the one that is given replaces the preset's.

        Two of them are a ConfigError, unless one is 0.
        """
        config = super().resolved(given)
        names = [name for name in ("steps", "minutes", "epochs") if hasattr(self, name)]
        said = [name for name in names if name in given and getattr(self, name)]
        if len(said) > 1:
            first, *others = (f"{name} {'is ' * (name == said[0])}{getattr(self, name):g}" for name in said)
            raise ConfigError(
                f"{' and '.join([first, *others])}, but only one of them says how long training lasts; leave out the "
                "others"
            )
        if not said:
            return config
        return dataclasses.replace(config, **{name: 0 for name in names if name not in (said[0], "steps")})


AnyConfig = TypeVar("AnyConfig", bound=TaskConfig)


class Task(abc.ABC, Generic[AnyConfig]):
    """A task: what is learned from shapes, how unseen shapes are represented, and what the report says of it.

    A task has no state of its own: its methods take what they need, first of all the config of the run.  Shapes are
    given by their indices in the store.  `jonet.run.stages` calls the methods stage by stage; each is called by every
    process of a job in the stages prepare and train, and by the first one alone afterwards.

    name: as in `--task`; also in the run folder and in the model's history.
    title: of the report.
    frame: the normalized frame of its networks: "sphere" (radius 1 / 1.03) or "cube" (longest side 1).
    config: the class of its options.
    presets: instances of that class by name; the one that `usual_preset` names is the default.
    parts: the options that each stage reads, in the order of the stages.  A stage is repeated if one of its options
    or of an earlier stage changed, so every field of the config is in one of the parts.
    validated: what the validation of training measures, as the report calls it; higher is better.
    validated_loss: whether that is minus the loss, on other points: the report shows both losses in one chart.
    learns_points: whether it learns shapes from points with occupancies alone, which have no surface to be scored by.
    files: names of the files that `further` writes.
    extends_model: whether a given model is a part of what is trained, and does not take its place.
    """

    name: str
    title: str
    frame: Literal["sphere", "cube"]
    config: type[AnyConfig]
    presets: Mapping[str, AnyConfig]
    parts: Mapping[str, tuple[str, ...]]
    validated: str = ""
    validated_loss: bool = False
    learns_points: bool = False
    files: tuple[str, ...] = ()
    extends_model: bool = False

    def usual_preset(self, data: str) -> str:
        """The name of the default preset for this option `data`."""
        return "quick"

    # Training

    def check_store(self, config: AnyConfig, store: Store) -> None:
        """ConfigError if the task cannot work with a store: by default if that is in another frame."""
        if store.frame != self.frame:
            raise ConfigError(
                f"the store {store.folder} is of the frame {store.frame!r}, but this task works in {self.frame!r}; "
                f"build one with frame={self.frame!r}, or choose another task"
            )

    def check_outline(self, config: AnyConfig, outline: Store) -> None:
        """ConfigError if training could not work with the store that will be built; before anything is sampled.

        outline: `data.store.outline`, whose names, splits and numbers of rows are those of the store.
        """

    def given_model(self, config: AnyConfig) -> Model | None:
        """The trained model that the option `model` names; None without one.

        None is trained in its place, unless the task `extends_model`.  Raises ConfigError if it does not suit the task.
        Runs compare it by its content, not by its path, and leave out test shapes that it was trained on.
        """
        return None

    def given_files(self, config: AnyConfig) -> dict[str, str]:
        """Files that training reads in addition to the store, by the option that names each ("" if it names none).

        Runs compare them by their content, not by their paths.
        """
        return {}

    @abc.abstractmethod
    def training_setup(
        self, config: AnyConfig, store: Store, shapes: Sequence[int] | np.ndarray, key, autotuned: dict[str, Any]
    ) -> TrainingSetup:
        """What the training loop needs.

        shapes: the training shapes.  autotuned: settings measured by an earlier start of the run; missing ones are
        measured now and added (`setup.autotune`).
        """

    @abc.abstractmethod
    def model(
        self, config: AnyConfig, store: Store, shapes: Sequence[int] | np.ndarray, shared, per_shape, batch_stats
    ) -> Model:
        """The trained model, with the codes of its training shapes.

        shapes: the training shapes, in the order of the rows of `per_shape`.
        """

    def solved(self, config: AnyConfig, store: Store, shapes: Sequence[int] | np.ndarray) -> Model | None:
        """A model that is computed in place of the training loop; None, the default, if there is to be a training.

        shapes: the training shapes.
        """
        return None

    def untrained(self, config: AnyConfig) -> str:
        """Why there is no training loop with these options, for `--plan`; "" if there is one."""
        return "a trained model is given" if not self.extends_model and self.given_model(config) is not None else ""

    # Unseen shapes

    def adjusted(self, config: AnyConfig, trained: Model) -> Model:
        """The model with this config's settings of what comes after training: by default of extraction."""
        return dataclasses.replace(trained, surfaces=config.surfaces)

    @abc.abstractmethod
    def observe(self, config: AnyConfig, trained: Model, store: Store, shapes: Sequence[int] | np.ndarray) -> Codes:
        """Codes of unseen shapes, from what the task sees of them; their similarities are from input units."""

    # Scores and report

    def scored(self, config: AnyConfig, trained: Model, store: Store, codes: Codes) -> list[dict[str, Any]]:
        """Per unseen shape: values that are reported with the metrics of its mesh; by default none."""
        return [{} for _ in codes.names]

    def labeled(self, config: AnyConfig, store: Store, shape: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Points [K, 3] and whether they are inside [K], for the IoU of a shape without a mesh; None for one with it.

        By default all points of the store.
        """
        return store.labeled(shape)

    def further(self, config: AnyConfig, trained: Model, store: Store, folder: Path) -> dict[str, Any]:
        """What a task evaluates beyond reconstructed shapes: entries of metrics.json; by default none.

        folder: of the run, where it writes its `files`.
        """
        return {}

    def inputs(self, config: AnyConfig, store: Store, shape: int) -> list[Part]:
        """Pictures of what the network sees of a shape, for the report; by default none."""
        return []

    def shown(
        self, config: AnyConfig, trained: Model, store: Store, folder: Path, values: dict[str, Any]
    ) -> tuple[Sequence[Gallery], Sequence[Table]]:
        """Galleries and tables of the report in addition to those of every task; by default none.

        folder: of the run.  values: the content of metrics.json.
        """
        return (), ()

    @abc.abstractmethod
    def summary(self, unseen: int, trained: int | None) -> str:
        """The report's first sentence.

        unseen: number of reconstructed unseen shapes.  trained: number of training shapes, None if unknown.
        """
