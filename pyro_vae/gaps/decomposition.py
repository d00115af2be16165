r"""The inference gap of a guide, taken apart.

The ELBO of the guide and that of :math:`q_n^\star` are averages of log weights over draws that
come from the same stream. Where both draw :math:`z = \mu + \sigma \epsilon` the noise is common,
and of the difference :math:`d_k = \log w_k^\star - \log w_k` little noise is left. The pairs are
independent of one another, so :math:`\bar d` and its standard error are right whether or not a
pair is alike. Log p(y) has draws of its own, and so an independent error.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from .. import stats
from .._types import Batch, Data, Estimate, ProgramLike
from ..evidence import (
    Estimator,
    ImportanceSampling,
    LogMarginal,
    Tightest,
    best_of_family,
    near,
    prepared,
    starts,
)
from ..guides import (
    DiagonalNormal,
    Family,
    FamilyPosterior,
    FitRows,
    Posterior,
    RowFit,
)
from ..programs import Program
from ..randomness import stream
from ..results import join
from .results import FamilyGap, InferenceGap


def inference_gap(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    *,
    estimator: Estimator | None = None,
    families: Mapping[str, Family] | None = None,
    num_samples: int = 5000,
    fitting: FitRows | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> InferenceGap:
    r"""Takes the gap between log p(y) and a guide's ELBO apart, per datum and with errors.

    .. math:: \log p(y_n) - \mathrm{ELBO}_n(q)
        = \left[\log p(y_n) - \mathrm{ELBO}_n(q_n^\star)\right]
        + \left[\mathrm{ELBO}_n(q_n^\star) - \mathrm{ELBO}_n(q)\right]

    :math:`q_n^\star` is the member of the guide's family that is best for the datum, with the
    model fixed: fitted from the guide's answer, from N(0, I), and from the likeliest of some draws
    of N(0, I); the best of them. For a guide written by hand the family is the mean-field Gaussian.

    It assumes that the fits find the best member. That cannot be proven; where the guide beats
    :math:`q_n^\star` beyond error it was not found, and the datum is marked and not hidden
    (`converged`, `suboptimal`). Where log p(y) is a lower bound on average, the inference and the
    approximation gap are so too. The gaps of guides that each trained their own model do not
    compare: a model adapts to its guide.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them.
        estimator: How log p(y) is found; :class:`pyro_vae.Tightest` with as many draws, unless
            told otherwise.
        families: Further families, by name, of which the best member is fitted too.
        num_samples: Draws a datum of each average.
        fitting: How rows are fitted.
        given: Values of the latent sites that all data share, as in
            :func:`pyro_vae.log_marginal_likelihood`.
        seed: Seed of the draws; the caller's random stream is left alone.
        progress: Whether to show progress bars.

    Returns:
        The terms per datum, with standard errors, in nats. `inference` is exactly the sum of
        `approximation` and `amortization`.

    Raises:
        ValueError: If data, model and guide do not fit together, or a family is a flow that was
            set up for no guide.
        FloatingPointError: If a log density is nan or plus infinity.

    References:
        | Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018)
        | https://arxiv.org/abs/1801.03558
        | Amortized Variational Inference: When and Why? (Margossian & Blei, 2024)
        | https://arxiv.org/abs/2307.11018

    Example:
        >>> import pyro, torch
        >>> import pyro_vae as pv
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> y = torch.tensor([0.0, 2.0])
        >>> guide = pv.Guide(model, pv.GlobalParameters(), example=y)  # q = N(0, 1) for every y
        >>> gap = inference_gap(model, guide, y)
        >>> (gap.approximation.value.abs() < 1e-3).tolist()  # the posterior is of the family
        [True, True]
        >>> exact = torch.tensor([0.1534, 1.1534])  # KL(N(0, 1) || N(y / 2, 1 / 2))
        >>> ((gap.amortization.value - exact).abs() < 5 * gap.amortization.error).tolist()
        [True, True]
    """
    how = _How(fitting or FitRows(), num_samples, seed, progress)
    estimate = Tightest(num_samples) if estimator is None else estimator
    with prepared(model, guide, data, seed, given) as (program, posterior, batch):
        program.require_latents()
        family = posterior.family if isinstance(posterior, FamilyPosterior) else DiagonalNormal()
        best = how.fit(program, batch, family, starts(program, posterior, batch, family))
        star = FamilyPosterior(family, best.parameters)
        apart = stream(seed, "evidence")  # log p(y) shares no draw with the ELBOs
        marginal = estimate(program, star, batch, seed=apart, progress=progress)
        others = {
            name: how.fit(program, batch, other, [near(other, star, batch)])
            for name, other in (families or {}).items()
        }
        posteriors = [posterior, star] + [
            FamilyPosterior(other, others[name].parameters)
            for name, other in (families or {}).items()
        ]
        averages = how.averages(program, posteriors, batch)
        given_as = program.conditions
    return _decomposed(replace(marginal, given=given_as), averages, best, others, num_samples)


class _Average(NamedTuple):
    """An ELBO, and by how much it is larger than that of a reference, from common draws."""

    elbo: Estimate
    gain: Estimate


@dataclass(frozen=True)
class _How:
    """What is the same for every fit and every average."""

    fitting: FitRows
    num_samples: int
    seed: int
    progress: bool

    def fit(self, program: Program, batch: Batch, family: Family, starts: list[Tensor]) -> RowFit:
        """The best member of a family."""
        return best_of_family(
            program, batch, family, starts, self.fitting, seed=self.seed, progress=self.progress
        )

    def averages(
        self, program: Program, posteriors: list[Posterior], batch: Batch
    ) -> list[_Average]:
        """ELBOs: of the guide, of q* beside the guide, of the other families beside q*."""
        method = ImportanceSampling(self.num_samples)
        weights = [
            method.weights(program, posterior, batch, seed=self.seed, progress=self.progress)
            for posterior in posteriors
        ]
        pieces = ([part.log_weights for part in parts] for parts in zip(*weights, strict=True))
        return [join(list(parts)) for parts in zip(*map(_averages, pieces), strict=True)]


def _averages(log_weights: list[Tensor]) -> Iterator[_Average]:
    """Of each its mean, and the mean of its difference to its reference."""
    guide, best, *others = log_weights
    references = [guide, guide, *([best] * len(others))]
    for own, reference in zip(log_weights, references, strict=True):
        yield _Average(stats.mean_estimate(own), stats.mean_estimate(own - reference))


def _decomposed(
    marginal: LogMarginal,
    averages: list[_Average],
    best: RowFit,
    others: Mapping[str, RowFit],
    num_samples: int,
) -> InferenceGap:
    guide, star, *rest = averages
    approximation = _approximation(marginal, star.elbo)
    return InferenceGap(
        log_marginal=marginal,
        elbo=guide.elbo,
        best_elbo=star.elbo,
        approximation=approximation,
        amortization=star.gain,
        inference=Estimate(
            approximation.value + star.gain.value, _apart(marginal, guide.elbo.error)
        ),
        fit_converged=best.converged,
        families={
            name: FamilyGap(
                own.elbo, _approximation(marginal, own.elbo), own.gain, others[name].converged
            )
            for name, own in zip(others, rest, strict=True)
        },
        num_samples=num_samples,
        given=marginal.given,
    )


def _approximation(marginal: LogMarginal, elbo: Estimate) -> Estimate:
    return Estimate(marginal.value - elbo.value, _apart(marginal, elbo.error))


def _apart(marginal: LogMarginal, error: Tensor) -> Tensor:
    """Error of log p(y) less something from other draws."""
    return (marginal.error.square() + error.square()).sqrt()
