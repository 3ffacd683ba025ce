"""What every method of fitting is: a solver, whose steps run inside of compiled programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax

State = TypeVar("State")  # of one problem: a tree with `at`, the unknowns, and `loss`, the last one that was computed


class Solver(Protocol[State]):
    """A method that lowers the loss of a problem step by step: `NewtonSolver`, `OptaxSolver`."""

    def init(self, at: Any, /) -> State:
        """The state at the initial unknowns."""
        ...

    def step(self, state: State, problem: Any, /) -> State:
        """The state after one step.  problem: what the loss is in this step, in the form that the solver takes."""
        ...

    def converged(self, before: Any, after: Any, /) -> Any:
        """Whether the loss has stopped falling, bool, from its values before and after some steps."""
        ...


def advance(solver: Solver[State], state: State, problem: Any, steps) -> State:
    """The state after `steps` steps on the same problem; the number of steps may be traced."""
    return jax.lax.fori_loop(0, steps, lambda _, state: solver.step(state, problem), state)


def trace(solver: Solver, at, problem: Callable, steps: int) -> tuple[Any, jax.Array]:
    """The unknowns after each of `steps` steps, and the loss of each [steps].

    problem: (number of the step) → the problem of this step.
    """

    def step(state, number):
        state = solver.step(state, problem(number))
        return state, (state.at, state.loss)

    return jax.lax.scan(step, solver.init(at), jax.numpy.arange(steps))[1]
