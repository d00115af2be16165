"""What a comparison keeps of every guide."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from .._types import Estimate
from ..diagnostics import MutualInformation
from ..evidence import Evaluation, EvidenceLowerBound
from ..gaps import InferenceGap
from ..training import Fit

POOR = 0.7  # Pareto k above which no practical number of draws suffices


class Untrusted(NamedTuple):
    """Numbers of data: log p(y) doubted, best q not found, and told by a gap's sign alone."""

    doubted: int
    lost: int
    negative: int


@dataclass(frozen=True)
class GuideResult:
    """A trained guide and its model, and how they do.

    Arguments:
        model: The copy of the model that this guide trained.
        guide: The guide, for the training data.
        held_out_guide: The guide for the held-out data; another one where rows had to be fitted.
        fit: How training went.
        train_bound: ELBO of the training data.
        test: ELBO of the held-out data, and log p with the guide itself as the proposal.
        gap: Log p of the held-out data by the tightest estimator, and the parts of the gap
            between that and the ELBO.
        refined: ELBO after some steps a datum from the guide's answer, where it can be refined.
        means: Posterior means of the held-out data, `(batch, latents)`.
        prior_variance: Variance of each latent under the model's prior, `(latents,)`.
        information: Mutual information of z and the held-out data.
        seconds: Time that training took.
    """

    model: Any
    guide: Any
    held_out_guide: Any
    fit: Fit
    train_bound: EvidenceLowerBound
    test: Evaluation
    gap: InferenceGap
    refined: Estimate | None
    means: Tensor
    prior_variance: Tensor
    information: MutualInformation
    seconds: float

    @property
    def untrusted(self) -> Untrusted:
        """Held-out data whose numbers cannot be trusted, by what is wrong."""
        gap = self.gap
        negative = ~gap.reliable & gap.log_marginal.reliable & gap.converged
        lost, doubted = ~gap.converged, ~gap.log_marginal.reliable
        return Untrusted(*(int(mask.sum()) for mask in (doubted, lost, negative)))

    @property
    def poor(self) -> int:
        """Data whose posterior the guide's own weights do not reach; unknown counts as such."""
        return int((~(self.test.log_marginal.pareto_k <= POOR)).sum())
