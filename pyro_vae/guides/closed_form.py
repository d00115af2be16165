r"""Posteriors in closed form, for any program that is linear and Gaussian in its latents.

Suppose that every latent of a datum is Gaussian given the other latents, and that the data are
Gaussian around a linear function of the latents. Factor analysis, probabilistic PCA and a random
walk observed with noise are examples. Then :math:`\log p(y, z) = c + h^\top z - z^\top P z / 2`,
and the gradient of this function, :math:`g(z) = h - P z`, is linear. The gradients at L + 1 points
for L latents (zero and the unit vectors :math:`e_i`) therefore give :math:`h = g(0)` and :math:`P
e_i = g(0) - g(e_i)` exactly, without inspecting the program. The posterior is
:math:`\mathcal{N}(P^{-1} h, P^{-1})`. Two more points, a few posterior standard deviations from the
mean, show whether the gradient is linear where the posterior has its mass.

Training a model under the exact posterior is EM with gradient M-steps. The E-step computes the
posterior at the current :math:`\theta`, and this posterior is held fixed while the ELBO is
differentiated. By Fisher's identity the result is the gradient of the evidence,
:math:`\nabla_\theta \log p(y) = \mathbb{E}_{p(z \mid y)} \nabla_\theta \log p(y, z)`, so holding
the posterior fixed loses nothing.

Coordinate ascent is for a q with independent latents, whose means are :math:`m_i`. It sets
:math:`\partial \mathrm{ELBO} / \partial m_i = 0` for one latent after the other. The
update is :math:`m_i = (h_i - \sum_{j \ne i} P_{ij} m_j) / P_{ii}`; the variance is :math:`1 /
P_{ii}`. Repeated updates are Gauss-Seidel iteration for :math:`P m = h`.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributions import MultivariateNormal

from .._types import Batch
from .._warnings import warn
from ..formatting import count_of
from ..programs import Program, evaluating
from ..programs.hooks import hooks_of
from ..programs.pieces import in_pieces, rows_within
from ..randomness import generator, stream
from ..registry import registered
from ..results import join
from .families import ClosestNormal, DiagonalNormal, Family, require_closest_normal
from .maps import InferenceMap

_POINTS_AT_ONCE = 16_384  # most rows (data times points) per run; affects memory only
_SLACK = 8.0  # tolerance in square roots of the rounding unit: about half of the digits may cancel


class Quadratic(NamedTuple):
    r"""A log joint that is quadratic in the latents of a datum.

    .. math:: \log p(y_n, z) = a_n - \tfrac{1}{2} (z - m_n)^\top P_n (z - m_n)

    Arguments:
        loc: :math:`m_n`, the posterior mean, `(batch, latents)`.
        precision: :math:`P_n`, the posterior precision, `(batch, latents, latents)`.
        peak: :math:`a_n`, the log joint at the mean, `(batch,)`, in nats.
        error: Largest observed deviation of the log joint from this quadratic function, `(batch,)`,
            in nats, rounding included. The log joint was observed at two points, one to three
            posterior standard deviations from the mean.
    """

    loc: Tensor
    precision: Tensor
    peak: Tensor
    error: Tensor

    @property
    def linear(self) -> Tensor:
        """Gradient of the log joint at z = 0, `(batch, latents)`: the precision times the mean."""
        return _times(self.precision, self.loc)

    def log_evidence(self) -> Tensor:
        r"""Returns the log evidence of every datum, in nats.

        For L latents it is :math:`\log p(y_n) = a_n + \frac{1}{2} (L \log 2\pi - \log\det P_n)`.
        Here :math:`a_n` is the log joint at the posterior mean, and :math:`P_n` is the posterior
        precision.
        """
        latents = self.loc.shape[-1]
        return self.peak + (latents * math.log(2 * math.pi) - self.precision.logdet()) / 2


def quadratic_of(program: Program, batch: Batch) -> Quadratic:
    r"""Expresses a program's log joint as a quadratic function of the latents.

    Whether the log joint is quadratic is checked at two points. If the model has a method
    `exact_posterior(*batch)`, the posterior that it returns is checked and used. This posterior
    must be a `MultivariateNormal` over the flat latents, with batch shape `(batch,)`. The program
    runs in evaluation mode; the result carries no gradient.

    Arguments:
        program: The model's `Program`, which gives its log density per datum.
        batch: The data.

    Returns:
        Mean, precision and peak of the log joint; exact up to rounding.

    Raises:
        ValueError: If the log joint of a datum is not a quadratic function with a maximum, or if
            `exact_posterior` does not return the posterior of the datum. The message names the row
            and the discrepancy.
        TypeError: If `exact_posterior` does not return a `MultivariateNormal`.

    References:
        | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999)
        | https://doi.org/10.1111/1467-9868.00196

    Example:
        >>> import pyro
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> y = torch.tensor([0.0, 2.0])
        >>> quadratic_of(Program(model, y), (y,)).loc
        tensor([[0.],
                [1.]])
    """
    return join(list(_quadratics(program, batch)))


def _quadratics(program: Program, batch: Batch, rows: Tensor | None = None) -> Iterator[Quadratic]:
    """Yields the results of :func:`quadratic_of`, computed for a few rows at a time.

    `rows` are the positions of the batch's rows in the data set, for error messages.
    """
    rows = torch.arange(len(batch[0]), device="cpu") if rows is None else rows
    size = rows_within(batch, _POINTS_AT_ONCE) // (program.latent_dim + 1)
    for positions, *piece in in_pieces(size, rows, *batch):
        part = tuple(piece)
        with evaluating(program.model):
            moments = _own_posterior(program, part) or _solved(program, part, positions)
            quadratic = _verified(program, part, positions, *moments)
        yield quadratic


def _own_posterior(program: Program, batch: Batch) -> tuple[Tensor, Tensor] | None:
    """Returns mean and precision of the posterior that the model's `exact_posterior` computes.

    Returns `None` if the model has no such method.
    """
    method = hooks_of(program.model).exact_posterior
    if method is None:
        return None
    with torch.no_grad():
        posterior = method(*batch)
    if not isinstance(posterior, MultivariateNormal):
        raise TypeError(
            "the model's exact_posterior must return a MultivariateNormal over the flat latents "
            f"of each datum; got a {type(posterior).__name__}"
        )
    shape, expected = (*posterior.batch_shape, *posterior.event_shape), (len(batch[0]),)
    if shape != (*expected, program.latent_dim):
        raise ValueError(
            f"the model's exact_posterior must have batch shape {expected} and event shape "
            f"({program.latent_dim},); got batch shape {tuple(posterior.batch_shape)} and event "
            f"shape {tuple(posterior.event_shape)}"
        )
    return posterior.loc, posterior.precision_matrix


def _solved(program: Program, batch: Batch, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the posterior's mean and precision from the log joint's gradients at L + 1 points.

    The points are zero and the L unit vectors, for L latents.
    """
    rows, latents = len(batch[0]), program.latent_dim
    identity = torch.eye(latents, dtype=program.dtype, device=batch[0].device)
    points = torch.cat([torch.zeros_like(identity[:1]), identity])  # (L + 1, L)
    _, gradients = _gradients(program, points[:, None].expand(-1, rows, -1), batch)
    linear = gradients[0]
    columns = (linear - gradients[1:]).permute(1, 2, 0)  # (L, batch, L) -> (batch, L, L)
    skew = (columns - columns.mT).abs().amax(dim=-1)
    _refuse(skew, 2 * _rounding(linear.abs() + columns.abs().sum(dim=-1)), positions)
    precision = (columns + columns.mT) / 2
    factor = _factor(precision, positions)
    return torch.cholesky_solve(linear[..., None], factor)[..., 0], precision


