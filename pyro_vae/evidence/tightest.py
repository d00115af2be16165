"""The best way to log p(y) that a program allows, without being told which.

The closed form, where there is one; quadrature for one or two latents; else importance sampling
from a Gaussian of full rank fitted to every datum, and where Pareto k says that even this misses
a part, afresh with a share of draws from the prior. What is chosen depends on the program and on
Pareto k, never on the value: the largest of several lower bounds would be no lower bound.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .._types import Batch
from ..guides import Posterior
from ..programs import Program
from .exact import ClosedForm
from .fitted import Fitted
from .importance import ImportanceSampling
from .proposals import Defensive, FromGuide, Proposal
from .quadrature import Quadrature
from .results import LogMarginal

_MOST_LATENTS_ON_A_GRID = 2  # three take seconds a datum
_SECOND_STREAM = 0x51ED270B  # added to the seed: no draw is used twice


@dataclass(frozen=True)
class Tightest:
    r"""The closed form, quadrature, or importance sampling from a fitted proposal.

    For one or two latents, and for linear Gaussian programs, the result is exact but for rounding
    or the error that quadrature states; otherwise it is that of :class:`ImportanceSampling` with
    :class:`Fitted`. Data that Pareto k does not trust are estimated again with
    :class:`Defensive` draws; what it does not trust then is reported as unreliable.

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
        progress: bool = False,
    ) -> LogMarginal:
        """Estimates per datum."""
        try:
            return ClosedForm()(program, posterior, batch, seed=seed)
        except ValueError:
            if program.latents <= _MOST_LATENTS_ON_A_GRID:
                return Quadrature()(program, posterior, batch, seed=seed, progress=progress)
        return self.sampled(program, posterior, batch, seed=seed, progress=progress)

    def sampled(
        self,
        program: Program,
        posterior: Posterior,
        batch: Batch,
        *,
        seed: int = 0,
        progress: bool = False,
    ) -> LogMarginal:
        """By importance sampling alone."""
        fitted = self.proposal(program, posterior, batch)
        first = self._sampling(FromGuide())
        result = first(program, fitted, batch, seed=seed, progress=progress)
        rows = (~result.reliable).nonzero().squeeze(-1)
        if len(rows) == 0:
            return result
        part = tuple(tensor[rows] for tensor in batch)
        second = self._sampling(Defensive(self.prior_share))
        seed += _SECOND_STREAM
        again = second(program, fitted.rows(rows), part, seed=seed, progress=progress)
        return _with_rows(result, rows, again)


def _with_rows(result: LogMarginal, rows: Tensor, other: LogMarginal) -> LogMarginal:
    """Some of the data replaced."""
    parts = {
        name: getattr(result, name).index_copy(0, rows, getattr(other, name))
        for name in ("value", "error", "ess", "pareto_k", "num_samples")
    }
    nobody = torch.zeros_like(result.reliable)
    doubts = {
        reason: mask.index_copy(0, rows, other.doubts.get(reason, nobody[rows]))
        for reason, mask in result.doubts.items()
    }
    return replace(result, **parts, doubts=doubts)
