"""What a refusal says to write runs, and gives the right number.

The program is that of `helpers.remedies`, of which everything is known.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn

import pyro_vae as pv
from tests.helpers.remedies import LOG_P, SD, Y, exact, hierarchy, location

Model = Callable[[Tensor], Any]


class Remedy(NamedTuple):
    """A program and a guide that are refused, the words, and what they say to write."""

    model: Model
    guide: Model
    words: str
    right_model: Model
    right_guide: Model


def of_model(model: Model, words: str, right: Model = location) -> Remedy:
    """A refused model."""
    return Remedy(model, exact, words, right, exact)


def of_guide(guide: Model, words: str, right: Model = exact) -> Remedy:
    """A refused guide."""
    return Remedy(location, guide, words, location, right)


# Models.


def two_plates(y: Tensor) -> None:
    """A plate for each site."""
    with pyro.plate("latents", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def outside(y: Tensor) -> None:
    """The latents of all rows in one site."""
    z = pyro.sample("z", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def unobserved(y: Tensor) -> None:
    """The data are not passed on."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0))


def undeclared(y: Tensor) -> None:
    """An axis that is no event."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(y), 1), 1.0))
        pyro.sample("y", dist.Normal(z[..., 0], 1.0), obs=y)


def declared(y: Tensor) -> None:
    """An event."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(y), 1), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z[..., 0], 1.0), obs=y)


def as_event(y: Tensor) -> None:
    """The posterior of an event."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y.unsqueeze(-1) / 2, SD).to_event(1))


def steps(y: Tensor) -> None:
    """As many steps as rows."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        for step in range(len(y)):
            pyro.sample(f"step_{step}", dist.Normal(0.0, 1.0), obs=torch.ones(len(y)))


def masked_steps(y: Tensor) -> None:
    """A fixed number of them, masked."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        with poutine.mask(mask=False):
            for step in range(3):
                pyro.sample(f"step_{step}", dist.Normal(0.0, 1.0), obs=torch.ones(len(y)))


def masked_inside(y: Tensor) -> None:
    """A mask inside a transformation."""
    mask = torch.ones(len(y)) > 0
    with pyro.plate("data", len(y)):
        base = dist.Normal(torch.zeros(len(y)), 0.5).mask(mask)
        affine = dist.transforms.AffineTransform(0.0, 2.0)
        z = pyro.sample("z", dist.TransformedDistribution(base, [affine]))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def masked_whole(y: Tensor) -> None:
    """A mask around it."""
    mask = torch.ones(len(y)) > 0
    with pyro.plate("data", len(y)):
        base = dist.Normal(torch.zeros(len(y)), 0.5)
        affine = dist.transforms.AffineTransform(0.0, 2.0)
        z = pyro.sample("z", dist.TransformedDistribution(base, [affine]).mask(mask))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def infinite(y: Tensor) -> None:
    """A count without end."""
    with pyro.plate("data", len(y)):
        pyro.sample("count", dist.Poisson(1.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def finite(y: Tensor) -> None:
    """A count with one."""
    with pyro.plate("data", len(y)):
        pyro.sample("count", dist.Categorical(logits=torch.zeros(4)))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def shared(y: Tensor) -> None:
    """A discrete site of all data."""
    kind = pyro.sample("kind", dist.Bernoulli(0.5))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(3 * kind, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def bounds(y: Tensor) -> None:
    """A support that differs between data."""
    with pyro.plate("data", len(y)):
        pyro.sample("share", dist.Uniform(0.0, 1.0 + torch.arange(len(y))))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def rescaled(y: Tensor) -> None:
    """The same support for all of them."""
    with pyro.plate("data", len(y)):
        pyro.sample("share", dist.Uniform(0.0, 1.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def with_share(y: Tensor) -> None:
    """The posterior, with a share of which the data say nothing."""
    with pyro.plate("data", len(y)):
        pyro.sample("share", dist.Uniform(torch.zeros(len(y)), 1.0))
        pyro.sample("z", dist.Normal(y / 2, SD))


def half(y: Tensor) -> None:
    """An inner plate that subsamples."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("views", 2, subsample_size=1, dim=-2) as views:
            both = (torch.stack([y, y]) - z)[views]
            pyro.sample("y", dist.Normal(torch.zeros(1, 1), 2**0.5), obs=both)


def whole(y: Tensor) -> None:
    """Two views of the same datum, each with twice the variance; up to a constant."""
    constant = 0.5 * torch.tensor(torch.pi * 2).log() + torch.tensor(2.0).log()
    with pyro.plate("data", len(y)):
        pyro.factor("constant", constant.expand(len(y)))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("views", 2, dim=-2):
            both = torch.stack([y, y]) - z
            pyro.sample("y", dist.Normal(torch.zeros(2, 1), 2**0.5), obs=both)


# Guides.


def nothing(y: Tensor) -> None:
    """No site."""


def observing(y: Tensor) -> None:
    """Its latent is observed."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y / 2, SD), obs=y / 2)


def one_more(y: Tensor, infer: Any = None) -> None:
    """A site that the model lacks."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y / 2, SD))
        pyro.sample("noise", dist.Normal(0.0, 1.0), infer=infer)


def marked(y: Tensor) -> None:
    """The same, marked."""
    one_more(y, {"is_auxiliary": True})


