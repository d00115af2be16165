"""Factor analysis with holes, as a VAE and as a program, and closed forms of what is missing."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.programs import PartlyObserved
from tests.helpers.statistics import FactorAnalysis

FACTORS = FactorAnalysis(
    loadings=torch.tensor(
        [[1.0, 0.5], [0.8, -0.6], [-0.7, 0.9], [0.3, 1.1], [0.6, 0.2]], dtype=torch.float64
    ),
    mean=torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0], dtype=torch.float64),
    noise_variance=torch.tensor([0.5, 0.4, 0.6, 0.8, 0.3], dtype=torch.float64),
)
"""Five features, two factors; weights of the prior have a variance for nearly all data."""


def program(y: Tensor) -> None:
    """As a person would write it, with entries that may be missing."""
    zero = torch.zeros(2, dtype=y.dtype)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
        loc = z @ FACTORS.loadings.T + FACTORS.mean
        features = PartlyObserved(dist.Normal(loc, FACTORS.noise_variance.sqrt()))
        pyro.sample("y", features.to_event(1), obs=y)


def vae() -> pv.models.VAE:
    """The same as a model of ours."""
    decoder = nn.Linear(2, 5, dtype=torch.float64)
    sigma = pv.likelihoods.LearnedSigma((5,), floor=1e-6)
    with torch.no_grad():
        decoder.weight.copy_(FACTORS.loadings)
        decoder.bias.copy_(FACTORS.mean)
        scale = FACTORS.noise_variance.sqrt() - 1e-6
        sigma.raw = nn.Parameter(scale + (-(-scale).expm1()).log())
    return pv.models.VAE(decoder, pv.likelihoods.Gaussian(sigma), latent_dim=2)


class ExactNet(nn.Module):
    """Mean-field encoder at the mean of p(z | y_O), with its marginal spread times a factor."""

    def __init__(self, width: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.width, self.shift = width, shift

    def forward(self, y: Tensor) -> Tensor:
        """Loc and log scale, `(batch, 4)`."""
        rows = [posterior(row) for row in y]
        loc = torch.stack([mean for mean, _ in rows]) + self.shift
        scale = torch.stack([cov.diagonal().sqrt() for _, cov in rows])
        return torch.cat([loc, (self.width * scale).log()], dim=-1)


def guide(model: pv._types.ProgramLike, width: float = 1.0, shift: float = 0.0) -> pv.Guide:
    """A guide that was told of missing entries; as exact as a mean-field one can be, or off."""
    return pv.Guide(model, pv.Encoder(ExactNet(width, shift)), example=torch.zeros(2, 5))


def posterior(row: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of p(z | y_O)."""
    seen = ~row.isnan()
    part = FactorAnalysis(
        FACTORS.loadings[seen], FACTORS.mean[seen], FACTORS.noise_variance[seen]
    ).posterior(row[seen].unsqueeze(0))
    return part.loc[0], part.covariance_matrix[0]


def conditional(row: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of y given the observed entries, by conditioning the joint normal."""
    seen = ~row.isnan()
    covariance = FACTORS.marginal.covariance_matrix
    gain = torch.linalg.solve(covariance[seen][:, seen], covariance[seen]).T  # (features, seen)
    mean = FACTORS.mean + gain @ (row[seen] - FACTORS.mean[seen])
    return mean, covariance - gain @ covariance[seen]


def with_holes(num_data: int, share: float = 0.3) -> tuple[Tensor, Tensor]:
    """Data, and the same with entries removed at random; at least one of a row is left."""
    y = FACTORS.sample(num_data)
    holes = torch.rand(num_data, 5) < share
    holes[holes.all(dim=1), 0] = False
    return y, y.masked_fill(holes, torch.nan)
