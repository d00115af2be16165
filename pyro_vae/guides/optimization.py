r"""Maximizes the ELBO of every datum over the datum's parameters, with model and noise fixed.

For fixed :math:`\theta` the ELBO is a sum of terms without common parameters,
:math:`\sum_n \mathrm{ELBO}_n(\lambda_n)`. With fixed noise each term is a deterministic function of
the datum's own parameters,

.. math:: f_n(\lambda) = \frac{1}{K} \sum_k \left[\log p(y_n, z_k) - \log q_\lambda(z_k)\right],
    \qquad z_k = T_\lambda(\epsilon_k),

and all terms are maximized at once. Each term has its own steps, line search and stopping rule. The
gradients :math:`\nabla_z \log p(y_n, z_k)` at the points :math:`z_k` come from one backward pass. A
regression of these gradients on the points gives :math:`-P`, the curvature of the log posterior
averaged over q.

1. If the family has a method `closest_normal`, a step leads towards the member closest to
   :math:`\mathcal{N}(\bar z + P^{-1} \bar s, P^{-1})`, where :math:`\bar z` is the mean point and
   :math:`\bar s` the mean gradient. If the posterior is normal, one step reaches the optimum.
   Otherwise this is Newton's method with the averaged curvature. Its fixed point is a maximum of
   :math:`f_n` if the family is normal.
2. Data that did not converge, and all data under other families, take steps of a quasi-Newton
   method, L-BFGS. Its metric is the Fisher information of q, so that no step depends on the units
   of the parameters. One step changes q by at most about two nats of KL divergence.

A datum is done when the predicted gain of a full step is below a tolerance in nats. The noise is
the same for all data, so the result for one datum depends neither on other data nor on the order of
the data.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import pyro
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from .._types import Batch
from ..formatting import count_of
from ..programs import Density
from ..programs.pieces import slices, take_rows
from ..randomness import stream
from ..results import join
from .families import ClosestNormal, Family
from .reparameterization import Noise, fixed_noise, fresh_noise, noise_size

_NEWTON_STEPS = 20  # Newton's method takes about 5 steps; if 20 do not suffice, more do not help
_SUFFICIENT = 1e-4  # least share of the predicted rise (Armijo's usual constant)
_SHORTER = 0.3  # factor on the length of a rejected step
_SHORTEST = 1e-5  # least share of a full step, after about 10 rejections; rounding hides less
_ROUNDINGS = 8.0  # an apparent fall by this many rounding units is ignored
_FLATTEST = 1e-6  # least curvature, as a share of the largest: keeps P invertible
_FARTHEST = 2.0  # longest step in the metric of Fisher information: half its square is KL in nats
FRESH_DRAWS = 64  # the error of the reported ELBO is an eighth of the spread of one draw


@dataclass(frozen=True)
class FitRows:
    """Settings for fitting the free parameters of every datum.

    Arguments:
        num_particles: Points per datum that represent q. A number below twice the number of latents
            (four times for a family without `closest_normal`) is raised to that minimum, because
            fewer points do not determine the curvature in every direction. If the posterior is far
            from normal, more points give an optimum closer to the best q.
        tolerance: A datum is done when a further step is predicted to gain less than this, in nats.
        max_steps: Largest number of steps; data that are not done by then are reported as not
            converged. The start and each step cost one evaluation of the program and its gradient.
        history: Number of past steps that L-BFGS stores.
        max_rows: Largest number of rows (data times particles) per call of the program. The program
            is called with fewer rows if its results would take more than 256 MiB.
        compile: Whether to compile the program's densities and gradients. By default they first run
            eagerly. They are compiled once compiled code would have saved more time than compiling
            takes, about ten seconds. The compiled functions are kept with the model. Compiling
            changes values only by rounding errors, and fitted ELBOs only within the tolerance.

    Raises:
        ValueError: If a number is out of range.
    """

    num_particles: int = 32
    tolerance: float = 1e-4
    max_steps: int = 100
    history: int = 8
    max_rows: int = 16_384
    compile: bool | None = None

    def times(self, more: int) -> "FitRows":
        """A copy of the settings with the number of points multiplied by `more`."""
        return replace(self, num_particles=more * self.num_particles)


class Point(NamedTuple):
    """One evaluation of the ELBO for some data, each datum at its own parameters."""

    parameters: Float[Tensor, "batch parameters"]
    elbo: Float64[Tensor, " batch"]
    gradient: Float64[Tensor, "batch parameters"]
    z: Float[Tensor, "particles batch latents"]
    slope: Float[Tensor, "particles batch latents"]
    weights: Float64[Tensor, "particles batch"]

    @property
    def is_finite(self) -> Tensor:
        """Whether a datum's ELBO and gradient are finite, `(batch,)`."""
        return self.elbo.isfinite() & self.gradient.isfinite().all(dim=-1)

    def take(self, rows: Tensor) -> "Point":
        """Returns the values of this evaluation for a subset of the data."""
        return Point(
            self.parameters[rows],
            self.elbo[rows],
            self.gradient[rows],
            self.z[:, rows],
            self.slope[:, rows],
            self.weights[:, rows],
        )


