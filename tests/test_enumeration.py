"""Discrete latent sites in programs whose networks do not broadcast: rows are repeated for them.

Everything is conjugate, so that the exact answer is a sum of normal densities over the values of
the discrete sites, written down by hand.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.runtime import _ENUM_ALLOCATOR
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.programs import Program

Model = Callable[[Tensor], None]
WEIGHTS, LOCS = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([-2.0, 0.5, 3.0])
Y = torch.tensor([[-1.0], [0.3], [2.0], [4.0]])


def concatenated(y: Tensor) -> None:
    """The idiom of semi-supervised VAEs: y ~ N(z + loc[c], 1), z ~ N(0, 1), by concatenation."""
    table = torch.cat([torch.ones(1), LOCS])
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        c = pyro.sample("c", dist.OneHotCategorical(WEIGHTS))
        mean = torch.cat([z, c], -1) @ table[:, None]
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)


def broadcasting(y: Tensor) -> None:
    """The same, by a table that broadcasts."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        c = pyro.sample("c", dist.Categorical(WEIGHTS))
        pyro.sample("y", dist.Normal(z + LOCS[c][..., None], 1.0).to_event(1), obs=y)


def flattened(y: Tensor) -> None:
    """A program that would broadcast wrongly and in silence: it takes as many labels as rows."""
    with pyro.plate("data", len(y)):
        c = pyro.sample("c", dist.Categorical(WEIGHTS))
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        labels = c.reshape(-1)[torch.arange(len(y)) % c.numel()]
        mean = z + LOCS[labels][:, None]
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)


def in_a_plate(y: Tensor) -> None:
    """Two switches per datum in an inner plate, and a third one: y ~ N(z + sum, 1)."""
    data = pyro.plate("data", len(y), dim=-1)
    with data:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        last = pyro.sample("last", dist.Bernoulli(0.25))
    with data, pyro.plate("inner", 2, dim=-2):
        switches = pyro.sample("switches", dist.Bernoulli(0.5))
    with data:
        mean = torch.stack([z, last, *switches.reshape(2, len(y))], -1).sum(-1)
        pyro.sample("y", dist.Normal(mean[:, None], 1.0).to_event(1), obs=y)


def mixed(weights: Tensor, locs: Tensor, y: Tensor) -> Tensor:
    """Log density of a mixture of N(loc, 2), `(rows,)`."""
    parts: Tensor = dist.Normal(locs, 2**0.5).log_prob(y) + weights.log()
    return parts.logsumexp(dim=-1)


SUMS = torch.tensor([0.1875, 0.4375, 0.3125, 0.0625])  # of two fair coins and one of a quarter
CASES: dict[str, tuple[Model, bool, Tensor]] = {
    "concatenated": (concatenated, True, mixed(WEIGHTS, LOCS, Y)),
    "broadcasting": (broadcasting, False, mixed(WEIGHTS, LOCS, Y)),
    "flattened": (flattened, True, mixed(WEIGHTS, LOCS, Y)),
    "in a plate": (in_a_plate, True, mixed(SUMS, torch.arange(4.0), Y)),
}
each = pytest.mark.parametrize("name", CASES)


@each
def test_evidence(name: str) -> None:
    """Quadrature over the one continuous latent gives the mixture exactly."""
    model, by_rows, exact = CASES[name]
    program = Program(model, Y)
    assert (program.structure.combinations is not None) == by_rows
    guide = pv.Guide(model, pv.GlobalParameters(), example=Y)
    lml = pv.log_marginal_likelihood(model, guide, Y, pv.Quadrature())
    torch.testing.assert_close(lml.value, exact.double(), rtol=0, atol=1e-4)


