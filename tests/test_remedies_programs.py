"""What refusals of programs and of what they are asked say to write runs, and is right.

As in `test_remedies_guides`: the words of a refusal, the call that is refused, and the call that
it says to make; log p(y) is known.
"""

from collections.abc import Callable
from itertools import count
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.programs import Program, simulate
from pyro_vae.programs.simulation import feature_distribution
from tests.helpers.remedies import LOG_P, SD, Remedy, Y, column, evidence, exact, follow, hierarchy
from tests.helpers.remedies import location as model


def joint(z: Tensor, data: Tensor = Y) -> None:
    """Asserts that log p(y, z) is that of the program."""
    found = pv.log_joint(model, z, data)
    expected = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(data[:, None])
    torch.testing.assert_close(found, expected[..., 0])


def holes(features: Callable[[Tensor], Any]) -> Any:
    """A model with missing entries."""

    def program(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", features(z.unsqueeze(-1)), obs=y)

    return program


def of_column(y: Tensor) -> None:
    """The posterior given a column."""
    exact(y[:, 0])


def mixing(y: Tensor) -> None:
    """The rows of a batch are centred on their mean."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z + y.mean(), 1.0), obs=y)


def branching(y: Tensor) -> None:
    """A further site if there is a large datum."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        if bool((y < -3).any()):
            pyro.sample("extra", dist.Normal(0.0, 1.0))


def always(y: Tensor) -> None:
    """It is always there, and what it says of the data is masked."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        extra = pyro.sample("extra", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=False):
            pyro.sample("more", dist.Normal(extra, 1.0), obs=y)


def with_extra(y: Tensor) -> None:
    """The posterior, with the site of which the data say nothing."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y / 2, SD))
        pyro.sample("extra", dist.Normal(torch.zeros(len(y)), 1.0))


def spare(event_dim: int) -> Any:
    """A model with four latents more than it needs, whose axis is declared as an event or not."""

    def program(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(event_dim))
            pyro.sample("y", dist.Normal(z[..., 0], 1.0), obs=y)

    return program


def endless(y: Tensor) -> None:
    """Steps without an end."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for step in count():
            pyro.sample(f"y_{step}", dist.Normal(z, 1.0), obs=y)


def two_steps(y: Tensor) -> None:
    """Two steps, the second of which no datum has."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for step in range(2):
            with poutine.mask(mask=step == 0):
                pyro.sample(f"y_{step}", dist.Normal(z, 1.0), obs=y)


def decoder(scale: Callable[[Tensor], Tensor]) -> Any:
    """A model whose decoder gives a scale."""

    def program(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, scale(0 * z + 0.541324854612918)), obs=y)

    return program


def in_a_tuple(pair: tuple[Tensor, Tensor]) -> None:
    """Takes a covariate and the data in one argument."""
    model(pair[1])


