"""Free parameters for every datum, fitted with the model fixed.

The ELBOs of all data, averaged over fixed points instead of q, are maximized at once. The
parameters of a datum can overfit the points. They have overfitted if a further step, evaluated at
other points, is predicted to gain more than a few thousandths of a nat, or if the ELBO over fresh
draws is below the ELBO over the points. The datum is then refitted with more points, starting from
its last parameters. The final predicted gain is reported as the possible distance from the best q.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import pyro
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from .. import stats
from .._annotations import Interval
from .._types import Batch
from ..compiling import CompiledDensity
from ..formatting import count_of
from ..programs import Density, Program, evaluating
from ..programs.pieces import slices, take_rows
from ..programs.running import bytes_per_row
from ..progress import progress_bar
from ..randomness import forked, forked_if, row_keys, stream
from ..results import Doubt, Doubts, PerDatum, join, with_rows
from .families import Family
from .optimization import FRESH_DRAWS, FitRows, Problem, maximize
from .reparameterization import FEW, Noise, SeededNoise, noise_size

_MEMORY = 2**28  # bytes for the program's results per call; gradients take as much again
_ROWS_TOGETHER = 8  # rows that take a step together, as a multiple of the rows per program call
_OPTIMISTIC = 2.0  # standard errors; by chance 2% of the data exceed this, and are refitted
_POINTS = (1, 4, 16)  # factors on the number of points, tried in this order
_LEFT = 5e-3  # nats; for a smaller gain more points are not worth their cost
_LEFT_OF_FEW = 1e-3  # the same for one or two latents, where points are cheap
_MOST_LEFT = 0.05  # nats; above this distance the best q counts as not found
_JUDGES = 2  # factor on the number of points at which the remaining gain is predicted


@dataclass(frozen=True, repr=False)
class RowFit(PerDatum):
    """Parameters fitted to every datum, and their ELBO.

    Arguments:
        parameters: The fitted parameters, `(batch, parameters)`.
        elbo: ELBO at these parameters, `(batch,)`, in nats; averaged over fresh draws, and
            therefore not optimistic.
        error: Standard error of `elbo`, `(batch,)`, in nats.
        converged: Whether each datum converged within the allowed steps, `(batch,)`.
        steps: Number of steps until the last datum converged or stopped.
        left: Possible distance from the best ELBO, `(batch,)`, in nats; infinite for data that were
            not checked.
    """

    parameters: Tensor
    elbo: Tensor
    error: Tensor
    converged: Tensor
    steps: int
    left: Tensor

    @property
    def value(self) -> Tensor:
        """The ELBO of every datum."""
        return self.elbo

    @property
    def doubts(self) -> Doubts:
        """Marks every datum whose fit stopped before convergence."""
        return {Doubt.FIT_STOPPED: ~self.converged}

    def columns(self) -> dict[str, Tensor]:
        """Named results for every datum: the ELBO, its standard error, and the parameters."""
        return {"elbo": self.elbo, "error": self.error, "parameters": self.parameters}

    def summary(self) -> str:
        """One line with the mean ELBO, the number of steps, and how many data converged."""
        return (
            f"ELBO {self.mean} nats per datum after {count_of(self.steps, 'step')}; {self.trust()}"
        )


def fit_parameters(
    program: Program,
    family: Family,
    batch: Batch,
    start: Float[Tensor, "batch parameters"],
    fitting: FitRows,
    *,
    seed: int = 0,
    progress: bool | None = None,
    refit: bool = True,
) -> RowFit:
    """Maximizes every datum's ELBO over the parameters of its own q, with the model fixed.

    Arguments:
        program: The model's `Program`, which gives its log density per datum.
        family: The family of q.
        batch: The data.
        start: Initial parameters, `(batch, parameters)`.
        fitting: Number of points, tolerance, and number of steps; see :class:`FitRows`.
        seed: Seed of the points and of the fresh draws; the caller's random streams are left alone.
        progress: Whether to show a progress bar that counts the converged data.
        refit: Whether to fit a datum again with more points if its points were overfitted. Not
            needed for a rough fit.

    Returns:
        The parameters; their ELBO over 64 fresh draws and its standard error, in nats, float64;
        whether each datum converged; and the possible distance from the best ELBO. With `refit`, a
        datum counts as converged only if this distance is below 0.05 nats.

    Raises:
        FloatingPointError: If the ELBO of a datum is not a number at the start.
    """
    if program.latent_dim == 0:  # all sites are discrete, and q has no parameters
        return _without_latents(program, batch, start)
    fitting = _within_memory(program, family, batch, fitting)
    keys = row_keys(seed, "fit.judge", *batch)
    fitter = _Fitter.of(program, family, fitting, seed, start)
    bar = progress_bar(show=progress, total=len(start), desc="fit rows")
    with bar:
        first, *others = fitter.stages if refit else (1,)
        fit = fitter.times(first).fit(batch, start, keys, bar.update, judged=refit)
        for more in others:
            rows = fit.is_unfinished(fitter.enough).nonzero().squeeze(-1)
            if len(rows) == 0:
                break
            part = take_rows(batch, rows)
            # With the same draws, data that seemed overfitted by chance would seem so again.
            fresh = row_keys(seed, f"fit.judge.{more}", *batch)[rows.cpu()]
            with pyro.validation_enabled(is_validate=False):  # the data have already been validated
                again = fitter.times(more).fit(part, fit.parameters[rows], fresh, judged=True)
            again = again._replace(steps=fit.steps[rows] + again.steps)
            fit = with_rows(fit, rows, again)
    converged = fit.converged & (fit.left < _MOST_LEFT) if refit else fit.converged
    return RowFit(fit.parameters, fit.elbo, fit.error, converged, int(fit.steps.max()), fit.left)


def _without_latents(program: Program, batch: Batch, start: Tensor) -> RowFit:
    """The result for a program without latents, whose ELBO is log p(y) and needs no fit."""
    with evaluating(program.model), torch.no_grad():
        elbo = program.log_joint(start[None], *batch)[0].double()
    exact = torch.zeros_like(elbo)
    return RowFit(start, elbo, exact, torch.ones_like(elbo, dtype=torch.bool), 0, exact)


class _Fitted(NamedTuple):
    """Fitted parameters, their ELBO over the points and over fresh draws, and convergence."""

    parameters: Float[Tensor, "batch parameters"]
    over_points: Float64[Tensor, " batch"]
    elbo: Float64[Tensor, " batch"]
    error: Float64[Tensor, " batch"]
    converged: Tensor
    steps: Tensor
    left: Float64[Tensor, " batch"]

    def is_unfinished(self, enough: float) -> Tensor:
        """Whether each datum's fit overfitted its points, so that it has to go on with more points.

        This shows in two ways: the ELBO over fresh draws is below the ELBO over the points, or a
        further step, evaluated at other points, is predicted to gain more than `enough` nats.
        """
        # If q is exact, `error` is 0, and only the slack for rounding prevents a needless refit.
        slack = _OPTIMISTIC * self.error + stats.rounding(self.elbo)
        return (self.over_points - self.elbo > slack) | (self.left > enough)


@dataclass(frozen=True)
class _Fitter:
    """Fits rows of data, with the same settings for every call."""

    program: Density
    family: Family
    fitting: FitRows
    seed: int
    few_latents: bool

    @staticmethod
    def of(
        program: Program, family: Family, fitting: FitRows, seed: int, start: Tensor
    ) -> "_Fitter":
        """Builds the fitter, whose densities are compiled on request or if compiling saves time."""
        size = noise_size(family(start[:1].detach()))
        few = size is not None and size <= FEW
        return _Fitter(_compiled(program, fitting), family, fitting, seed, few)

    @property
    def stages(self) -> tuple[int, ...]:
        """Factors by which the number of points is multiplied, in the order of the attempts."""
        return _POINTS[1:] if self.few_latents else _POINTS

    @property
    def enough(self) -> float:
        """Predicted gain, in nats, below which a datum is not refitted with more points."""
        return _LEFT_OF_FEW if self.few_latents else _LEFT

    def times(self, more: int) -> "_Fitter":
        """Returns a copy in which the number of points is multiplied by `more`."""
        return replace(self, fitting=self.fitting.times(more)) if more > 1 else self

    def fit(
        self,
        batch: Batch,
        start: Tensor,
        keys: Tensor,
        report: Callable[[int], object] = lambda done: None,
        *,
        judged: bool = False,
    ) -> _Fitted:
        """Fits the parameters with noise that stays fixed during the fit.

        The ELBO that is returned is averaged over fresh noise. If `judged` is true, the result also
        has the number of nats by which one more step would raise the ELBO, predicted with noise
        that the fit did not use.
        """
        problem = Problem.of(self.program, self.family, batch, start, self.fitting, self.seed)
        with _fixed(self.program, self.family, problem.noise):
            optimizers = [
                maximize(
                    problem.of_rows(rows),
                    start[rows],
                    self.fitting,
                    first=rows.start,
                    report=report,
                )
                for rows in _pieces(problem)
            ]
            parameters = torch.cat([optimizer.parameters for optimizer in optimizers])
            values = [
                problem.of_rows(rows).fresh_elbo(parameters[rows], keys[rows])
                for rows in slices(len(start), problem.max_rows // FRESH_DRAWS)
            ]
        parts = [(optimizer.elbo, optimizer.converged, optimizer.taken) for optimizer in optimizers]
        over_points, converged, taken = join(parts)
        elbo, error = join(values)
        left = self._left(batch, parameters) if judged else torch.full_like(elbo, torch.inf)
        return _Fitted(parameters, over_points, elbo, error, converged, taken, left)

    def _left(self, batch: Batch, parameters: Tensor) -> Float64[Tensor, " batch"]:
        """Predicts how many nats a further step would add to the ELBO averaged over other points.

        If the prediction is nan, the result is inf.
        """
        fitting = self.fitting.times(_JUDGES)
        seed = stream(self.seed, "fit.left")
        problem = Problem.of(self.program, self.family, batch, parameters, fitting, seed)
        with (
            _fixed(self.program, self.family, problem.noise),
            pyro.validation_enabled(is_validate=False),
        ):
            left = torch.cat(
                [
                    problem.of_rows(rows).predicted_gain(parameters[rows])
                    for rows in _pieces(problem)
                ]
            )
        return left.nan_to_num(nan=torch.inf)


def refine_parameters(
    program: Program,
    family: Family,
    batch: Batch,
    start: Float[Tensor, "batch parameters"],
    steps: Annotated[int, Interval(0)],
    *,
    num_particles: int = 8,
    first: int = 0,
) -> Float[Tensor, "batch parameters"]:
    """Takes a few deterministic steps from `start` that increase every datum's ELBO.

    Arguments:
        program: The model's `Program`, which gives its log density per datum.
        family: The family of q.
        batch: The data.
        start: Initial parameters, `(batch, parameters)`.
        steps: Maximum number of steps. The start and each step cost one evaluation of the program
            and its gradient. A datum that converges earlier takes fewer steps.
        num_particles: Points per datum; see :class:`FitRows`. They are the same in every call.
        first: Position of the first row, for error messages.

    Returns:
        The parameters, without a gradient. The function can be called under `torch.no_grad()`.

    Raises:
        FloatingPointError: If the ELBO of a datum is not a number at the start.
    """
    fitting = FitRows(num_particles=num_particles, max_steps=steps)
    problem = Problem.of(program, family, batch, start, fitting, seed=0)
    with _fixed(program, family, problem.noise):
        return maximize(problem, start, fitting, first=first).parameters


def elbo_over_points(
    program: Program,
    family: Family,
    batch: Batch,
    parameters: Float[Tensor, "batch parameters"],
    fitting: FitRows,
    *,
    seed: int,
) -> tuple[Float64[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """Evaluates the ELBO averaged over fixed points, which are the same for all parameters.

    Returns the ELBO of every datum, in nats, and whether this ELBO and its gradient are finite; if
    they are, the datum can be fitted from these parameters.
    """
    fitting, found = _within_memory(program, family, batch, fitting), []
    problem = Problem.of(_compiled(program, fitting), family, batch, parameters, fitting, seed)
    with _fixed(program, family, problem.noise), pyro.validation_enabled(is_validate=False):
        for rows in _pieces(problem):
            point = problem.of_rows(rows)(parameters[rows])
            found.append((point.elbo, point.is_finite))
    return join(found)


def _pieces(problem: Problem) -> list[slice]:
    """Splits the rows into slices; all rows of a slice take their steps at the same time."""
    size = _ROWS_TOGETHER * problem.max_rows // problem.num_points
    return list(slices(len(problem.batch[0]), size))


def _within_memory(program: Program, family: Family, batch: Batch, fitting: FitRows) -> FitRows:
    """Returns the settings, with fewer rows per call of the program if rows need much memory."""
    with evaluating(program.model, family), torch.no_grad(), forked(0, "unused"):
        fits = int(_MEMORY / max(1.0, bytes_per_row(program, batch)))
    return replace(fitting, max_rows=max(1, min(fitting.max_rows, fits)))


def _compiled(program: Program, fitting: FitRows) -> CompiledDensity:
    return CompiledDensity(program, compile=fitting.compile, rows=fitting.max_rows)


@contextmanager
def _fixed(program: Density, family: Family, noise: Noise) -> Iterator[None]:
    """Runs a `with` block in evaluation mode, then restores modes and random streams."""
    seed = 0 if isinstance(noise, SeededNoise) else None
    with evaluating(program.model, family), forked_if(seed, "fit.points"):
        yield
