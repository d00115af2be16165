"""Latents that a mask switches off, and guides of them: no density, or refused by the site.

The model of one latent is z ~ N(0, 1), y ~ N(z, 1), with the posterior N(y / 2, sqrt 1/2).
"""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyro_vae as pv
from pyro_vae.guides import ProgramPosterior
from pyro_vae.guides.draws import draw
from pyro_vae.programs import Program
from tests.helpers.remedies import SD, Y
from tests.helpers.remedies import exact as plain
from tests.helpers.remedies import location as model

STEPS, NOISE = 3, 0.6
MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
SERIES = torch.randn(4, STEPS, generator=torch.Generator().manual_seed(3))


def walk(y: Tensor, mask: Tensor) -> None:
    """A state-space model with the masks of a mini-batch, by the distributions."""
    with pyro.plate("data", len(y)):
        z = torch.zeros(len(y), 1)
        for t in range(STEPS):
            on = mask[:, t : t + 1]
            z = pyro.sample(f"z{t}", dist.Normal(0.8 * z, 1.0).mask(on).to_event(1))
            pyro.sample(f"y{t}", dist.Normal(z, NOISE).mask(on).to_event(1), obs=y[:, t : t + 1])


def walk_by_handler(y: Tensor, mask: Tensor) -> None:
    """The same by `poutine.mask`."""
    with pyro.plate("data", len(y)):
        z = torch.zeros(len(y))
        for t in range(STEPS):
            with poutine.mask(mask=mask[:, t].bool()):  # type: ignore[call-overload]
                z = pyro.sample(f"z{t}", dist.Normal(0.8 * z, 1.0))
                pyro.sample(f"y{t}", dist.Normal(z, NOISE), obs=y[:, t])


def reading(y: Tensor, mask: Tensor) -> None:
    """A guide that masks as :func:`walk` does."""
    with pyro.plate("data", len(y)):
        for t in range(STEPS):
            step = dist.Normal(0.5 * y[:, t : t + 1], 0.7).mask(mask[:, t : t + 1])
            pyro.sample(f"z{t}", step.to_event(1))


def reading_by_handler(y: Tensor, mask: Tensor) -> None:
    """The same by `poutine.mask`."""
    with pyro.plate("data", len(y)):
        for t in range(STEPS):
            with poutine.mask(mask=mask[:, t].bool()):  # type: ignore[call-overload]
                pyro.sample(f"z{t}", dist.Normal(0.5 * y[:, t], 0.7))


def by_length(z: Tensor) -> Tensor:
    """Log weights of draws `(particles, 4, 3)`: every series with its own steps."""
    before = torch.cat([torch.zeros_like(z[..., :1]), z[..., :-1]], -1)
    normal = torch.distributions.Normal
    terms = normal(0.8 * before, 1.0).log_prob(z) + normal(z, NOISE).log_prob(SERIES)
    return ((terms - normal(0.5 * SERIES, 0.7).log_prob(z)) * MASK).sum(-1)


def exact_by_length() -> Tensor:
    """Log p of every series up to its own length."""
    found = []
    for series, length in zip(SERIES.double(), MASK.sum(-1).long(), strict=True):
        late = torch.arange(int(length))
        factors = (0.8 ** (late[:, None] - late).double()).tril()
        covariance = factors @ factors.T + NOISE**2 * torch.eye(int(length)).double()
        normal = torch.distributions.MultivariateNormal(torch.zeros(len(late)).double(), covariance)
        found.append(normal.log_prob(series[: len(late)]))
    return torch.stack(found)


@pytest.mark.parametrize(
    ("model", "guide"),
    [(walk, reading), (walk_by_handler, reading_by_handler)],
    ids=["distribution", "handler"],
)
def test_masked_latents_have_no_density(
    model: Callable[..., Any], guide: Callable[..., Any]
) -> None:
    """Where guide and model mask a latent alike, a weight is that of the series' own steps."""
    program = Program(model, SERIES, MASK)
    z, log_q = ProgramPosterior(program, guide, (SERIES, MASK)).draw(6)
    weights = program.log_joint(z, SERIES, MASK) - log_q
    torch.testing.assert_close(weights, by_length(z))
    draws = draw(guide, program, (SERIES, MASK), 6)  # the same for objectives
    weights = program.log_joint(draws.z, SERIES, MASK) - draws.log_guide
    torch.testing.assert_close(weights, by_length(draws.z))
    whole = program.log_joint(z, SERIES, MASK)  # the wrong twin: masks that are not seen
    assert ((whole - by_length(z)).abs() > 0.01).any()


def test_masked_latents_under_any_guide() -> None:
    """Without a mask in the guide whole densities stand on both sides: log p is the same."""
    net = torch.nn.Linear(2 * STEPS, 2 * STEPS)

    class Reader(torch.nn.Module):
        def forward(self, y: Tensor, mask: Tensor) -> Tensor:
            return 0.1 * net(torch.cat([y, mask], -1))

    guide = pv.Guide(walk, pv.Encoder(Reader()), example=(SERIES, MASK))
    pv.fit(walk, guide, (SERIES, MASK), num_epochs=2, progress=False)
    found = pv.log_marginal_likelihood(walk, guide, (SERIES, MASK), pv.ClosedForm())
    torch.testing.assert_close(found.value, exact_by_length(), rtol=0, atol=1e-4)
    value, error = pv.elbo(walk, guide, (SERIES, MASK), 1000).elbo
    assert (value < exact_by_length() + 6 * error).all()


def test_what_depends_on_a_masked_latent_is_refused() -> None:
    """By the names of both; the remedy gives log N(y; 0, sqrt 2)."""

    def hidden(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            with poutine.mask(mask=y > 0):  # type: ignore[call-overload]
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    for ask in (pv.elbo, pv.log_marginal_likelihood):
        with pytest.raises(ValueError, match=r"latent site 'z' .*site 'y' depends .*unmasked"):
            ask(hidden, plain, Y)
    exact = torch.distributions.Normal(0.0, 2**0.5).log_prob(Y).double()
    torch.testing.assert_close(pv.elbo(model, plain, Y, 20).elbo.value, exact, rtol=0, atol=1e-5)


def test_a_latent_of_what_was_not_seen() -> None:
    """`obs_mask=`: log p(y) of the entries that were seen."""
    seen = Y > 0.5

    def partly(y: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y, obs_mask=seen)  # type: ignore[arg-type]

    def guide(y: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(y)):
            mean, spread = torch.where(seen, y / 2, 0.0), torch.where(seen, SD, 1.0)
            z = pyro.sample("z", dist.Normal(mean, spread))
            pyro.sample("y_unobserved", dist.Normal(z, 1.0))

    exact = torch.distributions.Normal(0.0, 2**0.5).log_prob(Y).double() * seen
    value = pv.elbo(partly, guide, (Y, seen), 20).elbo.value
    torch.testing.assert_close(value, exact, rtol=0, atol=1e-5)