def improper(prior: Any) -> Any:
    """A model with this prior."""

    def program(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", prior)
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    return program


def tossing(kind: Any) -> Any:
    """A model with a coin of this kind, of which the data say nothing."""

    def program(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("coin", kind(torch.tensor(0.6), probs=torch.full((len(y),), 0.4)))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    return program


def tossing_guide(y: Tensor) -> None:
    """The posterior, with the coin."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y / 2, SD))
        probs = torch.full((len(y),), 0.4)
        pyro.sample("coin", dist.RelaxedBernoulli(torch.tensor(0.6), probs=probs))


def jittered(noise: Callable[[], Tensor]) -> Any:
    """A model with a random factor whose mean is 1."""

    def program(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)
            pyro.factor("weight", (2 * noise() + 0 * y).log())

    return program


def jittered_guide(y: Tensor) -> None:
    """The posterior, with the noise."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y / 2, SD))
        pyro.sample("noise", dist.Uniform(torch.zeros(len(y)), 1.0))


def by_batch(y: Tensor) -> None:
    """A later site reads the batch, not what was sampled."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[:, 0])
        pyro.sample("next", dist.Normal(y[:, 0], 1.0), obs=y[:, 1])


def by_sample(y: Tensor) -> None:
    """It reads what was sampled."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        first = pyro.sample("y", dist.Normal(z, 1.0), obs=y[:, 0])
        pyro.sample("next", dist.Normal(first, 1.0), obs=y[:, 1])


def computed(y: Tensor) -> None:
    """It observes something computed from the data."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y.exp().log())


def correlated(y: Tensor) -> None:
    """Features that depend on each other."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.MultivariateNormal(z[:, None], torch.eye(1)), obs=y)


def shared(**given: Tensor) -> None:
    """Asserts that log p(y, z | loc) is that of the program."""
    program, z = Program(hierarchy, Y), torch.zeros(1, 4, 1)
    found = (program.given(given) if given else program).log_joint(z, Y)
    expected = dist.Normal(given["loc"], 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(Y[:, None])
    torch.testing.assert_close(found, expected[..., 0])


def simulated(program: Any, data: Tensor = Y) -> None:
    """Asserts that data simulated row by row have the density of the program."""
    z, (made,) = simulate(Program(program, data), (data,), seed=0)
    assert made.shape == data.shape
    assert z.shape == (4, 1)
    assert not torch.equal(made, data)


def features(program: Any) -> None:
    """Asserts that single features have the model's density."""
    q = feature_distribution(Program(program, Y[:, None]), torch.zeros(1, 4, 1), (Y[:, None],))
    torch.testing.assert_close(q.log_prob(Y[:, None]), dist.Normal(0.0, 1.0).log_prob(Y[:, None]))


REMEDIES = {
    "missing entries of events": Remedy(
        r"write PartlyObserved\(features\).to_event\(...\)",
        lambda: evidence(
            holes(lambda loc: pv.PartlyObserved(dist.Normal(loc, 1.0).to_event(1))),
            of_column,
            data=Y[:, None],
        ),
        lambda: evidence(
            holes(lambda loc: pv.PartlyObserved(dist.Normal(loc, 1.0)).to_event(1)),
            of_column,
            data=Y[:, None],
        ),
    ),
    "an axis that is no event": Remedy(
        r"site 'z' must have the size of plate 'data' in dimension -1, .* as in \.to_event\(1\)",
        lambda: pv.Guide(spare(0), pv.GlobalParameters(), example=Y),
        lambda: evidence(
            spare(1), pv.Guide(spare(1), pv.GlobalParameters(), example=Y), pv.Tightest()
        ),
    ),
    "rows that mix": Remedy(
        "let no operation sum, normalize or attend over the first axis",
        lambda: evidence(mixing, exact),
        lambda: evidence(model, exact),
    ),
    "a site of some data": Remedy(
        r"sample every site for every datum and every draw, and mask observations",
        lambda: evidence(branching, exact),
        lambda: evidence(always, with_extra),
    ),
    "random densities": Remedy(
        r"in one call, but .* draw these numbers with pyro\.sample inside the plate",
        lambda: evidence(jittered(lambda: torch.rand(())), exact),
        lambda: evidence(
            jittered(lambda: pyro.sample("noise", dist.Uniform(0.0, 1.0))), jittered_guide
        ),
    ),
    "rounded draws": Remedy(
        r"must not be RelaxedBernoulliStraightThrough, .* use RelaxedBernoulli",
        lambda: evidence(tossing(dist.RelaxedBernoulliStraightThrough), tossing_guide),
        lambda: evidence(tossing(dist.RelaxedBernoulli), tossing_guide),
    ),
    "a tuple of tensors": Remedy(
        r"must take one argument for each of the 2 tensors .*lambda x, y: model\(\(x, y\)\)",
        lambda: evidence(in_a_tuple, lambda x, y: exact(y), data=(Y, Y)),
        lambda: evidence(lambda x, y: in_a_tuple((x, y)), lambda x, y: exact(y), data=(Y, Y)),
    ),
    "a prior without draws": Remedy(
        r"'z' must have a proper prior; .* such as dist.Normal\(0.0, 10.0\)",
        lambda: evidence(improper(dist.ImproperUniform(dist.constraints.real, (), ())), exact),
        lambda: evidence(improper(dist.Normal(0.0, 1.0)), exact),
    ),
    "a negative scale": Remedy(
        "use softplus for positive numbers",
        lambda: pv.log_joint(decoder(lambda out: out - 1), torch.zeros(1, 4, 1), Y),
        lambda: evidence(decoder(nn.functional.softplus), exact),
    ),
    "latents of z": Remedy(
        r"the last axis of z must have size 1",
        lambda: joint(torch.zeros(1, 4, 2)),
        lambda: joint(torch.zeros(1, 4, 1)),
    ),
    "data of z": Remedy(
        r"z must have shape \(particles, data, latents\), .* z for 3 data",
        lambda: joint(torch.zeros(1, 3, 1)),
        lambda: joint(torch.zeros(2, 4, 1)),
    ),
    "shared values": Remedy(
        r"pass `given=guide.global_values\(\)`",
        shared,
        lambda: shared(loc=torch.tensor(0.5)),
    ),
    "data read from the batch": Remedy(
        "let this site use the values that pyro.sample returns",
        lambda: simulated(by_batch, torch.stack([Y, Y], -1)),
        lambda: simulated(by_sample, torch.stack([Y, Y], -1)),
    ),
    "computed data": Remedy(
        "pass it to the model as data",
        lambda: simulated(computed),
        lambda: simulated(model),
    ),
    "features that depend": Remedy(
        "that are independent given z",
        lambda: features(correlated),
        lambda: features(column),
    ),
}


@pytest.mark.parametrize("name", REMEDIES)
@pytest.mark.filterwarnings("ignore")
def test_what_a_refusal_says_to_write_is_right(name: str) -> None:
    """The call is refused in these words; the other one gives log p(y) within its error."""
    follow(REMEDIES[name])


def test_remedy_of_a_loop_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """After many sites, here fewer; a fixed number of masked steps is right."""
    monkeypatch.setattr("pyro_vae.programs.structure._SITES", 20)
    follow(
        Remedy(
            "mask the observations of steps that a datum does not have",
            lambda: evidence(endless, exact),
            lambda: evidence(two_steps, exact),
        )
    )


@pytest.mark.filterwarnings("ignore")
def test_a_wrong_remedy_is_caught() -> None:
    """The wrong twin: a remedy that changes the program by a term fails, and so does no refusal."""
    halved = Remedy(*REMEDIES["rows that mix"])._replace(
        followed=lambda: evidence(decoder(lambda out: out + 2), exact)
    )
    with pytest.raises(AssertionError, match="log p is off"):
        follow(halved)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        follow(halved._replace(refused=lambda: LOG_P))