@each
def test_density_and_gradient(name: str) -> None:
    """Log p(y, z) at points, and its slope in z, against the sum over values by hand."""
    model, _, _ = CASES[name]
    weights, locs = (WEIGHTS, LOCS) if name != "in a plate" else (SUMS, torch.arange(4.0))
    z = torch.randn(5, len(Y), 1, requires_grad=True)
    got = Program(model, Y).log_joint(z, Y)
    normal = dist.Normal(z + locs, 1.0).log_prob(Y) + weights.log()
    expected = dist.Normal(0.0, 1.0).log_prob(z)[..., 0] + normal.logsumexp(dim=-1)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    slopes = [torch.autograd.grad(part.sum(), z)[0] for part in (got, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-4)


def test_the_wrong_twin_is_caught() -> None:
    """Broadcast in silence, the flattened program takes the first value for all of them."""
    program = Program(flattened, Y)
    assert program.structure.combinations is not None
    wrong = Program(broadcasting, Y).log_joint(torch.zeros(1, 4, 1), Y)
    torch.testing.assert_close(program.log_joint(torch.zeros(1, 4, 1), Y), wrong)
    program.structure = replace(program.structure, combinations=None)
    assert not torch.allclose(program.log_joint(torch.zeros(1, 4, 1), Y), wrong, atol=0.1)


class Decoder(nn.Module):
    """The location of a VAE's pixels from a latent and a label, put side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            c = pyro.sample("c", dist.OneHotCategorical(WEIGHTS))
            mean = self.net(torch.cat([z, c], -1))
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)


@pytest.mark.parametrize("warmup", [0, 1])
def test_fit(warmup: int) -> None:
    """Training sums the labels out, and its ELBO is the one that is reported afterwards."""
    torch.manual_seed(0)
    model, y = Decoder(), torch.randn(64, 1)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(1, 2)), example=y)
    result = pv.fit(
        model,
        guide,
        y,
        num_epochs=3,
        batch_size=32,
        validation=y,
        progress=False,
        objective=pv.BetaELBO(pv.LinearWarmup(warmup)) if warmup else None,
    )
    bound = pv.elbo(model, guide, y, 200).mean
    shift = abs(result.history.validation_elbo[-1] - bound.value.item())
    assert shift < 5 * (result.history.validation_error[-1] + bound.error.item())
    lml = pv.log_marginal_likelihood(model, guide, y, pv.Quadrature())
    assert bound.value < lml.mean.value + 4 * bound.error


def test_fit_under_scale() -> None:
    """Training sums out discrete sites under poutine.scale; the history has no scale in it."""
    y = Y.repeat(1000, 1)
    guide = pv.Guide(broadcasting, pv.GlobalParameters(), example=Y)
    bound = pv.elbo(broadcasting, guide, y, 20).mean.value  # the sd of a datum's term is near 1.5
    half = poutine.scale(broadcasting, 0.5)
    step = pv.fit(half, guide, y, num_epochs=1, batch_size=len(y), progress=False)
    assert step.history.elbo[0] == pytest.approx(float(bound), abs=0.15)  # six errors


def test_enumerating_objectives_say_what_to_use() -> None:
    """Pyro's TraceEnum_ELBO cannot enumerate such a program; the remedy that is named runs."""
    model, y = Decoder(), torch.randn(8, 1)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(1, 2)), example=y)

    def train(objective: Any) -> Any:
        return pv.fit(model, guide, y, num_epochs=1, objective=objective, progress=False)

    with pytest.raises(ValueError, match=r"does not broadcast.*BetaELBO\(1.0\)"):
        train(pyro.infer.TraceEnum_ELBO(max_plate_nesting=1))
    assert math.isfinite(train(pv.objectives.BetaELBO(1.0)).history.elbo[-1])


# Programs with only discrete latent sites of a datum: their log p is a sum, exactly.


def mixture(y: Tensor) -> None:
    """A mixture with nothing else: y ~ N(loc[c], 1)."""
    with pyro.plate("data", len(y)):
        c = pyro.sample("c", dist.Categorical(WEIGHTS))
        pyro.sample("y", dist.Normal(LOCS[c], 1.0), obs=y)


def concatenated_mixture(y: Tensor) -> None:
    """The same in a form that does not broadcast."""
    with pyro.plate("data", len(y)):
        c = pyro.sample("c", dist.OneHotCategorical(WEIGHTS))
        mean = torch.cat([c, torch.zeros(len(y), 1)], -1)[:, :3] @ LOCS
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def global_mixture(y: Tensor) -> None:
    """The same about a location that all data share."""
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        c = pyro.sample("c", dist.Categorical(WEIGHTS))
        pyro.sample("y", dist.Normal(LOCS[c] + shift, 1.0), obs=y)


START, MOVES = torch.tensor([0.7, 0.3]), torch.tensor([[0.9, 0.1], [0.4, 0.6]])


def chain(y: Tensor) -> None:
    """A hidden Markov chain of so many steps."""
    with pyro.plate("data", len(y)):
        state: Any = None
        for step in pyro.markov(range(y.shape[1])):
            chances = START if state is None else MOVES[state]
            state = pyro.sample(f"state_{step}", dist.Categorical(chances))
            pyro.sample(f"y_{step}", dist.Normal(LOCS[state], 1.0), obs=y[:, step])


