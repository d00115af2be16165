"""The linear Gaussian model in closed form: probabilistic PCA and factor analysis."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from .._annotations import COUNT
from .._types import Distribution
from .._warnings import warn
from ..data.checks import check_batch
from ..formatting import count_of
from ..likelihoods.real import check_floor
from ..programs import PartlyObserved
from ..registry import registered
from . import expectation_maximization as em
from .base import Generative


@registered()
@dataclass(frozen=True)
class Isotropic:
    """The same noise for all features, as in probabilistic PCA.

    Arguments:
        floor: Smallest standard deviation, in the unit of the data. :meth:`LinearGaussian.fit_em`
            never goes below a millionth of the data's standard deviation.
    """

    floor: float = 1e-3

    def __post_init__(self) -> None:
        check_floor(self.floor)


@registered()
@dataclass(frozen=True)
class Diagonal:
    """Separate noise for every feature, as in factor analysis.

    Arguments:
        floor: Smallest standard deviation, in the unit of the data. Maximum likelihood may drive a
            feature's noise to zero (a Heywood case), and always does for a constant feature.
            :meth:`LinearGaussian.fit_em` never goes below a millionth of the feature's standard
            deviation.
    """

    floor: float = 1e-3

    def __post_init__(self) -> None:
        check_floor(self.floor)


@registered()
class LinearGaussian(Generative):
    r"""The linear Gaussian model, a Pyro program: probabilistic PCA or factor analysis.

    .. math:: z_n \sim \mathcal{N}(0, I), \qquad y_n \mid z_n \sim \mathcal{N}(W z_n + \mu, \Psi)

    where :math:`\Psi` is :math:`\sigma^2 I` (:class:`Isotropic`) or any diagonal matrix
    (:class:`Diagonal`). This model is the VAE with a linear decoder. Three things are known in
    closed form: the posterior (:meth:`exact_posterior`, which :class:`pyro_vae.ExactPosterior` and
    :class:`pyro_vae.CoordinateAscent` need), the evidence (:meth:`log_evidence`, which
    :class:`pyro_vae.ClosedForm` needs), and, for isotropic noise and complete data, the maximum
    likelihood estimate (:meth:`fit_closed_form`). An entry of y that is nan is missing, and drops
    out of the posterior and the evidence. :meth:`fit_em` takes data with missing entries.

    Maximum likelihood determines :math:`W` only up to a rotation of z.

    Arguments:
        latent_dim: Number of entries of z.
        features: Number of features of a datum.
        noise: :class:`Isotropic` or :class:`Diagonal`; isotropic by default.

    Shapes:
        loadings: :math:`W`, `(features, latents)`.
        mean: :math:`\mu`, `(features,)`.
        log_noise: Logarithm of the noise variance minus the squared floor, `()` or `(features,)`.

    Raises:
        ValueError: If there are no latents or no features.

    References:
        | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999)
        | https://doi.org/10.1111/1467-9868.00196
        | EM Algorithms for ML Factor Analysis (Rubin & Thayer, 1982)
        | https://doi.org/10.1007/BF02293851

    Example:
        >>> y = torch.randn(100, 4) @ torch.randn(4, 4)
        >>> model = LinearGaussian(latent_dim=2, features=4)
        >>> model.fit_closed_form(y)
        >>> closed = model.log_evidence(y).mean()
        >>> fit = model.fit_em(y)
        >>> bool((model.log_evidence(y).mean() - closed).abs() < 1e-4)
        True
    """

    def __init__(
        self, latent_dim: int, features: int, noise: Isotropic | Diagonal | None = None
    ) -> None:
        super().__init__(torch.zeros(()))
        self.latent_dim, self.features = latent_dim, features
        self.noise = Isotropic() if noise is None else noise
        shape = () if isinstance(self.noise, Isotropic) else (features,)
        self.loadings = nn.Parameter(torch.zeros(features, latent_dim))
        self.mean = nn.Parameter(torch.zeros(features))
        self.log_noise = nn.Parameter(torch.zeros(shape))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Redraws the loadings for data of about unit variance; sets zero mean and unit noise."""
        self.loadings.normal_().div_(math.sqrt(self.latent_dim))
        self.mean.zero_()
        self.log_noise.zero_()

    def variance(self) -> Float[Tensor, " features"]:
        """Returns the noise variance of every feature."""
        return (self.noise.floor**2 + self.log_noise.exp()).expand(self.features)

    def covariance(self) -> Float[Tensor, "features features"]:
        r"""Returns the covariance of the data, :math:`W W^\top + \Psi`."""
        return self.loadings @ self.loadings.mT + self.variance().diag()

    def latents(self, rows: int, *given: Tensor) -> Float[Tensor, "*particles rows latents"]:
        """Samples the site z, and returns its values."""
        zero = self.zero.expand(self.latent_dim)
        return pyro.sample("z", dist.Normal(zero, torch.ones_like(zero)).to_event(1))

    def conditional(self, z: Float[Tensor, "rows latents"], *given: Tensor) -> Distribution:
        """Returns p(y | z) for every row."""
        if given:
            raise ValueError(
                f"LinearGaussian takes no tensors besides the data; got "
                f"{count_of(len(given), 'more tensor')}: pass only the data"
            )
        normal = dist.Normal(self.expectation(z), self.variance().sqrt())
        return PartlyObserved(normal).to_event(1)

    def expectation(
        self, z: Float[Tensor, "rows latents"], *given: Tensor
    ) -> Float[Tensor, "rows features"]:
        r"""Returns the mean of p(y | z), :math:`W z + \mu`, for every row."""
        return z @ self.loadings.mT + self.mean

    def exact_posterior(self, y: Float[Tensor, "batch features"]) -> MultivariateNormal:
        r"""Returns the exact p(z | y) of every datum, given its observed (not nan) entries.

        .. math:: P_n = I + W^\top O_n \Psi^{-1} W, \qquad
            m_n = P_n^{-1} W^\top O_n \Psi^{-1} (y_n - \mu)

        Here :math:`m_n` is the mean and :math:`P_n` the precision. :math:`O_n` is diagonal: 1 where
        an entry of :math:`y_n` was observed, 0 where it is missing.
        """
        loc, precision = em.posterior(self._estimate(), y)
        return MultivariateNormal(loc, precision_matrix=precision.expand(len(y), -1, -1))

    def log_evidence(self, y: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        """Returns the exact log density of every datum's observed (not nan) entries, in nats."""
        return em.log_evidence(self._estimate(), y)

    def _estimate(self) -> em.LinearGaussianParameters:
        return em.LinearGaussianParameters(self.loadings, self.mean, self.variance())

    @torch.no_grad()
    def fit_closed_form(self, y: Float[Tensor, "data features"]) -> None:
        r"""Sets the parameters to the maximum of the likelihood, for isotropic noise.

        .. math:: \sigma^2 = \frac{1}{D - L} \sum_{i > L} \lambda_i, \qquad
            W = U_L (\Lambda_L - \sigma^2 I)^{1/2}

        Here :math:`D` is the number of features and :math:`L` the number of latents. The
        eigenvalues :math:`\lambda` (largest first) and eigenvectors :math:`U` are those of the
        data's covariance, with divisor N. The computation is in float64.

        Raises:
            ValueError: If the noise is not isotropic, if there are at least as many latents as
                features, or if the data have missing entries. In these cases use :meth:`fit_em`.
        """
        if not isinstance(self.noise, Isotropic) or self.latent_dim >= self.features:
            raise ValueError(
                "for a closed form, the noise must be isotropic and the latents must be fewer "
                f"than the features; got {self.noise}, {count_of(self.latent_dim, 'latent')} and "
                f"{count_of(self.features, 'feature')}: use fit_em(y)"
            )
        y = self._checked(y)
        if bool(y.isnan().any()):
            raise ValueError(
                "for a closed form, the data must have no missing entries; got "
                f"{count_of(int(y.isnan().sum()), 'missing (nan) entry', ',')} out of "
                f"{y.numel():,}: use fit_em(y)"
            )
        mean = y.mean(dim=0)
        covariance = (y - mean).mT @ (y - mean) / len(y)
        left = torch.linalg.eigvalsh(covariance)[: -self.latent_dim].mean()
        variance = left.clamp(min=self.noise.floor**2).expand(self.features)
        loadings = em.best_loadings(covariance, variance, self.latent_dim).loadings
        self._set(em.LinearGaussianParameters(loadings, mean, variance))

    @torch.no_grad()
    def fit_em(
        self,
        y: Float[Tensor, "data features"],
        *,
        tolerance: float = 1e-9,
        max_steps: Annotated[int, COUNT] = 10_000,
    ) -> em.EMFit:
        """Sets the parameters to a maximum of the likelihood, by accelerated EM.

        EM starts from the moments of the data, not from the current parameters, so no seed is
        needed. Without missing entries a step costs one eigendecomposition of a matrix
        `(features, features)`, whatever the number of data. With missing entries a step
        computes the posterior of every datum, and needs memory for `data * latents^2` numbers. All
        computations are in float64. No step lowers the likelihood, but with diagonal noise there
        may be several maxima.

        Arguments:
            y: The data; nan where an entry is missing.
            tolerance: Stops when two rounds in a row each gain less than this, in nats per datum.
                A round has two EM steps and, if they can be extrapolated, a third. The remaining
                gain may be several times larger than the tolerance.
            max_steps: Limit on EM steps; a warning is issued if EM has not converged by then.

        Returns:
            The log evidence per datum at the start and after every round, the number of steps, and
            whether EM converged.

        Raises:
            ValueError: If a row or a column was not observed at all, or the data do not fit
                the model.

        References:
            | Maximum Likelihood from Incomplete Data via the EM Algorithm (Dempster, Laird & Rubin,
              1977)
            | https://doi.org/10.1111/j.2517-6161.1977.tb01600.x
            | Simple and Globally Convergent Methods for Accelerating the Convergence of Any EM
              Algorithm (Varadhan & Roland, 2008)
            | https://doi.org/10.1111/j.1467-9469.2007.00585.x
        """
        y = self._checked(y)
        mean = y.nanmean(dim=0)
        centred = y - mean
        filled = centred.nan_to_num(0.0)
        options: dict[str, Any] = {
            "isotropic": isinstance(self.noise, Isotropic),
            "tolerance": tolerance,
            "max_steps": max_steps,
        }
        latents, floor = min(self.latent_dim, self.features), self._least_variance(centred)
        if not bool(y.isnan().any()):
            covariance = filled.mT @ filled / len(y)
            loadings, variance, how = em.em_of_covariance(covariance, latents, floor, **options)
            found = em.LinearGaussianParameters(loadings, mean, variance)
        else:
            start = _start(filled, centred, latents, floor)
            moved, how = em.em_with_holes(centred, start, floor, **options)
            found = moved._replace(mean=moved.mean + mean)
        self._set(found)
        if not how.converged:
            warn(
                f"EM did not converge in {count_of(how.steps, 'step')}, and the last round still "
                f"gained {float(how.log_evidence.diff()[-1]):.2g} nats per datum, more than the "
                f"tolerance of {tolerance:g}: pass a larger `max_steps`, or raise the noise floor "
                "if a feature's noise tends to zero"
            )
        return how

    def _checked(self, y: Tensor) -> Tensor:
        """Returns the data in float64; refuses data that leave a parameter undetermined."""
        check_batch(y, missing=(0,))
        if y.shape[1:] != (self.features,):
            raise ValueError(
                f"the data must have {count_of(self.features, 'feature')}; got shape "
                f"{tuple(y.shape)}: pass rows of {count_of(self.features, 'number')}, or build the "
                "model for these data"
            )
        unseen = y.isnan().all(dim=0).nonzero().flatten().tolist()
        if unseen:
            raise ValueError(
                f"every column must have an observed entry; got none in {len(unseen)} of "
                f"{count_of(self.features, 'column')} (first in column {unseen[0]}): drop these "
                "columns"
            )
        return y.detach().double()

    def _least_variance(self, centred: Tensor) -> Tensor:
        """Returns lower limits for the noise variances, `(1,)` or `(features,)`.

        If the noise were below a millionth of the data's standard deviation, rounding in float64
        would remove the prior from the posterior precision.
        """
        variance = centred.square().nanmean(dim=0)
        if isinstance(self.noise, Isotropic):
            variance = variance.mean(dim=0, keepdim=True)
        return (variance * 1e-12).clamp(min=self.noise.floor**2)

    def _set(self, found: em.LinearGaussianParameters) -> None:
        """Copies the estimated parameters into the module; unused latents get zero loadings."""
        self.loadings.zero_()[:, : found.loadings.shape[1]] = found.loadings.to(self.loadings)
        self.mean.copy_(found.mean)
        least = self.noise.floor**2
        above = (found.variance - least).clamp(min=1e-9 * least).log()
        self.log_noise.copy_(above[0] if self.log_noise.dim() == 0 else above)


def _start(
    filled: Tensor, centred: Tensor, latents: int, floor: Tensor
) -> em.LinearGaussianParameters:
    """Returns initial parameters for EM; the noise variance is half of a feature's variance.

    The loadings come from the covariance of the data, with missing entries set to the mean.
    """
    variance = centred.square().nanmean(dim=0).clamp(min=2 * floor) / 2
    covariance = filled.mT @ filled / len(filled)
    loadings = em.best_loadings(covariance, variance, latents).loadings
    # Loadings of zero would stay zero, so unused directions start at small, irregular numbers.
    row, column = (1 + torch.arange(size).to(loadings) for size in loadings.shape)
    small = 0.1 * variance.sqrt()[:, None] * torch.outer(row, column).cos()
    return em.LinearGaussianParameters(
        torch.where(loadings.norm(dim=0) > 0, loadings, small), torch.zeros_like(variance), variance
    )
