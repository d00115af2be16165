"""More programs, in the idioms of Pyro's tutorials, each with its density written by hand."""

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from pyro_vae._types import Batch
from tests.helpers.cases import NUM_DATA, Case, normal, numbers, scalar_density, vectors

# Subsampling inside the program, which is called with all of its data.


def subsamples(y: Tensor) -> None:
    """The plate chooses rows, and `pyro.subsample` takes them; the number of data is written in."""
    with pyro.plate("data", 50, subsample_size=20, dim=-1):
        y = pyro.subsample(y, event_dim=0)
        z = pyro.sample("z", dist.Normal(0.5, 2.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def indexes(y: Tensor) -> None:
    """The plate chooses rows, and gives their positions."""
    with pyro.plate("data", len(y), subsample_size=20) as rows:
        z = pyro.sample("z", dist.Normal(0.5, 2.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])


# Constrained supports.


def correlation(y: Tensor) -> None:
    """The Cholesky factor of a correlation matrix for every datum."""
    with pyro.plate("data", len(y)):
        factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), scale_tril=factor), obs=y)


def correlation_density(z: Tensor, y: Tensor) -> Tensor:
    """Partial correlations tanh(z) are symmetric betas (Lewandowski et al., 2009)."""
    partial = z.tanh()
    beta = torch.tensor([2.5, 2.5, 2.0])  # concentration + (columns to the right) / 2
    log_norm = (2 * beta - 1) * math.log(2) + 2 * beta.lgamma() - (2 * beta).lgamma()
    prior = (beta * (1 - partial**2).log() - log_norm).sum(-1)  # the Jacobian is 1 - tanh^2
    a, b, c = partial.unbind(-1)
    d = (1 - b**2).sqrt()
    rows = [
        [torch.ones_like(a), 0 * a, 0 * a],
        [a, (1 - a**2).sqrt(), 0 * a],
        [b, c * d, d * (1 - c**2).sqrt()],
    ]
    factor = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    noise = torch.linalg.solve_triangular(
        factor, y.expand(*z.shape[:-1], 3).unsqueeze(-1), upper=False
    )
    return prior + normal(noise[..., 0], 0.0, 1.0).sum(-1) - factor.logdet()


# Modules.


class Tutorial(nn.Module):
    """Model and guide as methods of a plain module, registered by hand in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.z_dim = 2
        self.decoder, self.encoder = nn.Linear(2, 4), nn.Linear(4, 4)

    def model(self, x: Tensor) -> None:
        """Binary pictures."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], self.z_dim)))
            z_scale = x.new_ones(torch.Size((x.shape[0], self.z_dim)))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            probs = self.decoder.to(z.dtype)(z).sigmoid()
            pyro.sample("obs", dist.Bernoulli(probs).to_event(1), obs=x.reshape(-1, 4))

    def guide(self, x: Tensor) -> None:
        """An encoder."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder.to(x.dtype)(x.reshape(-1, 4)).chunk(2, dim=-1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))

    def density(self, z: Tensor, x: Tensor) -> Tensor:
        """Two normals, and four coins of which these fell on these sides."""
        logits = self.decoder.to(z.dtype)(z)
        sign = 2 * x.reshape(len(x), 4) - 1
        return normal(z, 0.0, 1.0).sum(-1) + nn.functional.logsigmoid(sign * logits).sum(-1)


TUTORIAL = Tutorial()


class Pictures(PyroModule):
    """A convolutional decoder that reshapes, as plain ones do: it takes one leading dimension."""

    def __init__(self) -> None:
        super().__init__()
        convolution: Any = PyroModule[nn.ConvTranspose2d]
        self.convolution = convolution(1, 1, 2)

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of 3 x 3."""
        return self.convolution.to(z.dtype)(z.view(-1, 1, 2, 2))

    def forward(self, y: Tensor) -> None:
        """The program."""
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(self.decode(z), 0.5).to_event(3), obs=y)

    def density(self, z: Tensor, y: Tensor) -> Tensor:
        """The convolution as a sum over the places where a patch may stand."""
        weight, bias = self.convolution.weight[0, 0], self.convolution.bias
        patches = z.reshape(*z.shape[:-1], 2, 2, 1, 1) * weight
        loc = z.new_zeros(*z.shape[:-1], 3, 3) + bias
        for i, j in itertools.product(range(2), range(2)):
            loc[..., i : i + 2, j : j + 2] += patches[..., i, j, :, :]
        return normal(z, 0.0, 1.0).sum(-1) + normal(y[:, 0], loc, 0.5).sum((-1, -2))


PICTURES = Pictures()