def forward_algorithm(y: Tensor) -> Tensor:
    """Log p of a chain, step by step, in float64."""
    emitted = dist.Normal(LOCS[:2].double(), 1.0).log_prob(y.double()[..., None])
    log_state = START.double().log() + emitted[:, 0]
    for step in range(1, y.shape[1]):
        moved = (log_state[:, :, None] + MOVES.double().log()).logsumexp(dim=1)
        log_state = moved + emitted[:, step]
    return log_state.logsumexp(dim=-1)


def nothing(*batch: Tensor) -> None:
    """The guide of a program that has nothing to guide."""


ROW = Y[:, 0]
PARTS = dist.Normal(LOCS.double(), 1.0).log_prob(Y.double()) + WEIGHTS.double().log()
SERIES = torch.linspace(-3, 3, 4 * 15).reshape(4, 15).roll(3, 1)  # more paths than can be rows
DISCRETE: dict[str, tuple[Model, Tensor, Tensor]] = {
    "mixture": (mixture, ROW, PARTS.logsumexp(-1)),
    "concatenated": (concatenated_mixture, ROW, PARTS.logsumexp(-1)),
    "chain": (chain, SERIES[:, :3], forward_algorithm(SERIES[:, :3])),
    "long chain": (chain, SERIES, forward_algorithm(SERIES)),
}


@pytest.mark.parametrize("guided", ["by hand", "by a map"])
@pytest.mark.parametrize("name", DISCRETE)
def test_only_discrete_sites(name: str, guided: str) -> None:
    """Evidence, bound and density are the sum over values, exactly; a gap is refused by name."""
    model, y, exact = DISCRETE[name]
    guide: Any = nothing
    if guided == "by a map":
        guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    lml = pv.log_marginal_likelihood(model, guide, y)
    assert lml.method == "enumeration"
    assert lml.reliable.all()
    torch.testing.assert_close(lml.value, exact, rtol=1e-5, atol=1e-5)
    assert bool(((lml.value - exact).abs() <= lml.error).all())
    bound = pv.elbo(model, guide, y)
    torch.testing.assert_close(bound.value, exact, rtol=1e-5, atol=1e-5)
    both = pv.evidence.evaluate(model, guide, y)
    assert torch.equal(both.bound.value, both.log_marginal.value)
    with pytest.raises(ValueError, match=r"are discrete and summed out.*log_marginal_likelihood"):
        pv.inference_gap(model, guide, y)
    with pytest.raises(ValueError, match="are discrete and summed out"):
        pv.to_inference_data(model, guide, y, num_samples=5)


@pytest.mark.parametrize("name", ["mixture", "concatenated"])
def test_only_discrete_sites_with_the_wrong_weights(name: str) -> None:
    """The wrong twin: other weights are seen."""
    model, y, _ = DISCRETE[name]
    wrong = (PARTS - WEIGHTS.double().log() + WEIGHTS.flip(0).double().log()).logsumexp(-1)
    lml = pv.log_marginal_likelihood(model, nothing, y)
    assert bool(((lml.value - wrong).abs() > 100 * lml.error).all())


@pytest.mark.parametrize(
    "family", [pv.DiagonalNormal(), pv.FullRankNormal(), pv.LowRankNormal()], ids=repr
)
def test_only_discrete_sites_of_new_rows(family: Any) -> None:
    """A table of parameters has empty rows; fitting them ended in a division by zero."""
    model, y, exact = DISCRETE["mixture"]
    guide = pv.Guide(model, pv.LocalParameters(len(y)), family, example=y)
    assert guide.mean(y).shape == (len(y), 0)
    fit = guide.fit_rows(y[:3]).row_fit
    assert fit is not None
    assert fit.reliable.all()
    torch.testing.assert_close(fit.value, exact[:3], rtol=1e-5, atol=1e-5)
    lml = pv.log_marginal_likelihood(model, guide, y[:3])
    torch.testing.assert_close(lml.value, exact[:3], rtol=1e-5, atol=1e-5)