@dataclass(frozen=True)
class Problem:
    """The ELBO of some data as a function of each datum's parameters.

    The ELBO is averaged over noise that stays fixed.
    """

    program: Density
    family: Family
    batch: Batch
    noise: Noise
    num_points: int
    max_rows: int

    @staticmethod
    def of(
        program: Density,
        family: Family,
        batch: Batch,
        start: Tensor,
        fitting: FitRows,
        seed: int,
    ) -> "Problem":
        """Builds the problem, with noise that suits the family's distributions."""
        q = family(start[:1].detach())
        size = noise_size(q) or q.event_shape[0]
        enough = size * (2 if isinstance(family, ClosestNormal) else 4)
        num_points = max(fitting.num_particles, enough)
        noise = fixed_noise(q, num_points, start, seed=stream(seed, "fit.points"))
        return Problem(program, family, batch, noise, num_points, fitting.max_rows)

    def of_rows(self, rows: slice | Tensor) -> "Problem":
        """Returns the problem for a subset of the data, with the same noise."""
        return replace(self, batch=take_rows(self.batch, rows))

    @torch.enable_grad()
    def __call__(self, parameters: Float[Tensor, "batch parameters"]) -> Point:
        """Evaluates every datum's ELBO and its gradient at the given parameters."""
        leaf = parameters.detach().requires_grad_()
        q, z = self.noise(self.family, leaf)
        at = z.detach()
        log_joint, slope = self._with_gradient(at)
        log_q = q.log_prob(z)
        fails = ~(log_joint.isfinite() & slope.isfinite().all(dim=-1))
        weights, left_out = self.noise.weighted(fails)
        log_joint = log_joint.masked_fill(left_out, 0.0)
        slope = slope.masked_fill(left_out[..., None], 0.0)
        # The chain rule by hand, since the slopes are needed too: f = mean(log p(y, z) - log q).
        bound = (weights.to(z) * ((z * slope).sum(dim=-1) - log_q)).sum()
        (gradient,) = torch.autograd.grad(bound, leaf)
        log_weights = log_joint.double() - log_q.detach().double()
        elbo = (weights * log_weights).sum(dim=0)
        return Point(leaf.detach(), elbo, gradient.double(), at, slope, weights)

    def _with_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Computes log joint and gradient at the points `z`, in chunks that fit into memory."""
        parts = []
        for rows in slices(z.shape[1], self.max_rows // self.num_points):
            at = z[:, rows].requires_grad_()
            log_joint = self.program.log_joint(at, *take_rows(self.batch, rows))
            (slope,) = torch.autograd.grad(log_joint.sum(), at)
            parts.append((log_joint.detach(), slope))
        return join(parts, axis=1)

    @torch.no_grad()
    def fresh_elbo(self, parameters: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates every ELBO, and its standard error, from draws seeded by each row's key."""
        noise = fresh_noise(self.family(parameters[:1]), FRESH_DRAWS, parameters, keys)
        with pyro.validation_enabled(is_validate=False):  # data were validated at the start
            q, z = noise(self.family, parameters)
            draws = self.program.log_joint(z, *self.batch).double() - q.log_prob(z).double()
        return draws.mean(dim=0), draws.std(dim=0) / len(draws) ** 0.5

    def predicted_gain(self, parameters: Tensor) -> Float64[Tensor, " batch"]:
        """Predicts by how many nats a Newton step or a natural gradient step raises the ELBO.

        The ELBO is averaged over the points of this problem. If the parameters were fitted at other
        points, the prediction is usually too high, because the random errors of both averages add
        to the predicted gain.
        """
        point = self(parameters)
        if isinstance(self.family, ClosestNormal):
            gain = _Newton(self, self.family, 0.0).gain(point)[1]
        else:
            gain = _dot(point.gradient, point.gradient / self.information(point))
        return gain.abs() / 2

    @torch.enable_grad()
    def information(self, point: Point) -> Float64[Tensor, "batch parameters"]:
        """Diagonal of q's Fisher information, estimated from the scores at the points."""
        leaf = point.parameters.expand(len(point.z), *point.parameters.shape)
        leaf = leaf.clone().requires_grad_()
        (score,) = torch.autograd.grad(self.family(leaf).log_prob(point.z).sum(), leaf)
        information = (point.weights.unsqueeze(-1) * score.double().square()).sum(dim=0)
        return information.clamp(min=torch.finfo(torch.float64).tiny ** 0.5)


