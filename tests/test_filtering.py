"""The particle filter: exact answers by the Kalman filter, and how it reads a program's order."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae import stats
from pyro_vae._types import ProgramLike
from pyro_vae.evidence import ParticleFilter, Rung, tightest
from pyro_vae.evidence.filtering import stages_of
from pyro_vae.evidence.weights import conditioned
from tests.helpers.statistics import assert_mean

pytestmark = pytest.mark.usefixtures("float64")

TIMES, STEP, NOISE = 5, 0.6, 0.5
FEW = ParticleFilter(4, 32)


def walk(y: Tensor) -> None:
    """A walk that is seen with noise at each time, before it goes on."""
    with pyro.plate("data", len(y)):
        z = y.new_zeros(len(y))
        for time in range(TIMES):
            z = pyro.sample(f"z_{time}", dist.Normal(0.9 * z, STEP))
            pyro.sample(f"y_{time}", dist.Normal(z, NOISE), obs=y[..., time])


def seen_at_last(y: Tensor) -> None:
    """The same, observed in one site after all states."""
    with pyro.plate("data", len(y)):
        z = [y.new_zeros(len(y))]
        for time in range(TIMES):
            z.append(pyro.sample(f"z_{time}", dist.Normal(0.9 * z[-1], STEP)))
        seen = pv.PartlyObserved(dist.Normal(torch.stack(z[1:], dim=-1), NOISE))
        pyro.sample("y", seen.to_event(1), obs=y)


def of_pairs(y: Tensor) -> None:
    """The same once more, each state in two steps, of which the first shows nothing."""
    with pyro.plate("data", len(y)):
        z = y.new_zeros(len(y))
        for time in pyro.markov(range(TIMES)):
            push = pyro.sample(f"push_{time}", dist.Normal(z.new_zeros(()), STEP / 2**0.5))
            z = pyro.sample(f"z_{time}", dist.Normal(0.9 * z + push, STEP / 2**0.5))
            pyro.sample(f"y_{time}", dist.Normal(z, NOISE), obs=y[..., time])


def at_once(y: Tensor) -> None:
    """Two latents that are seen together: nothing is settled before both are drawn."""
    with pyro.plate("data", len(y)):
        a = pyro.sample("a", dist.Normal(y.new_zeros(()), 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample(
            "y", dist.Normal((a + b)[..., None].expand(*a.shape, TIMES), 1.0).to_event(1), obs=y
        )


def marginal() -> dist.MultivariateNormal:
    """Of a series, as the Kalman filter has it."""
    step = torch.eye(TIMES) - 0.9 * torch.diag(torch.ones(TIMES - 1), -1)
    root = torch.linalg.inv(step) * STEP
    return dist.MultivariateNormal(torch.zeros(TIMES), root @ root.T + NOISE**2 * torch.eye(TIMES))


def off(model: ProgramLike, number: int, seed: int) -> Tensor:
    """What estimates are off by, over series."""
    y = marginal().sample((number,))
    with conditioned(model, model, y, seed) as inference:
        found = FEW(inference, seed=seed, progress=False)
    return found.value - marginal().log_prob(y)


@pytest.mark.parametrize("model", [walk, seen_at_last, of_pairs])
def test_unbiased(model: ProgramLike, seed: int) -> None:
    """The mean of the estimates of p is p, however the program is written."""
    assert_mean(off(model, 60, seed).exp(), 1.0)


def test_a_mean_of_logarithms_is_caught(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong twin: the mean of the log weights of a time, in place of the log of their mean."""
    monkeypatch.setattr(stats, "log_mean_exp", lambda logs: logs.mean(dim=0))
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(off(walk, 60, seed).exp(), 1.0)


def ahead(y: Tensor) -> None:
    """A guide of the walk: its step, and the present and next value, with rough shares."""
    with pyro.plate("data", len(y)):
        z = y.new_zeros(len(y))
        for time in range(TIMES):
            later = y[..., min(time + 1, TIMES - 1)]
            loc = 0.4 * z + 0.4 * y[..., time] + 0.15 * later
            z = pyro.sample(f"z_{time}", dist.Normal(loc, 0.45))


@pytest.mark.parametrize("model", [walk, seen_at_last])
def test_a_guided_filter_is_unbiased_and_more_accurate(model: ProgramLike, seed: int) -> None:
    """By the Kalman filter; series far out, of which few draws of the program come near."""
    y = marginal().sample((40,)) + 1.5
    errors = []
    for guided in (True, False):
        filters = ParticleFilter(4, 32, guided=guided)
        with conditioned(model, ahead, y, seed) as inference:
            found = filters(inference, seed=seed, progress=False).value - marginal().log_prob(y)
        errors.append(float(found.exp().std()))
        if guided:
            assert_mean(found.exp(), 1.0)
    assert errors[0] < errors[1] / 2