def test_only_discrete_sites_given_shared_ones() -> None:
    """Log p(y_n | shift) at a given value; fit trains the posterior of the shared site."""
    guide = pv.Guide(global_mixture, pv.GlobalParameters(), example=ROW)
    given = {"shift": torch.tensor(0.5)}
    lml = pv.log_marginal_likelihood(global_mixture, guide, ROW, given=given)
    parts = dist.Normal(LOCS.double() + 0.5, 1.0).log_prob(Y.double()) + WEIGHTS.double().log()
    torch.testing.assert_close(lml.value, parts.logsumexp(-1), rtol=1e-5, atol=1e-5)
    assert "shift" in lml.given
    result = pv.fit(global_mixture, guide, ROW, num_epochs=2, validation=ROW, progress=False)
    assert math.isfinite(result.history.elbo[-1])
    own = pv.objectives.BetaELBO(1.0)
    result = pv.fit(global_mixture, guide, ROW, num_epochs=2, objective=own, progress=False)
    assert math.isfinite(result.history.elbo[-1])


class Mixture(nn.Module):
    """A mixture whose places are learned, written so that it does not broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.locs = nn.Parameter(torch.tensor([-1.0, 1.0]))

    def forward(self, y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            c = pyro.sample("c", dist.OneHotCategorical(torch.tensor([0.5, 0.5])))
            mean = torch.cat([c, c], -1)[:, :2] @ self.locs
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def test_a_mixture_is_learned() -> None:
    """Training a mixture with no guide at all is maximum likelihood, which finds its places."""
    model, y = Mixture(), torch.tensor([-3.0, -3.1, -2.9, 2.0, 2.1, 1.9])
    fast = pv.training.adam_with(0.1)
    result = pv.fit(model, nothing, y, num_epochs=150, optimizer=fast, progress=False)
    torch.testing.assert_close(model.locs.data, torch.tensor([-3.0, 2.0]), rtol=0, atol=0.02)
    lml = pv.log_marginal_likelihood(model, nothing, y)
    assert result.history.elbo[-1] == pytest.approx(lml.mean.value.item(), abs=1e-3)


def test_outer_enumeration_keeps_its_dimensions() -> None:
    """A program that is run while another one enumerates, as refined steps are, disturbs nothing.

    Pyro allocates the dimensions of all from one list.
    """
    before = dict(vars(_ENUM_ALLOCATOR))
    try:
        _ENUM_ALLOCATOR.set_first_available_dim(-4)
        pv.log_joint(broadcasting, torch.zeros(2, 4, 1), Y)
        assert _ENUM_ALLOCATOR.next_available_dim == -4
    finally:
        vars(_ENUM_ALLOCATOR).clear()
        vars(_ENUM_ALLOCATOR).update(before)


SIZES = torch.tensor([2.0, 5.0])


def sums(y: Tensor, sizes: Tensor, prior: Any, *, cat: bool) -> None:
    """A count of a number of trials that differs between data: y ~ N(z + k, 1)."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", prior(sizes)).to(z.dtype)
        mean = torch.stack([z, k], -1).sum(-1) if cat else z + k
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def binomial(sizes: Tensor) -> Any:
    """Half of the trials succeed; a row has as many trials as it says."""
    return dist.Binomial(sizes, torch.full_like(sizes, 0.5))


def padded(sizes: Tensor) -> Any:
    """The remedy: six categories for every row, some of them impossible."""
    counts = torch.arange(6.0)
    inside = counts <= sizes[:, None]
    log_prob = binomial(sizes[:, None]).log_prob(torch.minimum(counts, sizes[:, None]))
    return dist.Categorical(logits=log_prob.masked_fill(~inside, -torch.inf))


@pytest.mark.parametrize("cat", [True, False], ids=["repeated", "broadcast"])
def test_data_with_supports_of_their_own_are_refused(*, cat: bool) -> None:
    """The values of the first row were summed over in every row: -4.96 in place of -2.73 nats."""
    y = torch.tensor([1.0, 4.0])
    z = torch.zeros(1, 2, 1)

    def log_joint(prior: Any) -> Tensor:
        model = lambda y, sizes: sums(y, sizes, prior, cat=cat)  # noqa: E731
        return Program(model, y[:1], SIZES[:1]).log_joint(z, y, SIZES)[0]

    with pytest.raises(ValueError, match=r"discrete latent site.* possible values .*Categorical"):
        log_joint(binomial)
    counts = torch.arange(6.0)
    exact = [
        (binomial(n).log_prob(counts[: int(n) + 1]) + normal(at - counts[: int(n) + 1])).logsumexp(
            0
        )
        for n, at in zip(SIZES, y, strict=True)
    ]
    torch.testing.assert_close(log_joint(padded), torch.stack(exact) + normal(torch.zeros(())))


def normal(value: Tensor) -> Tensor:
    """Log density of N(0, 1)."""
    return dist.Normal(0.0, 1.0).log_prob(value)
