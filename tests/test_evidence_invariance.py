"""What must not matter to an estimate: a table of estimators and a table of changes.

The same numbers to rounding, since every datum draws from a stream of its own, and a datum's
density is never scaled. Wrong twins: an estimator with one stream for all, a unit left out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae._types import ProgramLike
from pyro_vae.data import Dataset
from pyro_vae.evidence import (
    AnnealedImportanceSampling,
    ClosedForm,
    Defensive,
    ErrorTarget,
    Estimator,
    ImportanceSampling,
    LogMarginal,
    Quadrature,
    StartFromGuide,
    Widened,
    evaluate,
)
from pyro_vae.evidence.importance import log_marginal_of
from pyro_vae.evidence.weights import Inference, conditioned, weigh
from tests.helpers.factor_analysis import mean_field_net
from tests.helpers.memory import LiveBytes
from tests.helpers.statistics import FACTS, FactorAnalysis

pytestmark = pytest.mark.usefixtures("float64")

NUM_DATA = 6

# Estimators


def elbo(case: "Case") -> Tensor:
    """The bound, its parts and their errors, `(data, 6)`."""
    method = ImportanceSampling(40, case.memory)
    bound = evaluate(case.model, case.guide, case.y, method, seed=case.seed).bound
    return torch.stack([*bound.elbo, *bound.rate, *bound.distortion], dim=-1)


def marginal(make: Callable[[float], Estimator], case: "Case") -> Tensor:
    """All that an estimator says of each datum, `(data, 5)`, by what makes it for a budget."""
    with conditioned(case.model, case.guide, case.y, case.seed) as inference:
        found = make(case.memory)(inference, seed=case.seed, progress=False)
    columns = (found.value, found.error, found.ess, found.pareto_k, found.num_samples)
    return torch.stack([column.double() for column in columns], dim=-1)


def annealing(memory: float, **options: Any) -> AnnealedImportanceSampling:
    """Short: nothing here asks whether it is good."""
    return AnnealedImportanceSampling(
        4, num_temperatures=6, leapfrog_steps=2, memory=memory, **options
    )


BOTH = Defensive(0.2, Widened(1.3))
ESTIMATORS: dict[str, Callable[["Case"], Tensor]] = {
    "elbo": elbo,
    "importance": partial(marginal, partial(ImportanceSampling, 40)),
    "defensive": partial(marginal, lambda memory: ImportanceSampling(40, memory, BOTH)),
    "until": partial(
        marginal, lambda memory: ImportanceSampling(40, memory, until=ErrorTarget(0.1, 320))
    ),
    "annealing": partial(marginal, annealing),
    "annealing-guide": partial(marginal, partial(annealing, start=StartFromGuide())),
    "quadrature": partial(marginal, lambda memory: Quadrature(memory=memory)),
    "closed-form": partial(marginal, lambda memory: ClosedForm()),
}

# Programs, with their plates in several idioms


@dataclass(frozen=True)
class Plain:
    """The plate of a mini-batch, `len(y)`."""

    facts: FactorAnalysis = FACTS

    @contextmanager
    def rows(self, y: Tensor) -> Iterator[Tensor]:
        """The rows that the plate holds."""
        with pyro.plate("data", len(y)):
            yield y

    def model(self, y: Tensor) -> None:
        """Factor analysis."""
        latents, scale = self.facts.loadings.shape[1], self.facts.noise_variance.sqrt()
        with self.rows(y) as y:
            z = pyro.sample("z", dist.Normal(y.new_zeros(latents), 1.0).to_event(1))
            loc = z @ self.facts.loadings.T + self.facts.mean
            pyro.sample("y", dist.Normal(loc, scale).to_event(1), obs=y)

    def guide(self, y: Tensor) -> None:
        """The best mean-field posterior."""
        net = mean_field_net(self.facts)
        with self.rows(y) as y:
            loc, log_scale = net(y).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Subsampled(Plain):
    """A plate that takes a part of many data, `pyro.plate("data", N, subsample_size=B)`."""

    @contextmanager
    def rows(self, y: Tensor) -> Iterator[Tensor]:
        """The rows that Pyro has chosen."""
        with pyro.plate("data", 50, subsample_size=3):
            yield pyro.subsample(y, event_dim=1)


class Indexed(Plain):
    """The same by the positions that the plate gives."""

    @contextmanager
    def rows(self, y: Tensor) -> Iterator[Tensor]:
        """The rows at those positions."""
        with pyro.plate("data", len(y), subsample_size=2) as positions:
            yield y[positions]


@dataclass(frozen=True)
class Case:
    """What an estimator is asked."""

    model: ProgramLike
    guide: ProgramLike
    y: Tensor
    seed: int
    memory: float = 512.0


def case_of(programs: Plain, y: Tensor, seed: int) -> Case:
    """A case of two programs."""
    return Case(programs.model, programs.guide, y, seed)


# Changes

Ask = Callable[[Case], Tensor]


def batches(ask: Ask, case: Case) -> Tensor:
    """Some data at a time."""
    return torch.cat([ask(replace(case, y=part)) for part in case.y.split([2, 4])])


def order(ask: Ask, case: Case) -> Tensor:
    """Another order of the rows."""
    rows = torch.tensor([5, 3, 4, 0, 2, 1])
    return ask(replace(case, y=case.y[rows]))[rows.argsort()]


def memory(ask: Ask, case: Case) -> Tensor:
    """Few rows of the program at once: some annealed data, a part of the draws of a datum."""
    return ask(replace(case, memory=0.02))


def scale(ask: Ask, case: Case) -> Tensor:
    """Programs that weigh their terms, inside a block that does so too."""
    model, guide = (poutine.scale(program, scale=0.01) for program in (case.model, case.guide))
    with poutine.scale(scale=7.0):
        return ask(replace(case, model=model, guide=guide))


def minibatch(ask: Ask, case: Case) -> Tensor:
    """Inside a block that says these are few of many."""
    with pv.minibatch(torch.arange(NUM_DATA), 1_000):
        return ask(case)


def idiom(other: Plain, ask: Ask, case: Case) -> Tensor:
    """The same programs with their plates in another idiom."""
    return ask(replace(case, model=other.model, guide=other.guide))


CHANGES: dict[str, Callable[[Ask, Case], Tensor]] = {
    "batch-size": batches,
    "order": order,
    "memory": memory,
    "scale": scale,
    "minibatch": minibatch,
    "subsample": partial(idiom, Subsampled()),
    "indexed": partial(idiom, Indexed()),
}


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal up to rounding, which chains and the fit to the tail enlarge a little."""
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-7, equal_nan=True)


