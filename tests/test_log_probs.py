"""Densities made in pieces are those of the distributions, to rounding and in every shape."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vae.programs.log_probs import log_prob_of

FEATURES: dict[str, Callable[[Tensor], Any]] = {
    "logits": lambda x: dist.Bernoulli(logits=x),
    "saturated logits": lambda x: dist.Bernoulli(logits=200 * x),
    "probabilities": lambda x: dist.Bernoulli(x.sigmoid()),
    "normal": lambda x: dist.Normal(x, 0.7),
    "normal by entry": lambda x: dist.Normal(x, x.exp()),
    "torch's own": lambda x: torch.distributions.Normal(x, 2.0),
}
SHAPES = {
    "a batch": ((7, 5), 1),
    "many pieces": ((600, 500), 1),  # of 200 rows
    "images": ((70, 40, 50), 2),
    "particles": ((4, 3, 2), 1),
    "one datum": ((5,), 1),
    "a prime number of features": ((3, 229), 1),
    "a row larger than a piece": ((2, 150_000), 1),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_the_same_density(
    features: Callable[[Tensor], Any], shape: tuple[tuple[int, ...], int], seed: int
) -> None:
    """The same as the distribution's own answer, also where data are shared by all rows."""
    torch.manual_seed(seed)
    sizes, event_dim = shape
    datum = dist.Independent(features(torch.randn(sizes)), event_dim)
    y = datum.sample()
    for value in (y, y[:1].expand_as(y) if len(sizes) > event_dim else y):
        expected = datum.log_prob(value)
        with torch.no_grad():
            torch.testing.assert_close(log_prob_of(datum, value), expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(log_prob_of(datum, value), expected)  # with gradients it is asked itself


def test_certain_pixels_cost_nothing() -> None:
    """Sums that cancel only at the end would be off by 1e-3 here, in float32."""
    logits = torch.full((3, 784), 60.0)
    logits[:, ::2] *= -1
    with torch.no_grad():
        value = log_prob_of(dist.Bernoulli(logits=logits).to_event(1), (logits > 0).float())
    assert torch.equal(value, torch.zeros(3))


def test_half_precision_does_not_overflow() -> None:
    """A float16 holds a product of 15 factors of 2, not of a hundred."""
    datum = dist.Bernoulli(logits=torch.zeros(2, 784, dtype=torch.float16)).to_event(1)
    with torch.no_grad():
        value = log_prob_of(datum, torch.ones(2, 784, dtype=torch.float16))
    torch.testing.assert_close(value.float(), torch.full((2,), -543.43), rtol=1e-2, atol=0)


def test_data_outside_the_support_are_refused() -> None:
    """As the distribution would, with validation on; and not with it off."""
    y = torch.full((2, 3), 0.5)
    strict, lax = (
        dist.Bernoulli(logits=torch.zeros(2, 3), validate_args=on).to_event(1)
        for on in (True, False)
    )
    with torch.no_grad():
        with pytest.raises(ValueError, match="support"):
            log_prob_of(strict, y)
        torch.testing.assert_close(log_prob_of(lax, y), lax.log_prob(y))


def test_a_subclass_is_asked_itself() -> None:
    """It may mean another density, which nobody but itself knows."""

    class Tempered(dist.Normal):
        """A density to the power of one half."""

        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value) / 2

    class Halved(dist.Independent):
        """The same, of a whole datum."""

        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value) / 2

    loc, y = torch.zeros(2, 3), torch.ones(2, 3)
    plain = dist.Normal(loc, 1.0).to_event(1)
    for datum in (Tempered(loc, 1.0).to_event(1), Halved(dist.Normal(loc, 1.0), 1)):
        with torch.no_grad():
            assert torch.equal(log_prob_of(datum, y), datum.log_prob(y))
            torch.testing.assert_close(log_prob_of(datum, y), plain.log_prob(y) / 2)
