r"""Free parameters for every datum, fitted with the model fixed.

For fixed :math:`\theta` the ELBO is a sum of terms that share nothing,
:math:`\sum_n \mathrm{ELBO}_n(\lambda_n)`, so all data are optimized at once by one Adam whose
state and step size belong to the datum. The gradient is the path derivative: the score of q has
mean zero and is left out, so that the noise of the gradient vanishes as q approaches the
posterior. Steps come in rounds; a datum whose ELBO did not rise in a round, beyond the error of
that comparison, gets a smaller step size, and is done when that is small enough. Done data are
no longer computed. The answer is the average of the last round's iterates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from .._types import Batch
from ..programs import Program, evaluating
from .families import Family


@dataclass(frozen=True)
class FitRows:
    """How free parameters are fitted to every datum.

    Arguments:
        num_particles: Draws a step and datum.
        lr: First step size of Adam.
        shrink: Factor on a datum's step size when its ELBO has stopped rising.
        lr_end: A datum is done when its step size falls below this one.
        round_steps: Steps a round; the ELBO of a round is the mean over its steps.
        patience: Rounds without a rise after which the step size shrinks.
        max_rounds: Data that are not done by then are reported as not converged.
        max_rows: Data times particles in memory at once.
    """

    num_particles: int = 8
    lr: float = 0.1
    shrink: float = 0.25
    lr_end: float = 0.005
    round_steps: int = 40
    patience: int = 2
    max_rounds: int = 40
    max_rows: int = 16_384


class RowFit(NamedTuple):
    """Fitted parameters `(batch, parameters)`, their ELBO with its error in nats, and verdicts.

    `rounds` is the number of rounds until the last datum was done.
    """

    parameters: Tensor
    elbo: Tensor
    error: Tensor
    converged: Tensor
    rounds: int


def fit_parameters(
    program: Program,
    family: Family,
    batch: Batch,
    start: Float[Tensor, "batch parameters"],
    method: FitRows,
    *,
    progress: bool = False,
) -> RowFit:
    """Maximizes every datum's ELBO over the parameters of its own q, the model fixed.

    Arguments:
        program: The model, as a density per datum.
        family: The family of q.
        batch: The data.
        start: Where to start, `(batch, parameters)`.
        method: Step sizes, draws and rounds.
        progress: Whether to show a bar of the data that are done.

    Returns:
        The parameters; the ELBO over the last round with its standard error, in nats (every step
        has fresh draws, so it is not optimistic); and whether each datum's ELBO had stopped rising.
    """
    size = max(1, method.max_rows // method.num_particles)
    positions = torch.arange(len(start))
    pieces = zip(*(part.split(size) for part in (positions, start, *batch)), strict=True)
    bar = tqdm(total=len(start), desc="fit rows", leave=None, disable=not progress)
    with evaluating(program.model), bar:
        fits = [
            _Rows(program, family, tuple(part), first, method).run(rows, bar.update)
            for rows, first, *part in pieces
        ]
    return RowFit(
        parameters=torch.cat([fit.parameters for fit in fits]),
        elbo=torch.cat([fit.elbo for fit in fits]),
        error=torch.cat([fit.error for fit in fits]),
        converged=torch.cat([fit.converged for fit in fits]),
        rounds=max(fit.rounds for fit in fits),
    )


class _Rows:
    """The state of an optimization over some data: one row each, in every tensor."""

    def __init__(
        self, program: Program, family: Family, batch: Batch, start: Tensor, method: FitRows
    ) -> None:
        self.program, self.family, self.batch, self.method = program, family, batch, method
        self.parameters = start.detach().clone()
        self.moment, self.square = torch.zeros_like(start), torch.zeros_like(start)
        rows = len(start)
        self.lr = torch.full((rows,), method.lr, dtype=start.dtype, device=start.device)
        self.elbo = torch.full((rows,), -torch.inf, dtype=torch.float64, device=start.device)
        self.error = torch.full_like(self.elbo, torch.inf)
        self.flat = torch.zeros_like(self.lr)  # rounds since the ELBO last rose
        self.steps = 0

    def run(self, positions: Tensor, report: Callable[[int], object]) -> RowFit:
        """All rounds; `positions` in the data set name rows in errors, `report` counts the done."""
        self.positions, rounds = positions, 0
        for rounds in range(self.method.max_rounds + 1):
            active = (self.lr >= self.method.lr_end).nonzero().squeeze(-1)
            if len(active) == 0 or rounds == self.method.max_rounds:
                break
            self._round(active)
            report(int((self.lr[active] < self.method.lr_end).sum()))
        return RowFit(self.parameters, self.elbo, self.error, self.lr < self.method.lr_end, rounds)

    def _round(self, active: Tensor) -> None:
        """Some steps on the data that are not done; then their verdicts."""
        batch = tuple(part[active] for part in self.batch)
        values, average = [], torch.zeros_like(self.parameters[active])
        for _ in range(self.method.round_steps):
            values.append(self._step(active, batch))
            average += self.parameters[active] / self.method.round_steps
        draws = torch.stack(values)  # (steps, active)
        elbo, error = draws.mean(dim=0), draws.std(dim=0) / len(draws) ** 0.5
        rose = elbo - self.elbo[active] > 2 * (error**2 + self.error[active] ** 2).sqrt()
        flat = torch.where(rose, 0, self.flat[active] + 1)
        tired = flat >= self.method.patience
        self.lr[active] *= torch.where(tired, self.method.shrink, 1.0)
        self.flat[active] = torch.where(tired, 0, flat)
        self.elbo[active], self.error[active] = elbo, error
        done = self.lr[active] < self.method.lr_end
        self.parameters[active[done]] = average[done]

    def _step(self, active: Tensor, batch: Batch) -> Tensor:
        """One step of Adam a datum; returns their ELBO estimates, `(active,)`."""
        parameters = self.parameters[active].requires_grad_()
        with torch.enable_grad():
            z = self.family(parameters).rsample(torch.Size((self.method.num_particles,)))
            log_q = self.family(parameters.detach()).log_prob(z)
            elbo = (self.program.log_joint(z, *batch) - log_q).mean(dim=0)
            (gradient,) = torch.autograd.grad(elbo.sum(), parameters)
        _check_finite(elbo.detach(), gradient, active, self.positions)
        self._adam(active, gradient)
        return elbo.detach().double()

    def _adam(self, active: Tensor, gradient: Tensor) -> None:
        self.steps += 1  # a datum is active from the first step until it is done
        beta1, beta2, epsilon = 0.9, 0.999, 1e-8  # the defaults of Kingma & Ba
        moment = self.moment[active].lerp(gradient, 1 - beta1)
        square = self.square[active].lerp(gradient.square(), 1 - beta2)
        self.moment[active], self.square[active] = moment, square
        scale = (square / (1 - beta2**self.steps)).sqrt() + epsilon
        step = moment / (1 - beta1**self.steps) / scale
        self.parameters[active] += self.lr[active].unsqueeze(-1) * step


def _check_finite(elbo: Tensor, gradient: Tensor, active: Tensor, positions: Tensor) -> None:
    bad: Bool[Tensor, " active"] = ~(elbo.isfinite() & gradient.isfinite().all(dim=-1))
    if bool(bad.any()):
        row = int(positions[int(active[bad.nonzero()[0]])])
        raise FloatingPointError(
            f"the ELBO or its gradient is not finite for {int(bad.sum())} data (the first is row "
            f"{row}: ELBO {float(elbo[bad][0]):.4g}); check the program's log density there"
        )
