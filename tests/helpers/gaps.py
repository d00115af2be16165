"""Guides whose gaps are known in closed form, and assertions about them."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from scipy.stats import norm
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae._types import Estimate, ProgramLike
from pyro_vae.guides import Family
from tests.helpers.factor_analysis import (
    model_of,
)
from tests.helpers.statistics import FACTS, FALSE_ALARM, FactorAnalysis

FAMILIES: dict[str, Family] = {"diagonal": pv.DiagonalNormal(), "full-rank": pv.FullRankNormal()}


LEVEL = 0.8  # where intervals that are too wide show, too


WIDE = float(norm.isf((1 - LEVEL) / 2))


def assert_within(part: Estimate, exact: Tensor | float, slack: float = 1e-9) -> None:
    """Asserts that estimates are right to their errors.

    A correct program fails with probability :data:`FALSE_ALARM`, split over the elements; a few
    times that, since means of 5,000 draws are not quite normal so far out.
    """
    limit = float(norm.isf(FALSE_ALARM / 2 / part.value.numel()))
    off = ((part.value - exact).abs() - slack).clamp(min=0)
    worst = int((off / part.error).nan_to_num().argmax())
    assert (off <= limit * part.error).all(), (
        f"off by {off.flatten()[worst]:.3g}, {limit:.1f} errors are "
        f"{limit * part.error.flatten()[worst]:.3g}"
    )


def covered(part: Estimate, exact: Tensor | float, error: Tensor | None = None) -> Tensor:
    """Whether the interval of 80 percent holds the truth, by datum."""
    return (part.value - exact).abs() < WIDE * (part.error if error is None else error)


class Off(nn.Module):
    """Parameters of a family's best member for every datum, or the best for all, moved by some."""

    def __init__(self, name: str, facts: FactorAnalysis, off: float, *, shared: bool) -> None:
        super().__init__()
        self.name, self.facts, self.off, self.shared = name, facts, off, shared

    def forward(self, y: Tensor) -> Tensor:
        """One row for each datum."""
        family: Any = FAMILIES[self.name]
        loc = self.facts.posterior(y).loc
        loc = loc.mean(dim=0).expand_as(loc) if self.shared else loc
        best = family.closest_normal(loc, self.facts.posterior_precision.expand(len(y), -1, -1))
        moved: Tensor = best + self.off * torch.arange(1, 1 + best.shape[-1]).cos()
        return moved


def divergence(q: Any, posterior: Any) -> Tensor:
    r"""KL from a normal to the posterior, from traces and determinants.

    .. math:: \frac{1}{2} [\operatorname{tr}(P S) - L - \log \det (P S)] + \frac{1}{2} e^\top P e
    """
    e, covariance = q.mean - posterior.loc, _covariance(q)
    product = posterior.precision_matrix @ covariance
    quadratic = torch.einsum("ni,nij,nj->n", e, posterior.precision_matrix, e)
    trace = product.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (trace - e.shape[-1] - product.logdet() + quadratic) / 2


def _covariance(q: Any) -> Tensor:
    full: Tensor | None = getattr(q, "covariance_matrix", None)
    return q.variance.diag_embed() if full is None else full


def closed_gaps(name: str, facts: FactorAnalysis, y: Tensor, guide: pv.Guide) -> dict[str, Tensor]:
    """Every part, exactly."""
    whole = divergence(FAMILIES[name](guide.parameters_of(y).detach()), facts.posterior(y))
    family = torch.full_like(whole, float(facts.mean_field_gap()) * (name == "diagonal"))
    log_p = facts.log_evidence(y)
    return {
        "log_marginal": log_p, "elbo": log_p - whole, "best_elbo": log_p - family,
        "inference": whole, "approximation": family, "amortization": whole - family,
    }  # fmt: skip


def off_guide(name: str, facts: FactorAnalysis, *, shared: bool = False) -> pv.Guide:
    """A guide whose every error is known."""
    example = facts.mean.expand(2, -1)
    net = Off(name, facts, 0.0 if shared else 0.15, shared=shared)
    return pv.Guide(model_of(facts), pv.Encoder(net), FAMILIES[name], example=example)


GUIDES: dict[str, Callable[[str, Tensor], pv.Guide]] = {
    "amortized": lambda name, y: off_guide(name, FACTS),
    "per-datum": lambda name, y: off_guide(name, FACTS).fit_rows(y),
    "global": lambda name, y: off_guide(name, FACTS, shared=True),
}


def squared(latents: int, scale: float) -> ProgramLike:
    """Every latent is seen through its square: 2^L modes of the same mass."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(latents), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z**2, scale).to_event(1), obs=y)

    return model


def squared_log_p(y: Tensor, scale: float) -> Tensor:
    """By a sum over points, for each latent by itself."""
    z = torch.linspace(-8.0, 8.0, 80_001)
    log_joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z**2, scale).log_prob(y[..., None])
    return (log_joint.logsumexp(dim=-1) + (z[1] - z[0]).log()).sum(dim=-1)
