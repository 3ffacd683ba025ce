"""Settings of fitting codes and poses to observations (`inference.fitting`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, Literal, Protocol, runtime_checkable

from jonet.errors import ConfigError, shown

Method = Literal["gauss_newton", "adam", "lbfgs"]


@dataclasses.dataclass(frozen=True)
class GaussNewton:
    """Levels, each with more observations and a smaller ε than the one before; one entry of each tuple per level."""

    points: tuple[int, ...] = (1024, 2048, 8192)  # observations of a shape, rounded up to blocks of 1,024
    huber_epsilon: tuple[float, ...] = (0.03, 0.003, 0.001)  # ε, errors below which the loss is quadratic
    phases: tuple[int, ...] = (4, 4, 6)  # largest number of phases; converged shapes leave between phases
    steps: int = 2  # steps per phase
    tolerance: float = 0.01  # a shape has converged when a phase lowers its loss by at most this fraction
    damping: float = 0.1  # initial λ

    def __post_init__(self):
        if not 0 < len(self.points) == len(self.huber_epsilon) == len(self.phases):
            raise ConfigError(
                f"points {self.points}, huber_epsilon {self.huber_epsilon} and phases {self.phases} must have the same "
                "number of levels"
            )
        if min(*self.points, *self.phases, self.steps) < 1 or min(*self.huber_epsilon, self.damping) <= 0:
            raise ConfigError("points, phases and steps must be at least 1, huber_epsilon and damping above 0")


@dataclasses.dataclass(frozen=True)
class Adam:
    """DeepSDF's published loop (`reconstruct.py`): 800 steps on new rows, a tenth of the rate after half of them."""

    steps: int = 800  # of Adam, 1 or more
    rows: int = 8000  # observations per step, half of each group
    rate: float = 5e-3  # learning rate of the first half
    drop: float = 0.1  # factor of the rate after every int(steps / 2) steps
    decay: float = 1e-4  # weight of the mean of the code's squares
    draw: Literal["windows", "rows"] = "windows"  # consecutive rows after one permutation, as published; or single rows
    start: Literal["noise", "best"] = "noise"  # N(0, 0.01²), as published; or the best training code

    def __post_init__(self):
        if self.steps < 2 or self.rows < 2 or self.rows % 2:
            raise ConfigError(f"steps is {self.steps} and rows {self.rows}, but both must be at least 2 and rows even")


@dataclasses.dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS with a zoom line search, on the Huber loss of Gauss-Newton's last level."""

    steps: int = 100  # of L-BFGS, 1 or more
    memory: int = 10  # pairs of steps and gradients that approximate the Hessian
    points: int = 8192  # observations of a shape, rounded up to blocks of 1,024
    huber_epsilon: float = 0.001  # ε, errors below which the loss is quadratic, in the normalized frame

    def __post_init__(self):
        if min(self.steps, self.memory, self.points) < 1 or self.huber_epsilon <= 0:
            raise ConfigError("steps, memory and points must be at least 1, huber_epsilon above 0")