def _checked_start(problem: Problem, start: Tensor, first: int) -> Point:
    """Evaluates the ELBO at the initial parameters; refuses an ELBO of nan or +inf.

    This uses the caller's setting for Pyro's validation of distributions.
    """
    try:
        point = problem(start)
    except ValueError:
        with pyro.validation_enabled(is_validate=False):
            point = problem(start)
        if bool(point.is_finite.all() & (point.weights > 0).all()):
            raise  # an error other than nan, such as data outside the support
    bad = (point.elbo.isnan() | (point.elbo == torch.inf)).nonzero().squeeze(-1)
    if len(bad) > 0:
        raise FloatingPointError(
            f"the ELBO must not be nan or +inf; got nan or +inf in {count_of(len(bad), 'row')}, "
            f"first in row {first + int(bad[0])} (ELBO {float(point.elbo[bad[0]]):.4g}): check "
            "the program's log density of these data"
        )
    return point


def maximize(
    problem: Problem,
    start: Tensor,
    fitting: FitRows,
    *,
    first: int = 0,
    report: Callable[[int], object] = lambda done: None,
) -> "RowOptimizer":
    """Maximizes every datum's ELBO, by Newton's method if the family allows it, then by L-BFGS."""
    optimizer = RowOptimizer(problem, _checked_start(problem, start, first), fitting, report)
    with pyro.validation_enabled(is_validate=False):  # a trial with nan is rejected
        if isinstance(problem.family, ClosestNormal):
            newton = _Newton(problem, problem.family, fitting.tolerance)
            optimizer.maximize(newton, _NEWTON_STEPS)
        optimizer.maximize(_QuasiNewton(problem, fitting, optimizer.parameters), fitting.max_steps)
    report(int((~optimizer.converged).sum()))
    return optimizer


class _Place(NamedTuple):
    """The parameters of some data before their last step, and the gradients at these parameters."""

    parameters: Float[Tensor, "batch parameters"]
    gradient: Float64[Tensor, "batch parameters"]