def _verified(
    program: Program, batch: Batch, positions: Tensor, loc: Tensor, precision: Tensor
) -> Quadratic:
    """Checks at two points near the posterior mean `loc` that the log joint is quadratic there.

    Returns the quadratic function, whose mean is refined by the gradients at these points.
    """
    factor = _factor(precision, positions)
    steps = torch.stack([direction := _direction(factor), -2 * direction])  # (2, batch, L)
    points = loc + steps
    log_joint, gradients = _gradients(program, points, batch)
    size = points.abs() + steps.abs() + loc.abs() + 1  # of the terms that are summed
    error = (gradients + _times(precision, steps)).abs()
    _refuse(error.amax(dim=0), _rounding(_times(precision.abs(), size.amax(dim=0))), positions)
    middle = (2 * gradients[0] + gradients[1]) / 3  # a linear function's value at the mean
    refined = loc + torch.cholesky_solve(middle[..., None], factor)[..., 0]
    peaks = log_joint + (gradients * (refined - points)).sum(dim=-1) / 2
    off = (error * steps.abs()).sum(dim=-1).amax(dim=0)
    peak = peaks.mean(dim=0)
    return Quadratic(refined, precision, peak, off + (peaks - peak).abs().amax(dim=0))


def _direction(factor: Tensor) -> Tensor:
    """Returns a step away from each datum's posterior mean, `(batch, latents)`.

    In whitened coordinates, every entry of the step has an absolute value between 1 and 1.5.
    """
    latents = factor.shape[-1]
    draws = generator(stream(0, "closed form.directions"))
    # From 1 to 1.5 standard deviations; the second point is twice as far away.
    sizes = 1 + torch.rand(latents, generator=draws, device="cpu") / 2
    signs = torch.randint(2, (latents,), generator=draws, device="cpu") * 2 - 1
    unit = (sizes * signs).to(factor).expand(len(factor), -1)
    return torch.linalg.solve_triangular(factor.mT, unit[..., None], upper=True)[..., 0]


