"""A program of which everything is known, for tests of what refusals say to write.

z ~ N(0, 1) and y ~ N(z, 1), so log p(y) = N(y; 0, sqrt 2), and under the exact posterior
N(y / 2, sqrt 1/2) the ELBO has no error: a remedy that changed the program by a term would show.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv

SD = 0.5**0.5
Y = torch.tensor([0.0, 1.0, 2.0, -4.0])
LOG_P = torch.distributions.Normal(0.0, 2**0.5).log_prob(Y).double()


def location(y: Tensor) -> None:
    """Z ~ N(0, 1), y ~ N(z, 1)."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def exact(y: Tensor) -> None:
    """The posterior."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y / 2, SD))


def of_all_rows(y: Tensor) -> None:
    """Parameters of all four rows."""
    loc = pyro.param("loc", lambda: Y / 2)
    with pyro.plate("data", 4):
        pyro.sample("z", dist.Normal(loc, SD))


class Holder(pyro.nn.PyroModule):
    """A guide with a table inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = pv.Guide(location, pv.LocalParameters(4), example=Y)

    def forward(self, y: Tensor) -> None:
        """The inner guide."""
        self.inner(y)


class Remedy(NamedTuple):
    """The words of a refusal, the call that is refused, and what it says to call."""

    words: str
    refused: Callable[[], Any]
    followed: Callable[[], Any]


def follow(remedy: Remedy) -> None:
    """Asserts that the call is refused in these words, and that the other one is right.

    It gives log p(y) of the four data, within five of its errors, which are below 0.2 nats; or
    nothing, if it asserts what it gave by itself.
    """
    pyro.clear_param_store()
    with pytest.raises((ValueError, TypeError, FloatingPointError), match=remedy.words):
        remedy.refused()
    pyro.clear_param_store()
    found = remedy.followed()
    pyro.clear_param_store()
    if found is None:
        return
    off = (found.value - LOG_P).abs()
    assert (off <= 5 * found.error + 1e-5).all(), f"log p is off by {off} ± {found.error}"
    assert (found.error < 0.2).all()


def equals(found: Tensor, expected: Tensor) -> None:
    """Asserts that a remedy gave these numbers."""
    torch.testing.assert_close(found.detach(), expected.detach())


def has_unit_mass(q: Any) -> None:
    """Asserts that a density of one datum in one or two dimensions integrates to one."""
    size = q.event_shape.numel()
    axis = torch.linspace(-12.0, 12.0, 481)
    points = torch.cartesian_prod(*[axis] * size).reshape(-1, 1, size)
    total = q.log_prob(points).logsumexp(0) + size * (axis[1] - axis[0]).log()
    torch.testing.assert_close(total, torch.zeros(1), rtol=0, atol=1e-3)


def evidence(program: Any, guide: Any, estimator: Any = None, data: Any = Y, **more: Any) -> Any:
    """Log p of the data."""
    estimator = estimator or pv.ImportanceSampling(2000)
    return pv.log_marginal_likelihood(program, guide, data, estimator, progress=False, **more)


def column(y: Tensor) -> None:
    """The same model, of a column."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=y)


def table(family: Any = None, rows: int = 4) -> Any:
    """A guide of free parameters."""
    return pv.Guide(location, pv.LocalParameters(rows), family or pv.DiagonalNormal(), example=Y)


def global_guide(program: Any, data: Any = Y) -> Any:
    """A guide that is the same for all data."""
    return pv.Guide(program, pv.GlobalParameters(), example=data)


def fit(program: Any, guide: Any, data: Any = Y, **more: Any) -> Any:
    """One epoch."""
    more = {"num_epochs": 1, "batch_size": 4, "progress": False} | more
    return pv.fit(program, guide, data, **more)


def trained(guide: Any) -> Any:
    """A guide after an epoch."""
    fit(location, guide)
    return guide


def hierarchy(y: Tensor) -> None:
    """A mean that all data share."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def positive(y: Tensor) -> None:
    """A positive latent that says nothing of y."""
    with pyro.plate("data", len(y)):
        pyro.sample("size", dist.HalfNormal(1.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)