@runtime_checkable
class GradientTransformation(Protocol):
    """An `optax.GradientTransformation`, described here without optax, which imports jax."""

    @property
    def init(self) -> Callable[..., Any]:
        """(parameters) → state."""
        ...

    @property
    def update(self) -> Callable[..., Any]:
        """(gradient, state, parameters, …) → updates, state."""
        ...


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Settings of fitting codes."""

    method: Method = "gauss_newton"  # Gauss-Newton; Adam, as published; or L-BFGS
    seed: int = 0  # seed of all random numbers
    clamp: float = 0.1  # δ, distance in the normalized frame beyond which only the sign counts (fixed as published)
    prior: float = 1e-4  # weight of the prior against a mean error; 1e-3 for partial views (Adam has its own penalty)
    # σ of the paper's prior of codes, ‖z‖²/σ² beside the sum of a whole step's errors (eq. 10), in place of `prior` and
    # `adam.decay`; 0: these.  Of networks that were trained with learning.prior=paper (there 0.01)
    prior_sigma: float = 0.0
    candidates: int = 256  # largest number of training codes that are tried as starts
    probe: int = 128  # observations of a shape that they are tried on
    # best candidates from which Gauss-Newton starts, of a network with an encoder its code first; one continues after
    # the first level
    starts: int = 4
    offset: float = 0.01  # η, distance of the samples in front of and behind a surface point with a normal
    gauss_newton: GaussNewton = GaussNewton()
    adam: Adam = Adam()
    lbfgs: LBFGS = LBFGS()
    # from Python only: an optax.GradientTransformation that takes Adam's place in its loop, with the other settings of
    # `adam`; used whatever `method` is.  One object compiles once; files cannot hold it
    optimizer: GradientTransformation | None = dataclasses.field(default=None, metadata={"python_only": True})

    def __post_init__(self):
        self._check_optimizer()
        if self.method not in ("gauss_newton", "adam", "lbfgs"):
            raise ConfigError(f"method is {self.method!r}, but must be 'gauss_newton', 'adam' or 'lbfgs'")
        if not (self.clamp > 0 and self.prior >= 0 and self.prior_sigma >= 0 and self.offset > 0):
            raise ConfigError("clamp and offset must be above 0, the prior's weight and prior_sigma 0 or more")
        if min(self.candidates, self.probe, self.starts) < 1:
            raise ConfigError("candidates, probe and starts must be at least 1")

    @property
    def code_weight(self) -> float:
        """1/σ² of the prior that `prior_sigma` names, divided by the number of observations in the sum of a whole step,
        as published (8,000 or 8,192, also of a shape that has fewer): the weight of ‖z‖² beside a mean error.  0
        without such a prior."""
        if not self.prior_sigma:
            return 0.0
        terms = {"gauss_newton": max(self.gauss_newton.points), "adam": self.adam.rows, "lbfgs": self.lbfgs.points}
        return 1 / (self.prior_sigma**2 * terms[self.solver])

    @property
    def solver(self) -> Method:
        """The method whose loop runs: that of Adam for an optimizer."""
        return self.method if self.optimizer is None else "adam"

    def unread(self, group: str) -> dict[str, str]:
        """Options, below the name of their group, that have no effect with the others, each with the reason."""
        others = {"gauss_newton", "adam", "lbfgs"} - {self.solver}
        found = {f"{group}.{name}": f"{group}.method is {self.method}" for name in others}
        if self.solver != "gauss_newton":
            found[f"{group}.starts"] = f"{group}.method is {self.method}, which has one start"
        if self.solver == "adam":
            found[f"{group}.prior"] = f"{group}.method is adam, whose penalty is adam.decay"
        if self.prior_sigma:
            found |= dict.fromkeys((f"{group}.prior", f"{group}.adam.decay"), f"{group}.prior_sigma takes its place")
        return found

    def _check_optimizer(self) -> None:
        if self.optimizer is None:
            return
        if not (isinstance(self.optimizer, GradientTransformation) and isinstance(self.optimizer, Hashable)):
            raise ConfigError(
                f"optimizer is {shown(self.optimizer)}, but must be an optax.GradientTransformation, such as "
                "optax.adam(5e-3); methods of jonet are named by method"
            )
        if self.method == "lbfgs":
            raise ConfigError("method is 'lbfgs', but optimizer takes the place of the method; give one of them")
        if (self.adam.rate, self.adam.drop) != (Adam.rate, Adam.drop):
            raise ConfigError("adam.rate and adam.drop are given with an optimizer, which has its own learning rate")


@dataclasses.dataclass(frozen=True)
class PoseConfig:
    """Settings of fitting codes and poses: the initial rotations, and how many of them continue after each level."""

    rotations: Literal["yaw", "any"] = "yaw"  # about the vertical axis (finds tilts up to about 30°), or any rotation
    tries: int = 16  # initial rotations ("any" needs about a hundred)
    keep: tuple[int, ...] = (4, 1, 1)  # how many of them continue after each level of Gauss-Newton
    radius: float = 1 / 1.03  # of the ball a scan is first moved into; 0 for scans about in place and of the right size
    spread: float = 0.5  # expected offset of shift and log-scale from their initial values
    fitting: FitConfig = FitConfig(  # of the code; method must be Gauss-Newton, and `starts` is not used
        prior=1e-3, gauss_newton=GaussNewton(huber_epsilon=(0.03, 0.005, 0.001), phases=(8, 5, 12), steps=3)
    )

    def __post_init__(self):
        levels = len(self.fitting.gauss_newton.points)
        if self.fitting.solver != "gauss_newton":
            raise ConfigError(f"method is {self.fitting.solver!r}, but code and pose are fitted by 'gauss_newton' only")
        if len(self.keep) != levels or self.keep[-1] != 1 or list(self.keep) != sorted(self.keep, reverse=True):
            raise ConfigError(f"keep is {self.keep}, but must be {levels} numbers in falling order, the last of them 1")
        if self.rotations not in ("yaw", "any") or self.tries < self.keep[0]:
            raise ConfigError(f"rotations must be 'yaw' or 'any', and tries at least {self.keep[0]}")
        if not (self.radius >= 0 and self.spread > 0):
            raise ConfigError(f"radius is {self.radius} and spread {self.spread}, but must be at least and above 0")

    @property
    def stiffness(self) -> float:
        """Weight of the penalty on shift and log-scale: an offset of `spread` costs half the weight of the prior."""
        return self.fitting.prior / self.spread**2