class _Step(NamedTuple):
    """Each datum's next step, and the ELBO's slope along this step in nats (`rise`).

    A datum stops if it has converged (`is_done`), or if no step helps (`is_lost`).
    """

    direction: Float64[Tensor, "batch parameters"]
    rise: Float64[Tensor, " batch"]
    is_done: Tensor
    is_lost: Tensor


@runtime_checkable
class _Direct(Protocol):
    """An optimization algorithm: computes the next step for a subset of the data."""

    def __call__(self, rows: Tensor, point: Point, before: _Place | None) -> _Step:
        """Returns the next step for a subset of the data.

        `rows` are the positions of these data, and `point` is the evaluation at their current
        parameters. `before` holds their previous parameters and gradient. It is `None` before the
        first step.
        """


class _Newton:
    """Newton's method: each step aims at the q closest to a normal fitted to the posterior."""

    def __init__(self, problem: Problem, family: ClosestNormal, tolerance: float) -> None:
        self.problem, self.family, self.tolerance = problem, family, tolerance

    def __call__(self, rows: Tensor, point: Point, before: _Place | None) -> _Step:
        """Returns the next step, and whether each datum stops.

        A datum has converged if neither a Newton step nor a natural gradient step would raise its
        ELBO by the tolerance. A datum stops without convergence if the natural gradient step would
        raise its ELBO by the tolerance, but the Newton step would not.
        """
        direction, rise = self.gain(point)
        is_small = rise.abs() / 2 < self.tolerance
        is_done = is_small.clone()
        if bool(is_small.any()):
            rest = point.take(is_small.nonzero().squeeze(-1))
            natural = _dot(rest.gradient, rest.gradient / self.problem.information(rest))
            is_done[is_small] = natural / 2 < self.tolerance
        is_lost = ~is_done & ~(direction.isfinite().all(dim=-1) & (rise / 2 >= self.tolerance))
        return _Step(direction, rise, is_done, is_lost)

    def gain(self, point: Point) -> tuple[Tensor, Tensor]:
        """Returns every datum's Newton step, and the ELBO's slope along this step in nats."""
        loc, precision = _normal_of(point)
        direction = self.family.closest_normal(loc, precision) - point.parameters
        return direction, _dot(point.gradient, direction)


def _normal_of(point: Point) -> tuple[Tensor, Tensor]:
    """Returns mean and precision of a normal that fits the log joint's gradients at `point.z`."""
    z, slope, weights = point.z.double(), point.slope.double(), point.weights.unsqueeze(-1)
    mean, mean_slope = (weights * z).sum(dim=0), (weights * slope).sum(dim=0)
    centred = z - mean
    covariance = torch.einsum("kni,knj->nij", weights * centred, centred)
    cross = torch.einsum("kni,knj->nij", weights * (slope - mean_slope), centred)
    curvature, _ = torch.linalg.solve_ex(covariance, cross, left=False)
    precision = _positive(-(curvature + curvature.mT) / 2)
    move, _ = torch.linalg.solve_ex(precision, mean_slope.unsqueeze(-1))
    return mean + move.squeeze(-1), precision


def _positive(matrix: Float64[Tensor, "batch latents latents"]) -> Tensor:
    """Makes matrices positive definite, by taking absolute values of their eigenvalues.

    A matrix that is not finite becomes the identity. With a positive definite precision, Newton's
    method increases the log posterior even along directions in which the log posterior is convex.
    With an indefinite precision it would step towards a saddle point or a minimum.
    """
    _, info = torch.linalg.cholesky_ex(matrix)
    if not bool(info.any()):
        return matrix
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    is_finite = matrix.isfinite().all(dim=-1).all(dim=-1)[:, None, None]
    bad = info != 0
    values, vectors = torch.linalg.eigh(torch.where(is_finite, matrix, identity)[bad])
    values = values.abs()
    largest = values.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    values = torch.maximum(values, _FLATTEST * largest)
    turned = matrix.clone()
    turned[bad] = (vectors * values.unsqueeze(-2)) @ vectors.mT
    return turned


