r"""Maximum likelihood for linear Gaussian models: closed form, EM, and accelerated EM.

Let :math:`z \sim \mathcal{N}(0, I)`, :math:`y \mid z \sim \mathcal{N}(W z + \mu, \Psi)`, with
:math:`\Psi` diagonal. The E-step is the exact posterior of every datum given its observed entries.
With :math:`O_n` diagonal, 1 where an entry was observed and 0 where it is missing, the precision
and the mean are :math:`P_n = I + W^\top O_n \Psi^{-1} W` and :math:`m_n = P_n^{-1} W^\top O_n
\Psi^{-1} (y_n - \mu)`. The M-step regresses each feature on :math:`(z, 1)` with these moments, over
the data in which it was observed.

Without missing entries only the covariance :math:`S` of the data matters, and the maximum over
:math:`W` is known for a given :math:`\Psi`: with :math:`\Lambda` the largest eigenvalues of
:math:`\Psi^{-1/2} S \Psi^{-1/2}` and :math:`U` their eigenvectors, the maximum is at :math:`W =
\Psi^{1/2} U (\Lambda - I)_+^{1/2}`. ECME alternates this maximization with an EM step for the
noise, :math:`\Psi \leftarrow \operatorname{diag}(S - W W^\top)`.

Both EM and ECME converge slowly when the data carry little information. SQUAREM estimates the rate
of convergence from three iterates, and extrapolates. An extrapolation that lowers the likelihood is
rejected, so the likelihood never falls.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..formatting import count_of
from ..results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class LinearGaussianParameters(NamedTuple):
    """Loadings `(features, latents)`, mean `(features,)` and noise variances `(features,)`."""

    loadings: Tensor
    mean: Tensor
    variance: Tensor


class Posterior(NamedTuple):
    """Posterior means `(rows, latents)` and precisions `(rows or 1, latents, latents)`."""

    loc: Tensor
    precision: Tensor


def posterior(parameters: LinearGaussianParameters, y: Tensor) -> Posterior:
    """Returns the exact posterior of every datum given its observed (not nan) entries."""
    loadings, mean, variance = parameters
    missing = y.isnan()
    identity = torch.eye(loadings.shape[1], dtype=y.dtype, device=y.device)
    residual = (y - mean).masked_fill(missing, 0.0)
    if bool(missing.any()):
        weights = (~missing).to(y) / variance
        products = (loadings[:, :, None] * loadings[:, None, :]).flatten(1)
        precision = identity + (weights @ products).unflatten(1, identity.shape)
    else:
        precision = (identity + loadings.mT @ (loadings / variance[:, None]))[None]
    precision = (precision + precision.mT) / 2  # products in float32 are not exactly symmetric
    linear = (residual / variance) @ loadings
    factor = torch.linalg.cholesky(precision)
    loc = torch.cholesky_solve(linear[..., None], factor.expand(len(y), -1, -1))[..., 0]
    return Posterior(loc, precision)


def log_evidence(
    parameters: LinearGaussianParameters, y: Float[Tensor, "rows features"]
) -> Float[Tensor, " rows"]:
    r"""Returns the log density of the observed entries of every datum, in nats.

    .. math:: \log p(y_O) = -\tfrac{1}{2} \Bigl( \textstyle\sum_{d \in O} \log 2 \pi \psi_d
        + \log \det P + \sum_{d \in O} (y_d - \mu_d - w_d^\top m)^2 / \psi_d + m^\top m \Bigr)

    Here :math:`O` are the observed entries of a datum, :math:`\mu` is the mean, :math:`w_d` are the
    rows of the loadings, :math:`\psi` are the noise variances, and :math:`m` and :math:`P` are the
    mean and the precision of the posterior. No two large terms cancel, however small the noise.
    """
    loadings, mean, variance = parameters
    loc, precision = posterior(parameters, y)
    observed = ~y.isnan()
    residual = (y - mean - loc @ loadings.mT).masked_fill(~observed, 0.0)
    normal = observed.to(y) @ (2 * math.pi * variance).log()
    square = (residual.square() / variance).sum(dim=-1) + loc.square().sum(dim=-1)
    return -(normal + precision.logdet() + square) / 2


def regression(
    y: Float[Tensor, "rows features"], loc: Tensor, precision: Tensor, *, isotropic: bool
) -> LinearGaussianParameters:
    """Runs the M-step: regresses each feature on (z, 1) over the rows in which it was observed."""
    latents, observed = loc.shape[1], (~y.isnan()).to(y)
    filled = y.nan_to_num(0.0)
    with_one = torch.cat([loc, torch.ones_like(loc[:, :1])], dim=1)
    spread = torch.nn.functional.pad(torch.linalg.inv(precision), (0, 1, 0, 1))
    squares = (with_one[:, :, None] * with_one[:, None, :] + spread).flatten(1)
    left = (observed.mT @ squares).unflatten(1, (latents + 1, latents + 1))
    coefficients = torch.linalg.solve(left, (filled * observed).mT @ with_one)
    fitted = with_one @ coefficients.mT
    errors = (observed * (filled - fitted)).square().sum(dim=0)
    # The posterior covariance V of each z adds w' V w to the noise.
    around = (observed.mT @ spread.expand(len(y), -1, -1).flatten(1)).unflatten(1, left.shape[1:])
    errors = errors + ((coefficients[:, None, :] @ around)[:, 0] * coefficients).sum(dim=-1)
    counts = observed.sum(dim=0)
    variance = (errors.sum() / counts.sum()).expand_as(errors) if isotropic else errors / counts
    return LinearGaussianParameters(coefficients[:, :-1], coefficients[:, -1], variance)


class BestLoadings(NamedTuple):
    """The loadings that maximize the likelihood for given noise, and the maximum.

    The maximum, `value`, is a log likelihood in nats per datum.
    """

    loadings: Tensor
    value: float


def best_loadings(
    covariance: Float[Tensor, "features features"],
    variance: Float[Tensor, " features"],
    latents: int,
) -> BestLoadings:
    r"""Maximizes the likelihood over the loadings exactly, for given noise variances.

    The largest log likelihood per datum is

    .. math:: \log p = -\tfrac{1}{2} \Bigl( D \log 2 \pi + \log \det \Psi
        + \sum_{i \le L} (\log \max(\lambda_i, 1) + \min(\lambda_i, 1)) + \sum_{i > L} \lambda_i
        \Bigr)

    Here :math:`\Psi` are the noise variances of :math:`D` features, :math:`L` is the number of
    latents, and :math:`\lambda_1 \ge \lambda_2 \ge \ldots` are the eigenvalues of
    :math:`\Psi^{-1/2} S \Psi^{-1/2}`, where :math:`S` is the covariance.
    """
    root = variance.sqrt()
    values, vectors = torch.linalg.eigh(covariance / (root[:, None] * root))
    kept, left = values[-latents:], values[:-latents]
    loadings = root[:, None] * vectors[:, -latents:] * (kept - 1).clamp(min=0).sqrt()
    inner = kept.clamp(min=1).log().sum() + kept.clamp(max=1).sum() + left.sum()
    total = len(root) * math.log(2 * math.pi) + variance.log().sum() + inner
    return BestLoadings(loadings.flip(1), -float(total) / 2)


@dataclass(frozen=True, repr=False)
class EMFit(Result):
    """The result of EM.

    Arguments:
        log_evidence: Mean log density per datum, in nats, at the start and after every round; it
            never falls. A round has two EM steps and, if they can be extrapolated, a third.
        steps: Number of EM steps.
        converged: Whether two rounds in a row each gained less than the tolerance.
    """

    log_evidence: Float[Tensor, " rounds"]
    steps: int
    converged: bool

    def summary(self) -> str:
        """Returns a sentence with the final log likelihood, and whether EM converged."""
        end = "EM converged" if self.converged else "EM stopped before it converged"
        return (
            f"log p(y) is {float(self.log_evidence[-1]):.4f} nats per datum after "
            f"{count_of(self.steps, 'step')}; {end}"
        )

    def plot(self) -> "Axes":
        """Plots log p(y) at the start and after every round; requires matplotlib."""
        from ..plots import plot_learning_curves

        rounds = torch.arange(len(self.log_evidence), device="cpu")  # 0 is the start
        curve = SimpleNamespace(epoch=rounds, elbo=self.log_evidence)
        ax = plot_learning_curves({"EM": curve})
        ax.set(xlabel="round", ylabel="log p(y), nats per datum")
        return ax


def squarem(
    step: Callable[[Tensor], Tensor],
    value: Callable[[Tensor], float],
    start: Tensor,
    *,
    tolerance: float,
    max_steps: int,
) -> tuple[Tensor, EMFit]:
    r"""Iterates a map, and extrapolates its iterates to save steps; the objective never falls.

    .. math:: r = F(\theta) - \theta, \quad v = F(F(\theta)) - F(\theta) - r, \quad
        \alpha = -\|r\| / \|v\|, \quad \theta \leftarrow F(\theta - 2 \alpha r + \alpha^2 v)

    Arguments:
        step: The map :math:`F`.
        value: The objective, in nats per datum, which the map never lowers.
        start: Initial :math:`\theta`, a flat vector.
        tolerance: Stops when two rounds in a row each gain less than this, in nats per datum.
        max_steps: Limit on evaluations of the map.

    References:
        | Simple and Globally Convergent Methods for Accelerating the Convergence of Any EM
          Algorithm (Varadhan & Roland, 2008)
        | https://doi.org/10.1111/j.1467-9469.2007.00585.x

    Example:
        >>> def halve(x):
        ...     return x / 2
        >>> x, how = squarem(
        ...     halve, lambda x: -float(x @ x), torch.ones(2), tolerance=1e-9, max_steps=50
        ... )
        >>> how.steps, how.converged
        (5, True)
    """
    history, steps, quiet = [value(start)], 0, 0
    theta = start
    while steps < max_steps and quiet < 2:
        once = step(theta)
        twice = step(once)
        candidate, steps = _extrapolated(theta, once, twice), steps + 2
        best = (value(twice), twice)
        if candidate is not None:
            after = step(candidate)
            steps += 1
            reached = value(after)
            best = (reached, after) if reached >= best[0] else best  # false for nan
        gain = best[0] - history[-1]
        if gain <= 0:  # only rounding is left
            quiet = 2
            break
        quiet = quiet + 1 if gain < tolerance else 0
        history.append(best[0])
        theta = best[1]
    log_evidence = torch.tensor(history, dtype=torch.float64, device="cpu")
    return theta, EMFit(log_evidence, steps, converged=quiet >= 2)


def _extrapolated(theta: Tensor, once: Tensor, twice: Tensor) -> Tensor | None:
    """Extrapolates from three iterates.

    Returns `None` if the two steps between the iterates are equal, or if a number overflows.
    """
    first = once - theta
    second = twice - once - first
    length = float(second.norm())
    if length == 0:
        return None
    alpha = max(1.0, float(first.norm()) / length)
    candidate = theta + 2 * alpha * first + alpha**2 * second
    return candidate if bool(candidate.isfinite().all()) else None


def _variance(
    log_variance: Float[Tensor, " variances"],
    floor: Float[Tensor, " floors"],
    moments: Float[Tensor, " features"],
) -> Float[Tensor, " variances"]:
    """Returns noise variances, clamped between the floor and the largest second moment.

    An EM step never leaves this range. An extrapolation can leave it so far that `exp` underflows
    or overflows.
    """
    return log_variance.exp().clamp(floor, moments.max().maximum(floor))


def em_of_covariance(
    covariance: Float[Tensor, "features features"],
    latents: int,
    floor: Float[Tensor, " variances"],
    *,
    isotropic: bool,
    tolerance: float,
    max_steps: int,
) -> tuple[Tensor, Tensor, EMFit]:
    """Runs ECME on complete data; returns loadings, noise variances, and the history.

    References:
        | The ECME Algorithm: A Simple Extension of EM and ECM with Faster Monotone Convergence
          (Liu & Rubin, 1994)
        | https://doi.org/10.1093/biomet/81.4.633
        | Bayesian Reasoning and Machine Learning (Barber, 2012), algorithm for factor analysis
        | http://www.cs.ucl.ac.uk/staff/d.barber/brml
    """
    diagonal = covariance.diagonal()

    def variance_of(theta: Tensor) -> Tensor:
        return _variance(theta, floor, diagonal).expand_as(diagonal)

    def step(theta: Tensor) -> Tensor:
        loadings, _ = best_loadings(covariance, variance_of(theta), latents)
        left = diagonal - loadings.square().sum(dim=1)
        left = left.mean(dim=0, keepdim=True) if isotropic else left
        return left.clamp(min=floor).log()

    def value(theta: Tensor) -> float:
        return best_loadings(covariance, variance_of(theta), latents).value

    start = (diagonal.mean(dim=0, keepdim=True) if isotropic else diagonal) / 2
    theta, how = squarem(
        step, value, start.clamp(min=floor).log(), tolerance=tolerance, max_steps=max_steps
    )
    variance = variance_of(theta)
    return best_loadings(covariance, variance, latents).loadings, variance.clone(), how


def em_with_holes(
    y: Float[Tensor, "rows features"],
    start: LinearGaussianParameters,
    floor: Float[Tensor, " variances"],
    *,
    isotropic: bool,
    tolerance: float,
    max_steps: int,
) -> tuple[LinearGaussianParameters, EMFit]:
    """Runs EM on data with missing entries; returns the parameters and the history."""
    shape, moments = start.loadings.shape, y.square().nanmean(dim=0)

    def unpacked(theta: Tensor) -> LinearGaussianParameters:
        loadings, mean, log_variance = theta.split([shape.numel(), shape[0], shape[0]])
        variance = _variance(log_variance, floor, moments)
        return LinearGaussianParameters(loadings.view(shape), mean, variance)

    def packed(parameters: LinearGaussianParameters) -> Tensor:
        log_variance = parameters.variance.clamp(min=floor).log()
        return torch.cat([parameters.loadings.flatten(), parameters.mean, log_variance])

    def step(theta: Tensor) -> Tensor:
        return packed(regression(y, *posterior(unpacked(theta), y), isotropic=isotropic))

    def value(theta: Tensor) -> float:
        return float(log_evidence(unpacked(theta), y).mean())

    theta, how = squarem(step, value, packed(start), tolerance=tolerance, max_steps=max_steps)
    return unpacked(theta), how
