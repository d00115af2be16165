"""Factor analysis as Pyro programs: the model, and guides whose every answer is known."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae._types import ProgramLike
from tests.helpers.statistics import FACTS, FACTS_Y, FactorAnalysis

GuideProgram = Callable[[Tensor], None]

WEAK = FactorAnalysis(0.3 * FACTS.loadings, FACTS.mean + 1, FACTS.noise_variance)
"""Weaker loadings: for the mean-field posterior the weights have k = 0.21, so every error holds."""


def model_of(facts: FactorAnalysis) -> Callable[[Tensor], Tensor]:
    """The model as a person would write it."""
    latents = torch.zeros(facts.loadings.shape[1], dtype=facts.loadings.dtype)

    def model(y: Tensor) -> Tensor:
        with pyro.plate("data", len(y)):
            z: Tensor = pyro.sample("z", dist.Normal(latents, latents + 1).to_event(1))
            loc = z @ facts.loadings.T + facts.mean
            pyro.sample("y", dist.Normal(loc, facts.noise_variance.sqrt()).to_event(1), obs=y)
        return z

    return model


def exact_guide(facts: FactorAnalysis) -> GuideProgram:
    """The posterior, written by hand: with it every weight is p(y)."""

    def guide(y: Tensor) -> None:
        posterior = facts.posterior(y)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.MultivariateNormal(posterior.loc, posterior.covariance_matrix))

    return guide


def prior_guide(y: Tensor) -> None:
    """The prior of two latents as a guide: it does not look at the data."""
    zero = torch.zeros(2, dtype=y.dtype)
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(zero, zero + 1).to_event(1))


def mean_field_program(facts: FactorAnalysis) -> GuideProgram:
    """The best mean-field posterior, written by hand."""
    net = mean_field_net(facts)

    def guide(y: Tensor) -> None:
        loc, log_scale = net(y).chunk(2, dim=-1)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return guide


def mean_field_net(facts: FactorAnalysis) -> nn.Linear:
    r"""The linear encoder at the mean-field optimum: :math:`m_n` and :math:`-\log P_{ii} / 2`."""
    features, latents = facts.loadings.shape
    weight = torch.linalg.solve(
        facts.posterior_precision, (facts.loadings / facts.noise_variance[:, None]).T
    )  # (latents, features)
    net = nn.Linear(features, 2 * latents, dtype=facts.loadings.dtype)
    with torch.no_grad():
        net.weight.zero_()[:latents] = weight
        net.bias[:latents] = -weight @ facts.mean
        net.bias[latents:] = -facts.posterior_precision.diagonal().log() / 2
    return net


def mean_field_guide(facts: FactorAnalysis, model: Callable[[Tensor], Tensor]) -> pv.Guide:
    """The best mean-field posterior as an encoder of ours."""
    return pv.Guide(model, pv.Encoder(mean_field_net(facts)), example=FACTS_Y)


def amortization_gap(facts: FactorAnalysis, y: Tensor, parameters: Tensor) -> Tensor:
    r"""By how much a diagonal normal falls short of the best one, `(batch,)`, exactly, in nats.

    .. math:: \frac{1}{2} \sum_i [P_{ii} v_i - 1 - \log (P_{ii} v_i)] + \frac{1}{2} e^\top P e ,
        \quad e = \mu - m_n
    """
    loc, log_scale = parameters.detach().chunk(2, dim=-1)
    precision, error = facts.posterior_precision, loc - facts.posterior(y).loc
    ratio = precision.diagonal() * (2 * log_scale).exp()
    return ((ratio - 1 - ratio.log()).sum(dim=-1) + (error @ precision * error).sum(dim=-1)) / 2


def best_global(facts: FactorAnalysis, y: Tensor) -> Tensor:
    """Parameters of the best single q for all data: the average of the means, 1 / P_ii."""
    loc = facts.posterior(y).loc.mean(dim=0)
    log_scale = -facts.posterior_precision.diagonal().log() / 2
    return torch.cat([loc, log_scale]).expand(len(y), -1)


class LinearGaussian(PyroModule):
    """`z ~ N(0, I)`, `y ~ N(W z + mu, sigma^2)`, with one sigma for all features or one for each.

    Arguments:
        features: Features of a datum.
        latents: Latents of a datum.
        num_sigmas: 1 for probabilistic PCA, `features` for factor analysis.
    """

    def __init__(self, features: int, latents: int, num_sigmas: int) -> None:
        super().__init__()
        self.loadings = nn.Parameter(0.5 * torch.randn(features, latents))
        self.mean = nn.Parameter(torch.zeros(features))
        self.log_sigma = nn.Parameter(torch.zeros(num_sigmas))

    def forward(self, y: Tensor) -> None:
        """The program."""
        features, latents = self.loadings.shape
        scale = self.log_sigma.exp().expand(features)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(latents), 1.0).to_event(1))
            loc = z @ self.loadings.T + self.mean
            pyro.sample("y", dist.Normal(loc, scale).to_event(1), obs=y)

    @property
    def facts(self) -> FactorAnalysis:
        """The same model with every answer in closed form, differentiable in the parameters."""
        variance = (2 * self.log_sigma).exp().expand(len(self.loadings))
        return FactorAnalysis(self.loadings, self.mean, variance)


def posterior_guide(model: ProgramLike, y: Tensor) -> pv.Guide:
    """The posterior itself."""
    return pv.Guide(model, pv.ExactPosterior(), pv.FullRankNormal(), example=y)