class _QuasiNewton:
    """L-BFGS in the metric of q's Fisher information; past steps are stored for each datum."""

    def __init__(self, problem: Problem, fitting: FitRows, start: Tensor) -> None:
        self.problem, self.tolerance = problem, fitting.tolerance
        shape = (fitting.history, *start.shape)
        self.moves = torch.zeros(shape, dtype=torch.float64, device=start.device)
        self.changes = torch.zeros_like(self.moves)
        self.weights = self.moves.new_zeros(shape[:-1])  # 0 for a step that is not used
        self.scale = self.moves.new_ones(shape[1:-1])
        self.count = torch.zeros(shape[1], dtype=torch.int64, device=start.device)  # per datum

    def __call__(self, rows: Tensor, point: Point, before: _Place | None) -> _Step:
        """Returns L-BFGS steps, but natural gradient steps where L-BFGS would lead downhill."""
        information = self.problem.information(point)
        if before is not None:
            self._remember(rows, point, before, information)
        gradient = point.gradient
        natural = gradient / information
        direction = self._multiplied(rows, gradient, information)
        is_ascent = (_dot(gradient, direction) > 0).unsqueeze(-1)
        direction = torch.where(is_ascent, direction, natural)
        gain = torch.maximum(_dot(gradient, direction), _dot(gradient, natural)) / 2
        length = _dot(direction, direction * information).sqrt()
        direction = direction * (_FARTHEST / length).clamp(max=1.0).unsqueeze(-1)
        rise = _dot(gradient, direction)
        is_done = gain < self.tolerance
        return _Step(direction, rise, is_done, torch.zeros_like(is_done))

    def _remember(self, rows: Tensor, point: Point, before: _Place, information: Tensor) -> None:
        """Stores the last change of parameters and gradient, for L-BFGS.

        A change without positive curvature gets the weight 0, and has no effect.
        """
        move = point.parameters.double() - before.parameters.double()
        change = before.gradient - point.gradient
        curvature, size = _dot(move, change), _dot(change, change / information)
        is_useful = curvature > 1e-10 * (_dot(move, move * information) * size).sqrt()
        slot = self.count[rows] % len(self.moves)
        self.count[rows] += 1
        self.moves[slot, rows], self.changes[slot, rows] = move, change
        self.weights[slot, rows] = torch.where(is_useful, 1 / curvature, 0.0)
        self.scale[rows] = torch.where(is_useful, curvature / size, self.scale[rows])

    def _multiplied(self, rows: Tensor, gradient: Tensor, information: Tensor) -> Tensor:
        """Multiplies gradients by the approximate inverse Hessians of L-BFGS."""
        count, size = self.count[rows], len(self.moves)
        newest_first = [(count - age) % size for age in range(1, 1 + min(size, int(count.max())))]
        # A datum with fewer past steps reads empty slots, whose weight is 0.
        pairs = [
            (self.moves[slot, rows], self.changes[slot, rows], self.weights[slot, rows, None])
            for slot in newest_first
        ]
        return times_inverse_hessian(gradient, pairs, self.scale[rows, None] / information)