def _gradients(program: Program, z: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns the log joint at `z`, `(points, batch)`, and its gradient in `z`, both detached."""
    with torch.enable_grad():
        z = z.detach().clone().requires_grad_()
        log_joint = program.log_joint(z, *batch)
        (gradient,) = torch.autograd.grad(log_joint.sum(), z)
    return log_joint.detach(), gradient


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Multiplies each datum's vectors, `(*points, batch, L)`, by its matrix, `(batch, L, L)`."""
    return (matrix @ vector[..., None])[..., 0]


def _rounding(size: Tensor) -> Tensor:
    """Bounds the rounding error of a sum, where `size` is the sum of the terms' absolute values."""
    return _SLACK * torch.finfo(size.dtype).eps ** 0.5 * size


_REMEDY = (
    "Use pv.Encoder(net) or pv.LocalParameters(num_data); if you know that the posterior is "
    "normal, give the model a method exact_posterior(*batch) that returns it as a "
    "MultivariateNormal"
)


def _refuse(error: Float[Tensor, "batch latents"], limit: Tensor, positions: Tensor) -> None:
    """Raises an error if the gradient of a datum deviates from linearity by more than `limit`."""
    bad = ~(error <= limit).all(dim=-1)  # nan counts as an error
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        worst = int((error[row] - limit[row]).argmax())
        raise ValueError(
            f"The log joint of row {int(positions[row])} is not quadratic in the latents "
            f"(affected: {int(bad.sum())} of {count_of(len(bad), 'row')}): the gradient in "
            f"latent {worst} deviates from a linear function by {float(error[row, worst]):.3g}, of "
            f"which rounding explains only {float(limit[row, worst]):.3g}. {_REMEDY}"
        )


def _factor(precision: Tensor, positions: Tensor) -> Tensor:
    """Returns the Cholesky factor of every precision matrix.

    Raises an error if one of the matrices is not positive definite.
    """
    factor, info = torch.linalg.cholesky_ex(precision)
    bad: Bool[Tensor, " batch"] = (info != 0) | ~factor.isfinite().flatten(1).all(dim=-1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        shown = ", ".join(f"{value:.3g}" for value in torch.linalg.eigvalsh(precision[row]))
        raise ValueError(
            f"The log joint of row {int(positions[row])} has no maximum in the latents "
            f"(affected: {int(bad.sum())} of {count_of(len(bad), 'row')}): the eigenvalues "
            "of its negative Hessian must all exceed rounding errors; got "
            f"{shown}. Give every latent a proper prior and check the pyro.factor terms, or use "
            "pv.Encoder(net)"
        )
    return factor


class _ClosedForm(InferenceMap):
    """Base class of maps that compute the family's parameters from the model, without training."""

    def attach(self, program: Program, family: Family) -> None:
        """Stores the program and the family.

        Raises:
            TypeError: If this map does not support the family.
        """
        # in a tuple: not submodules
        self._attached: tuple[Program, ClosestNormal] = (program, self._supported(family))

    def _supported(self, family: Family) -> ClosestNormal:
        """Returns the family; raises an error if this map does not support it."""
        return require_closest_normal(self, family)

    def setup(self, num_parameters: int, initial: Float[Tensor, " parameters"]) -> None:
        """Creates no parameters, because the family's parameters follow from the model."""

    def forward(self, batch: Batch, rows: Int[Tensor, " batch"] | None) -> Tensor:
        """Computes the family's parameters for a batch, for a model without global sites."""
        return self.infer(self._attached[0], batch, rows)

    def _closest(self, loc: Tensor, precision: Tensor) -> Tensor:
        """Detached parameters of the family member that is closest to N(loc, precision^-1)."""
        return self._attached[1].closest_normal(loc, precision).detach()


@registered()
class ExactPosterior(_ClosedForm):
    r"""Closed-form map: :math:`\lambda_n = \arg\min_\lambda \mathrm{KL}(q_\lambda \| p(z | y_n))`.

    This map is for programs that are linear and Gaussian in their latents; every call checks this.
    If the model has a method `exact_posterior(*batch)`, the posterior that it returns is checked
    and used. With a full-rank family, q is the posterior itself, and the ELBO is log p(y). With
    `DiagonalNormal`, q is the mean-field optimum. Because q follows the model, training is EM with
    gradient M-steps. Only the model is trained. To copy model and guide, use
    `copy.deepcopy((model, guide))`; if each is copied in a separate call, the new guide does not
    use the new model.

    A call costs L + 3 evaluations of the model per datum, for L latents.

    Raises:
        TypeError: When the guide is made, if the family has no method `closest_normal`.
        ValueError: When called, if the program's log joint is not quadratic; the message names the
            row.

    References:
        | Maximum Likelihood from Incomplete Data via the EM Algorithm (Dempster, Laird & Rubin,
          1977)
        | https://doi.org/10.1111/j.2517-6161.1977.tb01600.x
        | A View of the EM Algorithm that Justifies Incremental, Sparse, and other Variants
          (Neal & Hinton, 1998)
        | https://doi.org/10.1007/978-94-011-5014-9_12
        | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999)
        | https://doi.org/10.1111/1467-9868.00196

    Example:
        >>> import pyro
        >>> from pyro_vae import Guide
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> y = torch.tensor([0.0, 2.0])
        >>> Guide(model, ExactPosterior(), example=y).mean(y)
        tensor([[0.],
                [1.]])
    """

    def infer(self, program: Program, batch: Batch, rows: Int[Tensor, " batch"] | None) -> Tensor:
        """For every datum, parameters of the family member that is closest to its posterior."""
        return torch.cat(
            [self._closest(q.loc, q.precision) for q in _quadratics(program, batch, rows)]
        )


class Ascent(NamedTuple):
    """Result of coordinate ascent: means, number of sweeps, and which data converged.

    `loc` is `(batch, latents)`. `moved`, `(batch,)`, is the largest change of a latent's mean in a
    datum's last sweep, in standard deviations of that latent under q.
    """

    loc: Tensor
    sweeps: int
    moved: Tensor
    converged: Tensor


def coordinate_ascent(
    linear: Float[Tensor, "batch latents"],
    precision: Float[Tensor, "batch latents latents"],
    *,
    sweeps: int,
    tolerance: float,
) -> Ascent:
    r"""Finds the mean-field optimum by updating one mean after the other, starting at zero.

    .. math:: m_i \leftarrow \frac{h_i - \sum_{j \ne i} P_{ij} m_j}{P_{ii}}, \quad i = 1 \ldots L

    Every step maximizes the ELBO in one factor, so no sweep lowers the ELBO. Each sweep multiplies
    the distance from the optimum by the spectral radius of the Gauss-Seidel iteration. If latents
    are strongly correlated, this radius is near 1, and the remaining distance is larger than the
    last change.

    Arguments:
        linear: :math:`h_n`, the gradient of the log joint at zero.
        precision: :math:`P_n`, symmetric positive definite.
        sweeps: Maximum number of updates of each coordinate.
        tolerance: A datum has converged when a sweep changes every mean by at most this (in units
            of :math:`P_{ii}^{-1/2}`) or only by rounding. A converged datum is not updated further,
            so that its result does not depend on the rest of the batch.

    Returns:
        The means, the number of sweeps, and which data converged.

    Example:
        >>> precision = torch.tensor([[[2.0, 1.0], [1.0, 2.0]]])
        >>> answer = coordinate_ascent(torch.ones(1, 2), precision, sweeps=50, tolerance=1e-5)
        >>> answer.loc, answer.sweeps
        (tensor([[0.3333, 0.3333]]), 10)
    """
    loc = torch.zeros_like(linear)
    roots = precision.diagonal(dim1=-2, dim2=-1).sqrt()
    converged = torch.zeros(len(linear), dtype=torch.bool, device=linear.device)
    moved = torch.full_like(linear[:, 0], torch.inf)
    done = 0
    while done < sweeps and not bool(converged.all()):
        swept = loc.clone()
        for index in range(loc.shape[-1]):
            residual = linear[:, index] - (precision[:, index] * swept).sum(dim=-1)
            swept[:, index] += residual / precision[:, index, index]
        step = ((swept - loc) * roots).abs().amax(dim=-1)
        rounding = 4 * torch.finfo(loc.dtype).eps * (swept * roots).abs().amax(dim=-1)
        moved = torch.where(converged, moved, step)
        loc = torch.where(converged[:, None], loc, swept)
        converged = converged | (step <= rounding.clamp(min=tolerance))
        done += 1
    return Ascent(loc, done, moved, converged)


@registered()
class CoordinateAscent(_ClosedForm):
    r"""Classical mean-field map: closed-form updates of one factor after the other (CAVI).

    .. math:: q(z_i) \leftarrow \mathcal{N}\Bigl(\tfrac{1}{P_{ii}} \bigl(h_i - \sum_{j \ne i}
        P_{ij} m_j\bigr), \tfrac{1}{P_{ii}}\Bigr)

    Here :math:`P` is the posterior precision, :math:`h` is the gradient of the log joint at zero,
    and :math:`m` are the means of q. Like :class:`ExactPosterior`, this map is for programs that
    are linear and Gaussian in their latents. Repeated sweeps approach the exact means
    without solving a linear system. A few sweeps make a partial E-step; `tolerance=math.inf` stops
    after one sweep.

    Arguments:
        sweeps: Maximum number of updates of every factor. If some data have not converged by then,
            a warning gives their number.
        tolerance: A datum has converged when no latent's mean changes by more than this, in
            standard deviations of that latent under q.

    Raises:
        TypeError: When a guide is made with a family other than `DiagonalNormal`.
        ValueError: When called, if the program's log joint is not quadratic; the message names the
            row.

    References:
        | Variational Inference: A Review for Statisticians (Blei, Kucukelbir & McAuliffe, 2017)
        | https://arxiv.org/abs/1601.00670
        | An Introduction to Variational Methods for Graphical Models (Jordan et al., 1999)
        | https://doi.org/10.1023/A:1007665907178
    """

    def __init__(self, *, sweeps: int = 500, tolerance: float = 1e-6) -> None:
        super().__init__()
        self.sweeps, self.tolerance = sweeps, tolerance

    def _supported(self, family: Family) -> ClosestNormal:
        if isinstance(family, DiagonalNormal):
            return family
        other = "pv.ExactPosterior()" if isinstance(family, ClosestNormal) else "pv.Encoder(net)"
        raise TypeError(
            "CoordinateAscent updates independent factors, so its family must be "
            f"pv.DiagonalNormal(); got {type(family).__name__}: use {other} with this family"
        )

    def infer(self, program: Program, batch: Batch, rows: Int[Tensor, " batch"] | None) -> Tensor:
        """Parameters of every datum's q after the last sweep of coordinate ascent."""
        return torch.cat([self._ascended(q) for q in _quadratics(program, batch, rows)])

    def _ascended(self, exact: Quadratic) -> Tensor:
        """Computes the parameters of each datum's q by coordinate ascent.

        Warns if the ascent does not converge for some data.
        """
        answer = coordinate_ascent(
            exact.linear, exact.precision, sweeps=self.sweeps, tolerance=self.tolerance
        )
        slow = int((~answer.converged).sum())
        if slow > 0:
            warn(
                f"coordinate ascent did not converge for {slow} of "
                f"{count_of(len(answer.loc), 'datum')} in {count_of(answer.sweeps, 'sweep')}, and "
                f"a mean still changes by {float(answer.moved.max()):.3g} standard deviations per "
                "sweep: pass a larger `sweeps`, or use pv.ExactPosterior()"
            )
        return self._closest(answer.loc, exact.precision)