@cache
def plain_case(seed: int) -> Case:
    """The case that all changes are made to."""
    return case_of(Plain(), FACTS.sample(NUM_DATA), seed)


@cache
def plain(name: str, seed: int) -> Tensor:
    """What an estimator says of it."""
    return ESTIMATORS[name](plain_case(seed))


def slow_if(name: str) -> Any:
    """Marks the rows of the table that take seconds: a pilot is many runs of the program."""
    return pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name


SLOW = ("annealing", "annealing-guide", "quadrature")
EACH = [slow_if(name) for name in ESTIMATORS]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", EACH)
def test_changes_do_not_matter(name: str, change: str, seed: int) -> None:
    """The same numbers for every datum; another datum's are others."""
    expected = plain(name, seed)
    assert expected.shape[0] == NUM_DATA
    assert_same(CHANGES[change](ESTIMATORS[name], plain_case(seed)), expected)
    with pytest.raises(AssertionError):
        assert_same(expected[:1], expected[1:2])


def one_stream(inference: Inference, *, seed: int, progress: bool | None) -> LogMarginal:
    """Importance sampling with one stream for all data: wrong."""
    program, posterior, batch = inference
    torch.manual_seed(seed)
    return log_marginal_of(weigh(program, *posterior.draw(40), batch, 1024))


@pytest.mark.parametrize("change", ["batch-size", "order"])
def test_one_stream_for_all_is_caught(change: str, seed: int) -> None:
    """Its numbers are those of another place in the batch."""
    case = case_of(Plain(), FACTS.sample(NUM_DATA), seed)
    ask = partial(marginal, lambda memory: one_stream)
    with pytest.raises(AssertionError):
        assert_same(CHANGES[change](ask, case), ask(case))


def joint(case: Case) -> Tensor:
    """The loss that Pyro has for a batch: joint over it, and scaled."""
    return torch.tensor(Trace_ELBO(num_particles=20).loss(case.model, case.guide, case.y))


@pytest.mark.parametrize("change", ["scale", "minibatch"])
def test_changes_are_changes(change: str) -> None:
    """To what Pyro computes of the same programs they do matter, by a factor."""
    case = plain_case(0)
    ratio = CHANGES[change](joint, case) / joint(case)
    assert (ratio - 1).abs() > 0.3


