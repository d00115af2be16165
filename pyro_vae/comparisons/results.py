"""What a comparison keeps of every guide, and the table's rows."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .. import diagnostics
from .._types import Estimate
from ..diagnostics import MutualInformation
from ..evidence import Evaluation, EvidenceLowerBound
from ..gaps import InferenceGap
from ..training import Fit

POOR = 0.7  # Pareto k above which no practical number of draws suffices


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
    information: MutualInformation
    seconds: float


@dataclass(frozen=True)
class Row:
    """One guide's row of the table; nats a datum, means over data, with Monte Carlo errors.

    Arguments:
        guide: Its name.
        train_elbo: ELBO of the training data.
        train_elbo_error: Its error.
        elbo: ELBO of the held-out data.
        elbo_error: Its error.
        log_p: Log p(y) of the held-out data, by :class:`pyro_vae.Tightest` or the estimator that
            was asked for.
        log_p_error: Its error.
        approximation: Log p less the ELBO of the best q of the family for every held-out datum.
        approximation_error: Its error.
        amortization: That ELBO less the guide's.
        amortization_error: Its error.
        rate: KL(q(z | y) || p(z)), what z costs.
        distortion: - E log p(y | z), what is left.
        active_units: Latents whose posterior mean varies over the data.
        mutual_information: What z says about which datum it came from.
        mutual_information_error: Its error.
        ceiling: log N, which the mutual information cannot exceed.
        unreliable: Share of the held-out data whose log p cannot be trusted.
        poor_proposal: Share for which the guide's own weights cannot (Pareto k above 0.7): it
            misses a part of their posterior.
        seconds: Training time.
        epochs: Epochs of training; rounds where rows were fitted with the model fixed.
        log_p_spread: Standard deviation of log p between seeds; nan for one seed.
        elbo_spread: That of the ELBO.
    """

    guide: str
    train_elbo: float
    train_elbo_error: float
    elbo: float
    elbo_error: float
    log_p: float
    log_p_error: float
    approximation: float
    approximation_error: float
    amortization: float
    amortization_error: float
    rate: float
    distortion: float
    active_units: int
    mutual_information: float
    mutual_information_error: float
    ceiling: float
    unreliable: float
    poor_proposal: float
    seconds: float
    epochs: int
    log_p_spread: float = math.nan
    elbo_spread: float = math.nan


def row_of(name: str, result: GuideResult, log_scale: float) -> Row:
    """A guide's row."""
    bound, own = result.test
    train, information, gap = result.train_bound.mean, result.information, result.gap.mean
    return Row(
        guide=name,
        train_elbo=float(train.value) + log_scale,
        train_elbo_error=float(train.error),
        elbo=float(gap.elbo.value) + log_scale,
        elbo_error=float(gap.elbo.error),
        log_p=float(gap.log_marginal.value) + log_scale,
        log_p_error=float(gap.log_marginal.error),
        approximation=float(gap.approximation.value),
        approximation_error=float(gap.approximation.error),
        amortization=float(gap.amortization.value),
        amortization_error=float(gap.amortization.error),
        rate=float(bound.rate.value.mean()),
        distortion=float(bound.distortion.value.mean()) - log_scale,
        active_units=diagnostics.active_units(result.means)[0],
        mutual_information=float(information.estimate.value),
        mutual_information_error=float(information.estimate.error),
        ceiling=information.ceiling,
        unreliable=float((~result.gap.log_marginal.reliable).double().mean()),
        poor_proposal=float((~(own.pareto_k <= POOR)).double().mean()),
        seconds=result.seconds,
        epochs=int(result.fit.history.epoch[-1]) if len(result.fit.history.epoch) else 0,
    )