def point(y: Tensor) -> None:
    """A point."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Delta(y / 2))


def no_plate(y: Tensor) -> None:
    """All rows as one event."""
    pyro.sample("z", dist.Normal(y / 2, SD).to_event(1))


def encoder(size: int, **attributes: int) -> Any:
    """A guide with a net of so many outputs."""
    net = nn.Sequential(nn.Unflatten(-1, (-1, 1)), nn.Linear(1, size))
    for name, value in attributes.items():
        setattr(net, name, value)
    return pv.Guide(location, pv.Encoder(net), example=Y)


REMEDIES = {
    "two plates": of_model(
        two_plates, r"open `with pyro.plate\('data', len\(y\)\):` around the sites"
    ),
    "outside the plate": of_model(outside, "move this site into the plate"),
    "unobserved": of_model(unobserved, "pass the data as `obs`"),
    "undeclared": Remedy(undeclared, as_event, r"\.to_event", declared, as_event),
    "sites that differ": of_model(steps, "fixed number of steps", masked_steps),
    "masked inside": of_model(masked_inside, "mask the whole distribution", masked_whole),
    "infinite": of_model(infinite, "a distribution with a finite support", finite),
    "shared discrete": of_model(
        shared, "pyro.condition", pyro.condition(shared, {"kind": torch.tensor(0.0)})
    ),
    "bounds": Remedy(bounds, with_share, r"Uniform\(0, 1\)", rescaled, with_share),
    "inner subsample": of_model(half, "remove the subsample_size of this plate", whole),
    "missing": of_guide(nothing, r"add pyro.sample\('z', ...\)"),
    "observed in the guide": of_guide(observing, "without `obs`"),
    "one more": of_guide(one_more, "is_auxiliary", marked),
    "point": of_guide(point, r"Normal\(value, 0.1\)"),
    "no plate": of_guide(no_plate, r"inside pyro.plate\('data', len\(y\)\)"),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_what_a_refusal_says_to_write_is_exact(name: str) -> None:
    """The program is refused by what is wrong with it; written as it says, it has no error."""
    remedy = REMEDIES[name]
    with pytest.raises((ValueError, TypeError), match=remedy.words):
        pv.elbo(remedy.model, remedy.guide, Y, 5)
    value = pv.elbo(remedy.right_model, remedy.right_guide, Y, 5).elbo.value
    torch.testing.assert_close(value, LOG_P, rtol=0, atol=1e-5)


def test_remedies_for_an_encoder() -> None:
    """Its outputs may be as many as said, or features of a layer that is put on top."""
    with pytest.raises(ValueError, match=r"change the last layer to 2 outputs, or .* num_features"):
        pv.elbo(location, encoder(5), Y, 5)
    for guide in (encoder(2), encoder(5, num_features=5)):
        found = pv.elbo(location, guide, Y, 200)
        assert bool((found.value <= LOG_P + 5 * found.error).all())


def kinds(y: Tensor) -> None:
    """A mixture: the latents of a datum are discrete."""
    with pyro.plate("data", len(y)):
        kind = pyro.sample("kind", dist.Bernoulli(0.25))
        pyro.sample("y", dist.Normal(3 * kind, 1.0), obs=y)


@pytest.mark.parametrize("map", [pv.GlobalParameters, lambda: pv.Encoder(nn.Linear(1, 5))])
def test_remedies_of_discrete_latents(map: Any) -> None:
    """No gap and no draws, says the refusal, but log p(y), exactly; and no net is called."""
    guide = pv.Guide(kinds, map(), example=Y)
    for ask in (pv.inference_gap, pv.to_inference_data):
        with pytest.raises(ValueError, match=r"pv.log_marginal_likelihood\(model, guide, data\)"):
            ask(kinds, guide, Y)
    parts = torch.tensor([0.75, 0.25]).log() + dist.Normal(torch.tensor([0.0, 3.0]), 1.0).log_prob(
        Y[:, None]
    )
    found = pv.log_marginal_likelihood(kinds, guide, Y)
    torch.testing.assert_close(found.value, parts.logsumexp(-1).double(), rtol=0, atol=1e-5)
    assert guide.mean(Y).shape == guide.sample(Y)[0].shape == (4, 0)


def test_remedies_of_global_sites_and_examples() -> None:
    """Values of the sites that data share, and rows to run the program on."""
    z = torch.zeros(1, 4, 1)
    with pytest.raises(ValueError, match=r"pass `given=guide.global_values\(\)`"):
        pv.log_joint(hierarchy, z, Y)
    with pytest.raises(ValueError, match=r"pv.Guide\(model, map, example=y\[:2\]\)"):
        pv.Guide(hierarchy, pv.GlobalParameters())
    guide = pv.Guide(hierarchy, pv.GlobalParameters(), example=Y[:2])
    loc = guide.global_values()["loc"]
    expected = dist.Normal(loc, 1.0).log_prob(z[0, :, 0]) + dist.Normal(0.0, 1.0).log_prob(Y)
    found = pv.log_joint(hierarchy, z, Y, given=guide.global_values())
    torch.testing.assert_close(found[0], expected.detach())


def two_kinds(y: Tensor) -> None:
    """A mixture with a latent, of a net that does not broadcast."""
    with pyro.plate("data", len(y)):
        kind = pyro.sample("kind", dist.OneHotCategorical(torch.ones(2) / 2))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        both = torch.cat([z.unsqueeze(-1), kind], -1)
        pyro.sample("y", dist.Normal(both[:, 0], 1.0), obs=y)


def test_remedy_of_enumeration_by_pyro() -> None:
    """TraceEnum_ELBO asks of the net that it broadcasts; BetaELBO(1.0) repeats its rows."""
    guide = pv.Guide(two_kinds, pv.ExactPosterior(), example=Y)
    with pytest.raises(ValueError, match=r"TraceEnum_ELBO needs .* use pv.BetaELBO\(1.0\)"):
        TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(two_kinds), guide, Y)
    loss = pv.BetaELBO(1.0).loss(two_kinds, guide, Y)
    assert loss == pytest.approx(-float(LOG_P.sum()), abs=1e-4)
