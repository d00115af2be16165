r"""The best way to log p(y) that a program allows, without being told which.

The closed form, where there is one; quadrature for one or two latents; else importance sampling
from a Gaussian fitted to every datum. That is an excellent proposal for one mode, and blind to
others: if it covers one of eight equal modes, its weights are all alike, and log p(y) is low by
log 8 with an error of nothing. So some draws of the prior bear witness: where they find more mass
than the proposal did, by more than their own error explains,

.. math:: \hat p_{\text{prior}} - \hat p > 4 \, \mathrm{se}(\hat p_{\text{prior}}),

and where Pareto k does not trust the proposal, a datum is estimated afresh with a share of draws
from the prior. With narrow posteriors draws of the prior find nothing, which proves nothing; so
modes are looked for by fits from several places as well, and a datum with more than one is marked.

Which data are done again depends on their draws, so the first estimates that stay are not exactly
unbiased for p(y): those with the largest weights were sent back. The shift is within the error.
"""

from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .. import stats
from .._types import Batch
from ..guides import FitRows, Posterior
from ..programs import Prior, Program, hooks_of, retry_unvalidated
from ..randomness import row_keys, seeded, stream
from ..results import Doubt, with_rows
from .exact import ClosedForm
from .fitted import Fitted, other_modes
from .importance import ImportanceSampling
from .proposals import Defensive, FromGuide, Proposal
from .quadrature import Quadrature
from .results import LogMarginal
from .weights import require_numbers

_ROUNDINGS = 1000.0  # units in the last place that may be lost to cancellation in gradients
_MOST_LATENTS_ON_A_GRID = 2  # three take seconds a datum
_TOLERANCE = 1e-3  # nats a datum: below the error of any ELBO that it is held against
_WITNESSES = 1000  # draws of the prior
_MORE = 4.0  # standard errors by which they must find more


@dataclass(frozen=True)
class Tightest:
    r"""The closed form, quadrature, or importance sampling from a fitted proposal.

    For one or two latents, and for linear Gaussian programs, the result is exact but for rounding
    or the error that quadrature states, which is at most 0.001 nats where it converges; otherwise
    it is that of :class:`ImportanceSampling` with :class:`Fitted`. Data that Pareto k does not
    trust, and data for which draws of the prior find mass that the proposal has missed, are
    estimated again with :class:`Defensive` draws; what cannot be trusted then is reported as
    unreliable, and so are data for which fits from several places find several modes. Modes that
    none of these has found stay unseen: where there may be some, compare with
    :class:`AnnealedImportanceSampling`, by :func:`pyro_vae.cross_check`.

    Arguments:
        num_samples: Draws a datum, where draws are taken.
        memory: Mebibytes that the program's intermediate results may take.
        proposal: What to draw from, where draws are taken.
        prior_share: Share of the prior where the proposal is not to be trusted.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import pyro, torch
        >>> import pyro_vae as pv
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> guide = pv.Guide(model, pv.GlobalParameters(), example=torch.zeros(1))
        >>> pv.log_marginal_likelihood(model, guide, torch.zeros(1), Tightest()).method
        'closed form'
    """

    num_samples: int = 5000
    memory: float = 512.0
    proposal: Proposal = field(default_factory=Fitted)
    prior_share: float = 0.1

    def __post_init__(self) -> None:
        """Refuses numbers out of range."""
        self._sampling(Defensive(self.prior_share, self.proposal))

    def _sampling(self, proposal: Proposal) -> ImportanceSampling:
        return ImportanceSampling(self.num_samples, self.memory, proposal)

    def __call__(
        self,
        program: Program,
        posterior: Posterior,
        batch: Batch,
        *,
        seed: int = 0,
        progress: bool | None = None,
    ) -> LogMarginal:
        """Estimates per datum."""
        exact = _in_closed_form(program, posterior, batch)
        if exact is not None:
            return exact
        if program.latent_dim <= _MOST_LATENTS_ON_A_GRID:
            quadrature = Quadrature(_TOLERANCE, memory=self.memory)
            return quadrature(program, posterior, batch, seed=seed, progress=progress)
        return self.sampled(program, posterior, batch, seed=seed, progress=progress)

    def sampled(
        self,
        program: Program,
        posterior: Posterior,
        batch: Batch,
        *,
        seed: int = 0,
        progress: bool | None = None,
    ) -> LogMarginal:
        """By importance sampling alone."""
        fitted = self.proposal(program, posterior, batch)
        first = self._sampling(FromGuide())
        result = first(program, fitted, batch, seed=seed, progress=progress)
        missed = self._missed(program, batch, result, seed)
        rows = (~result.reliable | missed).nonzero().squeeze(-1)
        if len(rows) > 0:
            part = tuple(tensor[rows] for tensor in batch)
            second = self._sampling(Defensive(self.prior_share))
            own = stream(seed, "tightest.second")
            again = second(program, fitted.rows(rows), part, seed=own, progress=progress)
            method = f"{result.method}, {len(rows)} of them with draws of the prior"
            result = replace(with_rows(result, rows, again), method=method)
        several = other_modes(program, fitted, batch, FitRows())
        return replace(result, doubts={**result.doubts, Doubt.SEVERAL_MODES: several})

    def _missed(
        self, program: Program, batch: Batch, result: LogMarginal, seed: int
    ) -> Bool[Tensor, " batch"]:
        """Data for which draws of the prior find more mass than the estimate has."""
        prior = Prior(program, batch)
        keys = row_keys(seed, "tightest.witnesses", *batch).tolist()
        draws = (_witnesses(prior, row, own) for row, own in enumerate(keys))
        found = [stats.log_marginal(log_weights) for log_weights in draws]
        value, error = (torch.cat(parts) for parts in zip(*found, strict=True))
        # Relative to what the prior found: p / p_prior < 1 - 4 se, and the error of p itself.
        spread = (error.square() + result.error.square()).sqrt()
        return (result.value - value).exp() < 1 - _MORE * spread - stats.rounding(value)


def _witnesses(prior: Prior, row: int, key: int) -> Float[Tensor, "particles 1"]:
    """Log weights of draws of the prior for one datum, each of which one run of the program gives.

    Raises:
        FloatingPointError: If one is not a number.
    """
    seeded(key)
    own = prior.rows(slice(row, row + 1))
    z, log_likelihood = retry_unvalidated(partial(own.weighed, _WITNESSES))
    require_numbers("log_likelihood", log_likelihood, z, [row])
    return log_likelihood.double()


def _in_closed_form(program: Program, posterior: Posterior, batch: Batch) -> LogMarginal | None:
    """The exact answer, if there is one; what a model's own method raises is raised."""
    if hooks_of(program.model).log_evidence is not None:
        return ClosedForm()(program, posterior, batch)
    try:
        exact = ClosedForm()(program, posterior, batch)
    except ValueError:
        return None
    rounding = _ROUNDINGS * torch.finfo(program.dtype).eps * (1 + exact.value.abs())
    return exact if bool((exact.error <= rounding).all()) else None  # else nearly quadratic