def times_inverse_hessian(
    gradient: Float64[Tensor, "*batch parameters"],
    pairs: Iterable[tuple[Tensor, Tensor, Tensor]],
    scale: Tensor,
) -> Float64[Tensor, "*batch parameters"]:
    """Multiplies a gradient by the approximate inverse Hessian of L-BFGS (two-loop recursion).

    Arguments:
        gradient: The gradient.
        pairs: Past steps, the newest first. Each step is the change of the parameters, the change
            of the gradient, and a weight: 1 divided by the inner product of these two changes, or 0
            to leave out the step.
        scale: Diagonal of the approximation before any step.

    References:
        | Updating Quasi-Newton Matrices with Limited Storage (Nocedal, 1980)
        | https://doi.org/10.1090/S0025-5718-1980-0572855-7
    """
    result, past = gradient, []
    for move, change, weight in pairs:
        share = weight * (move * result).sum(dim=-1, keepdim=True)
        result = result - share * change
        past.append((move, change, weight, share))
    result = result * scale
    for move, change, weight, share in reversed(past):
        result = result + (share - weight * (change * result).sum(dim=-1, keepdim=True)) * move
    return result


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product of each row of `left` with the same row of `right`."""
    return (left * right).sum(dim=-1)


class RowOptimizer:
    """Fits all data at once; holds each datum's parameters, progress and line search state."""

    def __init__(
        self, problem: Problem, start: Point, fitting: FitRows, report: Callable[[int], object]
    ) -> None:
        self.problem, self.fitting, self.report = problem, fitting, report
        self.start = start
        self.taken = torch.zeros_like(start.elbo, dtype=torch.int64)  # steps per datum
        self.parameters = start.parameters.clone()
        self.elbo, self.gradient = start.elbo.clone(), start.gradient.clone()
        self.direction, self.rise = torch.zeros_like(self.gradient), torch.zeros_like(self.elbo)
        self.length = torch.ones_like(self.elbo)
        self.converged = torch.zeros_like(self.elbo, dtype=torch.bool)
        self.active = self.converged.clone()

    def maximize(self, direct: _Direct, max_steps: int) -> None:
        """Takes up to `max_steps` steps, with line search, for every datum that is not done."""
        last = (self.taken + max_steps).clamp(max=self.fitting.max_steps)
        going = ~self.converged & ((self.taken < last) | (self.taken == 0))
        going &= self.start.is_finite  # data without a finite gradient are not fitted
        rows = going.nonzero().squeeze(-1)
        if len(rows) == 0:
            return
        problem = self.problem.of_rows(rows)
        # Gradients at the points are stored for the start only; after steps, data are reevaluated.
        moved = bool((self.taken > 0).any())
        point = problem(self.parameters[rows]) if moved else self.start.take(rows)
        self._move(rows, point, direct, None)
        while True:
            active = (self.active & (self.taken < last)).nonzero().squeeze(-1)
            if len(active) == 0:
                break
            if len(active) < len(rows):
                rows, problem = active, self.problem.of_rows(active)
            self._advance(rows, problem, direct)

    def _advance(self, rows: Tensor, problem: Problem, direct: _Direct) -> None:
        """Tries one step per datum; a datum whose ELBO rises too little keeps its parameters.

        Its next trial is a shorter step in the same direction.
        """
        self.taken[rows] += 1
        length = self.length[rows]
        move = length.unsqueeze(-1) * self.direction[rows]
        trial = problem((self.parameters[rows] + move).to(self.parameters.dtype))
        # Values are exact only up to rounding, in the precision of the program.
        rounding = _ROUNDINGS * torch.finfo(trial.slope.dtype).eps * self.elbo[rows].abs()
        enough = self.elbo[rows] + _SUFFICIENT * length * self.rise[rows] - rounding
        rises = trial.is_finite & (trial.elbo >= enough)
        better, worse = rows[rises], rows[~rises]
        if len(better) > 0:
            before = _Place(self.parameters[better], self.gradient[better])
            self._move(better, trial.take(rises), direct, before)
        self.length[worse] *= _SHORTER
        self.active[worse] = self.length[worse] > _SHORTEST

    def _move(self, rows: Tensor, point: Point, direct: _Direct, before: _Place | None) -> None:
        """Moves some data to the parameters of `point`, and computes their next step."""
        step = direct(rows, point, before)
        self.parameters[rows], self.elbo[rows] = point.parameters, point.elbo
        self.gradient[rows], self.direction[rows] = point.gradient, step.direction
        self.rise[rows], self.length[rows] = step.rise, 1.0
        self.converged[rows] = step.is_done
        self.active[rows] = ~(step.is_done | step.is_lost)
        self.report(int(step.is_done.sum()))
