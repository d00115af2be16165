"""What a program of the corpus consists of, and the integrals that say what is true of it."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import pyro_vae as pv


class Trunk(nn.Module):
    """A small encoder that reads all tensors of a batch: `(batch, 6)`."""

    num_features = 6

    def __init__(self, *data: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(sum(part[0].numel() for part in data), self.num_features)

    def forward(self, *batch: Tensor) -> Tensor:
        """Every tensor flattened, then one layer."""
        flat = torch.cat([part.reshape(len(part), -1).float() for part in batch], -1)
        return self.layer(flat).tanh()


@dataclass(frozen=True)
class Case:
    """A program with its author's guide, a few data, and log p of each of them.

    Arguments:
        model: The Pyro program.
        guide: Its author's guide.
        data: The tensors of a batch.
        log_prob: The truth, `(batch,)`, float64, found without pyro_vae; given `given`.
        given: Values of the latent sites that all data share.
        estimator: What decides log p of this program.
        discrete: Whether discrete sites are summed out, also in a user's own training loop.
        batch_size: Rows of a step of training; all of them for a guide that is tied to all.
        loss: The objective of a user's own loop; Pyro's by default.
        remedies: The program changed as a refusal says, by the words that the refusal must hold.
    """

    model: Any
    guide: Any
    data: tuple[Tensor, ...]
    log_prob: Tensor
    given: Mapping[str, Tensor] = field(default_factory=dict)
    estimator: Any = field(default_factory=lambda: pv.ImportanceSampling(1000))
    discrete: bool = False
    batch_size: int = 2
    loss: Any = None
    remedies: Mapping[str, Callable[[], "Case"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A named program: what idiom it stands for, and how to make it."""

    name: str
    idiom: str
    make: Callable[[], Case]

    def __call__(self) -> Case:
        """Makes it, always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(20)
            return self.make()


PROGRAMS: dict[str, Entry] = {}


def program(make: Callable[[], Case]) -> Callable[[], Case]:
    """Enters a program into the corpus: its name and its idiom are those of what makes it."""
    PROGRAMS[make.__name__] = Entry(make.__name__, str(make.__doc__), make)
    return make


def double(net: nn.Module) -> nn.Module:
    """A float64 copy of a net in eval mode, for the truth."""
    return copy.deepcopy(net).double().eval()


def normal(value: Tensor, loc: Any = 0.0, scale: Any = 1.0) -> Tensor:
    """The log density of a normal distribution."""
    scale = torch.as_tensor(scale, dtype=torch.float64)
    return -0.5 * ((value - loc) / scale) ** 2 - scale.log() - 0.9189385332046727


def bernoulli(value: Tensor, logits: Tensor) -> Tensor:
    """The log probability of zeros and ones."""
    return nn.functional.logsigmoid((2 * value - 1) * logits)


def poisson(value: Tensor, rate: Tensor) -> Tensor:
    """The log probability of counts."""
    return value * rate.log() - rate - (value + 1).lgamma()


def gamma(value: Tensor, concentration: float, rate: float) -> Tensor:
    """The log density of a gamma distribution."""
    shape, inverse = torch.tensor([concentration, rate], dtype=torch.float64)
    return shape * inverse.log() - shape.lgamma() + (shape - 1) * value.log() - inverse * value


def multinomial(value: Tensor, probs: Tensor) -> Tensor:
    """The log probability of counts of categories."""
    orders = (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1)
    return orders + (value * probs.log()).sum(-1)


def line(lower: float = -9.0, upper: float = 9.0, points: int = 801) -> Tensor:
    """An even grid, `(points, 1)`: the trapezoidal rule is exact on it for smooth integrands."""
    return torch.linspace(lower, upper, points, dtype=torch.float64).unsqueeze(-1)


def plane(dim: int, half: float = 8.0, points: int = 121) -> Tensor:
    """An even grid of `points` along each of `dim` axes, `(points ** dim, 1, dim)`."""
    axis = torch.linspace(-half, half, points, dtype=torch.float64)
    return torch.cartesian_prod(*[axis] * dim).reshape(-1, 1, dim)


def integral(log_density: Tensor, grid: Tensor) -> Tensor:
    """Log of the integral over a grid, `(points, batch)` to `(batch,)`."""
    axis = grid.reshape(len(grid), -1)[:, -1]  # the last axis moves fastest
    cell = (axis[1] - axis[0]).log() * grid.reshape(len(grid), -1).shape[-1]
    return log_density.logsumexp(0) + cell


def over_normals(log_likelihood: Callable[[Tensor], Tensor], dim: int, points: int = 121) -> Tensor:
    """Log of the mean of a likelihood over z ~ N(0, I), where z is `(points, 1, dim)`."""
    z = plane(dim, points=points)
    return integral(normal(z).sum(-1) + log_likelihood(z), z)


def multivariate_normal(y: Tensor, covariance: Tensor, loc: Any = 0.0) -> Tensor:
    """The log density of a multivariate normal distribution, in float64."""
    root = torch.linalg.cholesky(covariance.double())
    noise = torch.linalg.solve_triangular(root, (y.double() - loc).unsqueeze(-1), upper=False)
    return normal(noise.squeeze(-1)).sum(-1) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