# Threads


def wide() -> FactorAnalysis:
    """So many features that torch shares the work of a chunk among threads."""
    return FactorAnalysis(0.2 * torch.randn(64, 2), torch.zeros(64), torch.full((64,), 0.5))


@contextmanager
def threads(number: int) -> Iterator[None]:
    """So many threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", EACH)
def test_threads_do_not_matter(name: str, seed: int) -> None:
    """One or two."""
    facts = wide()
    case, ask = case_of(Plain(facts), facts.sample(40), seed), ESTIMATORS[name]
    with threads(1):
        one = ask(case)
    with threads(2):
        two = ask(case)
    assert_same(two, one)


# Units


def raw_units(stored: Dataset) -> Callable[[Tensor], None]:
    """The same model in the data's own units: the decoder moves and stretches what it says.

    It takes rows as the set stores them, so that a datum keeps its stream, and observes raw ones.
    """
    center, scale = stored.center, stored.scale
    assert center is not None
    assert scale is not None

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
            loc = center + scale * (z @ FACTS.loadings.T)
            noise = scale * FACTS.noise_variance.sqrt()
            pyro.sample("y", dist.Normal(loc, noise).to_event(1), obs=center + scale * y)

    return model


def dataset() -> Dataset:
    """Rows in units of centimetres, kilogrammes and the like, standardized."""
    units = torch.tensor([100.0, 0.01, 3.0, 20.0])
    raw = 5 + units * FACTS.sample(40 + NUM_DATA)
    return Dataset("things", raw[:40], raw[40:]).standardized()


@pytest.mark.parametrize("name", EACH)
def test_units_do_not_matter(name: str, seed: int) -> None:
    """The log density in standard units plus `log_scale` is that in raw ones; without it, not."""
    stored, ask = dataset(), ESTIMATORS[name]
    case = case_of(Plain(), stored.test, seed)
    standard, raw = ask(case), ask(replace(case, model=raw_units(stored)))
    with pytest.raises(AssertionError):
        assert_same(raw, standard)
    shift = torch.zeros_like(standard)
    shift[:, 0] = stored.log_scale
    if name == "elbo":
        shift[:, 4] = -stored.log_scale  # the distortion
    if name == "closed-form":
        raw[:, 1] = standard[:, 1]  # a rounding error, in units of the value
    assert_same(raw, standard + shift)


# Memory


def peak(method: Estimator, num_data: int) -> float:
    """The most mebibytes that are alive at once, for a decoder of 300 pixels."""
    decoder = nn.Sequential(nn.Linear(2, 100), nn.Tanh(), nn.Linear(100, 300))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(300, 4)))
    with (
        LiveBytes() as live,
        conditioned(model, guide, torch.zeros(num_data, 300), 0) as inference,
    ):
        method(inference, seed=0, progress=False)
    return live.peak / 2**20


@pytest.mark.parametrize(
    ("num_samples", "num_data"),
    [
        (50, 300),
        (5_000, 5),
        pytest.param(20_000, 5, marks=pytest.mark.slow),
        pytest.param(20_000, 50, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_memory_of_importance_sampling(num_samples: int, num_data: int) -> None:
    """Below 8 mebibytes at any number of draws and data; a larger budget is used."""
    assert 1 < peak(ImportanceSampling(num_samples, memory=8.0), num_data) < 8


@pytest.mark.slow
def test_memory_of_very_many_draws() -> None:
    """Latents and what the program made of them are forgotten; of a weight 50 bytes are not."""
    draws = 1_000_000
    assert peak(ImportanceSampling(draws, memory=8.0), 2) < 8 + 50 * draws / 2**20


@pytest.mark.slow
def test_memory_that_is_not_asked_for_is_used() -> None:
    """The same measure sees what a larger budget takes."""
    assert peak(ImportanceSampling(300), 20) > peak(ImportanceSampling(300, memory=1.0), 20) + 2


@pytest.mark.slow
@pytest.mark.parametrize("num_data", [5, 50])
@pytest.mark.parametrize(
    "make",
    [annealing, lambda memory: Quadrature(1e-2, 5_000, memory)],
    ids=["annealing", "quadrature"],
)
def test_memory_of_the_others(make: Callable[[float], Estimator], num_data: int) -> None:
    """With gradients, and with points that find their own domain."""
    assert 0.1 < peak(make(8.0), num_data) < 8