# Discrete latent sites, summed out.

WEIGHTS, CENTRES = (0.2, 0.3, 0.5), (-2.0, 0.0, 3.0)


def clusters(y: Tensor) -> None:
    """A label on which both the continuous latent and the data depend."""
    with pyro.plate("data", len(y)):
        label = pyro.sample("label", dist.Categorical(y.new_tensor(WEIGHTS)))
        centre = y.new_tensor(CENTRES)[label]
        z = pyro.sample("z", dist.Normal(centre, 1.0))
        pyro.sample("y", dist.Normal(z + 0.1 * centre, 0.5), obs=y)


def clusters_density(z: Tensor, y: Tensor) -> Tensor:
    """A sum over three labels."""
    terms = [
        math.log(weight) + normal(z[..., 0], centre, 1.0) + normal(y, z[..., 0] + 0.1 * centre, 0.5)
        for weight, centre in zip(WEIGHTS, CENTRES, strict=True)
    ]
    return torch.stack(terms).logsumexp(0)


STAY = ((0.9, 0.1), (0.3, 0.7))


def switches(y: Tensor) -> None:
    """A hidden Markov chain inside a datum, whose levels a continuous latent shifts."""
    stay = y.new_tensor(STAY)
    with pyro.plate("data", len(y)):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        state: Any = 0
        for time in pyro.markov(range(3)):
            state = pyro.sample(f"state_{time}", dist.Categorical(Vindex(stay)[state]))
            pyro.sample(f"y_{time}", dist.Normal(shift + 2.0 * state, 0.5), obs=y[:, time])


def switches_density(z: Tensor, y: Tensor) -> Tensor:
    """A sum over eight paths."""
    shift = z[..., 0]
    terms = []
    for path in itertools.product(range(2), repeat=3):
        before = (0, *path[:-1])
        log_path = sum(math.log(STAY[a][b]) for a, b in zip(before, path, strict=True))
        noise = [normal(y[:, t], shift + 2.0 * state, 0.5) for t, state in enumerate(path)]
        terms.append(log_path + torch.stack(noise).sum(0))
    return normal(shift, 0.0, 1.0) + torch.stack(terms).logsumexp(0)


TOPICS = ((0.7, 0.2, 0.1), (0.1, 0.1, 0.8))


def words(y: Tensor) -> None:
    """A topic for every word of a document, and a mixture of topics for every document."""
    topics = torch.tensor(TOPICS)
    with pyro.plate("documents", len(y), dim=-2):
        share = pyro.sample("share", dist.Beta(2.0, 2.0))  # (batch, 1)
        with pyro.plate("words", 4, dim=-1):
            topic = pyro.sample("topic", dist.Bernoulli(share))
            pyro.sample("word", dist.Categorical(topics[topic.long()]), obs=y)


def words_density(z: Tensor, y: Tensor) -> Tensor:
    """A sum over two topics for each word; the prior over the logit of the share."""
    share = z.sigmoid()  # (..., 1)
    topics = torch.tensor(TOPICS)
    word = share * topics[1][y] + (1 - share) * topics[0][y]
    prior = math.log(6) + 2 * (share * (1 - share)).log()[..., 0]  # one of the two: the Jacobian
    return prior + word.log().sum(-1)


def loops(y: Tensor) -> None:
    """A plate inside a datum that is a loop."""
    with pyro.plate("data", len(y)):
        for i in pyro.plate("features", 3):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"y_{i}", dist.Normal(z, 0.5), obs=y[:, int(i)])


def loops_density(z: Tensor, y: Tensor) -> Tensor:
    """A sum over features."""
    return (normal(z, 0.0, 1.0) + normal(y, z, 0.5)).sum(-1)


def documents() -> Batch:
    """Four words of three."""
    return (torch.randint(0, 3, (NUM_DATA, 4)),)


IDIOMS = {
    "subsamples": Case(subsamples, numbers, 1, scalar_density),
    "indexes": Case(indexes, numbers, 1, scalar_density),
    "correlation": Case(correlation, vectors(3), 3, correlation_density),
    "tutorial": Case(
        TUTORIAL.model, lambda: (torch.rand(NUM_DATA, 1, 4).round(),), 2, TUTORIAL.density
    ),
    "pictures": Case(PICTURES, lambda: (torch.randn(NUM_DATA, 1, 3, 3),), 4, PICTURES.density),
    "clusters": Case(clusters, numbers, 1, clusters_density),
    "switches": Case(switches, vectors(3), 1, switches_density),
    "words": Case(words, documents, 1, words_density),
    "loops": Case(loops, vectors(3), 3, loops_density),
}