def test_a_guide_out_of_order_is_refused() -> None:
    """Its density of a time would depend on draws that are not kept; so has a Guide no order."""

    def backwards(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = y[..., -1]
            for time in reversed(range(TIMES)):
                z = pyro.sample(f"z_{time}", dist.Normal(z, 1.0))

    y = torch.zeros(2, TIMES)
    amortized = pv.Guide(walk, pv.GlobalParameters(), example=y)
    for guide, error in ((backwards, ValueError), (amortized, TypeError)):
        with pytest.raises(error, match="in the model's order"):
            pv.log_marginal_likelihood(walk, guide, y, ParticleFilter(4, 32, guided=True))


@pytest.mark.parametrize(
    ("model", "number"), [(walk, 5), (seen_at_last, 5), (of_pairs, 5), (at_once, 1)]
)
def test_the_order_is_read_off_the_program(model: ProgramLike, number: int) -> None:
    """One stage for each time; latents that show nothing are drawn with the next."""
    with conditioned(model, model, torch.randn(3, TIMES), 0) as (program, _, batch):
        stages = stages_of(program, batch)
    assert len(stages) == number
    assert sum(len(stage.sites) for stage in stages) == len(program.latent_sites)


@pytest.mark.parametrize("last", [0, 39])
def test_a_time_that_most_series_lack_has_its_own_stage(last: int) -> None:
    """One series of forty is complete; what no other shows belongs to no earlier time.

    Twin: of series that all end early, the density at later times never depends on a state.
    """
    y = torch.randn(40, TIMES)
    y[torch.arange(40) != last, 3:] = torch.nan
    for rows, settled in ((y, [1, 2, 3, 4]), (y[torch.arange(40) != last], [1, 2, 3])):
        with conditioned(seen_at_last, seen_at_last, rows, 0) as (program, _, batch):
            *stages, _ = stages_of(program, batch)
        assert [int(stage.entries["y"].sum()) for stage in stages] == settled


def test_missing_times_are_left_out(seed: int) -> None:
    """A series that ends early has the evidence of what was seen."""
    y = marginal().sample((40,))
    shorter = y.clone()
    shorter[:, 3:] = torch.nan
    with conditioned(seen_at_last, seen_at_last, shorter, seed) as inference:
        found = FEW(inference, seed=seed, progress=False)
    whole = marginal()
    seen = dist.MultivariateNormal(whole.loc[:3], whole.covariance_matrix[:3, :3])
    assert_mean((found.value - seen.log_prob(y[:, :3])).exp(), 1.0)


@pytest.mark.parametrize("lengths", [(2, TIMES), (TIMES, 2)])
def test_observed_sites_that_shorter_series_lack(lengths: tuple[int, int], seed: int) -> None:
    """A site for each time of the longest series of the rows: the first row may have fewer."""

    def ragged(y: Tensor, length: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = y.new_zeros(len(y))
            for time in range(TIMES):
                z = pyro.sample(f"z_{time}", dist.Normal(0.9 * z, STEP))
                if time < int(length.max()):
                    seen = dist.Normal(z, NOISE).mask(time < length)
                    pyro.sample(f"y_{time}", seen, obs=y[..., time])

    y, whole = torch.randn(2, TIMES), marginal()
    with conditioned(ragged, ragged, (y, torch.tensor(lengths)), seed) as inference:
        found = ParticleFilter(16, 256)(inference, seed=seed, progress=False)
    for row, length in enumerate(lengths):
        covariance = whole.covariance_matrix[:length, :length]
        exact = dist.MultivariateNormal(torch.zeros(length), covariance).log_prob(y[row, :length])
        assert (found.value[row] - exact).abs() < 6 * found.error[row]  # t(15): 2.5e-5 a datum


def test_a_program_without_an_order_is_refused() -> None:
    """With what to take in its place."""
    with pytest.raises(ValueError, match=r"observations of \['y'\] depend.*pv.Tightest"):
        pv.log_marginal_likelihood(at_once, at_once, torch.zeros(1, TIMES), FEW)


def test_discrete_sites_are_named() -> None:
    """They are summed out, so no site comes first; not all observations depend on the last."""

    def switching(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            switch = pyro.sample("switch", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            first = pyro.sample("first", dist.Normal(0.0, 1.0))
            pyro.sample("y0", dist.Normal(first + switch, 1.0), obs=y[..., 0])
            last = pyro.sample("last", dist.Normal(first, 1.0))
            pyro.sample("y1", dist.Normal(last, 1.0), obs=y[..., 1])

    y = torch.zeros(2, 2)
    guide = pv.Guide(switching, pv.GlobalParameters(), example=y)
    with pytest.raises(ValueError, match=r"without discrete latent sites.*discrete site 'switch'"):
        pv.log_marginal_likelihood(switching, guide, y, ParticleFilter(4, 32))


def test_the_ladder_filters_series(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the guide, here the prior, will not do, and nothing is said of other programs."""
    monkeypatch.setattr(tightest, "_SAMPLED", [Rung.GUIDE, Rung.FILTER])
    y, ladder = marginal().sample((3,)), pv.Tightest(200, filtering=ParticleFilter(8, 64))
    for model, rung in ((walk, Rung.FILTER), (at_once, Rung.NONE)):
        with conditioned(model, model, y, 0) as inference:
            assert ladder.sampled(inference, progress=False).rungs == [rung] * 3
