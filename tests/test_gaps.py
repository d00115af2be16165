"""The parts of the inference gap against closed forms and grids; errors that cover; what doubts."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.stats import norm
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import stats
from pyro_vae._types import Batch, Estimate, ProgramLike
from pyro_vae.gaps import InferenceGap, Parts, generalization, inference_gap
from pyro_vae.guides import Family
from pyro_vae.results import Doubt
from tests.helpers.cases import CASES, Case
from tests.helpers.factor_analysis import (
    WEAK,
    best_global,
    exact_guide,
    mean_field_guide,
    mean_field_program,
    model_of,
)
from tests.helpers.gaps import (
    FAMILIES,
    GUIDES,
    LEVEL,
    Off,
    assert_within,
    closed_gaps,
    covered,
    off_guide,
    squared,
    squared_log_p,
)
from tests.helpers.idioms import IDIOMS
from tests.helpers.shared_sites import conditional, population
from tests.helpers.statistics import FACTS, FALSE_ALARM, FactorAnalysis, assert_coverage

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-4  # nats by which a fit may fall short, as FitRows asks for
P = FACTS.posterior_precision


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("guide_name", GUIDES)
def test_parts_are_their_closed_forms(guide_name: str, name: str, seed: int) -> None:
    """By datum, and on the mean, within errors; at the default budget in test_gaps_slow.py."""
    y = FACTS.sample(25)
    guide = GUIDES[guide_name](name, y)
    gap = inference_gap(model_of(FACTS), guide, y, num_samples=1000, seed=seed)
    for part, value in closed_gaps(name, FACTS, y, guide).items():
        assert_within(getattr(gap.parts, part), value)
        assert_within(getattr(gap.mean, part), value.mean())
    assert bool(gap.converged.all() and gap.reliable.all())
    if guide_name == "per-datum":
        assert float(gap.amortization.value.abs().max()) < 1e-6  # the same q, the same draws


def test_the_best_global_q_is_the_one_of_the_facts() -> None:
    """Its mean gap: half the trace of P Cov(m), and the family's own."""
    y = FACTS.sample(40)
    guide = off_guide("diagonal", FACTS, shared=True)
    torch.testing.assert_close(guide.parameters_of(y), best_global(FACTS, y))
    covariance = torch.cov(FACTS.posterior(y).loc.T, correction=0)
    expected = (P @ covariance).trace() / 2
    exact = closed_gaps("diagonal", FACTS, y, guide)["amortization"]
    torch.testing.assert_close(exact.mean(), expected)


class Many(NamedTuple):
    """Many data with few draws each: the errors then cover, or not."""

    y: Tensor
    gap: InferenceGap
    exact: dict[str, Tensor]


@functools.cache
def many(seed: int) -> Many:
    """Weak loadings, so that the guide's own weights have a variance."""
    y, guide = WEAK.sample(300), off_guide("diagonal", WEAK)
    gap = inference_gap(
        model_of(WEAK), guide, y, estimator=pv.ImportanceSampling(), num_samples=150,
        families={"full-rank": pv.FullRankNormal()}, seed=seed,
    )  # fmt: skip
    return Many(y, gap, closed_gaps("diagonal", WEAK, y, guide))


@pytest.mark.parametrize("part", Parts._fields)
def test_errors_cover(part: str, seed: int) -> None:
    """Of 300 data, each with draws of its own, 80 percent are within 1.28 errors."""
    _, gap, exact = many(seed)
    assert_coverage(covered(getattr(gap.parts, part), exact[part]), LEVEL)


def test_another_family(seed: int) -> None:
    """The best member of full rank is the posterior: no gap, and all of the mean-field's won."""
    y, gap, _ = many(seed)
    full = gap.families["full-rank"]
    assert_coverage(covered(full.gain, float(WEAK.mean_field_gap())), LEVEL)
    torch.testing.assert_close(full.best_elbo.value, WEAK.log_evidence(y))
    assert_coverage(covered(full.approximation, 0.0), LEVEL)
    assert bool(full.converged.all())


def test_another_family_is_doubted_where_log_p_is() -> None:
    """Ten draws show no tail: the gap of the other family is in doubt as well as the guide's."""
    y, guide = WEAK.sample(3), off_guide("diagonal", WEAK)
    gap = inference_gap(
        model_of(WEAK), guide, y, estimator=pv.ImportanceSampling(10), num_samples=50,
        families={"full-rank": pv.FullRankNormal()},
    )  # fmt: skip
    assert not bool(gap.reliable.any())
    full = gap.families["full-rank"]
    assert Doubt.NO_TAIL in full.doubt_counts
    assert "cannot be trusted" in full.summary()
    low = dataclasses.replace(
        full, approximation=Estimate(full.approximation.value - 9, full.error)
    )
    assert bool(low.doubts[Doubt.NEGATIVE_APPROXIMATION].all())


def test_wrong_twins_are_caught(seed: int) -> None:
    """An unpaired error is too wide, and a gap to another q is another number."""
    y, gap, exact = many(seed)
    unpaired = (gap.elbo.error.square() + gap.best_elbo.error.square()).sqrt()
    with pytest.raises(AssertionError, match="intervals hold the truth"):
        assert_coverage(covered(gap.amortization, exact["amortization"], unpaired), LEVEL)
    to_log_p = Estimate(exact["log_marginal"] - gap.elbo.value, gap.amortization.error)
    assert_within(gap.mean.amortization, exact["amortization"].mean())
    with pytest.raises(AssertionError, match="errors are"):
        assert_within(stats.mean_over_data(to_log_p), exact["amortization"].mean())
    prior = pv.Guide(model_of(WEAK), pv.GlobalParameters(), example=y)
    of_prior = pv.elbo(model_of(WEAK), prior, y, 150, seed=seed).elbo
    from_prior = Estimate(of_prior.value - gap.elbo.value, of_prior.error)
    with pytest.raises(AssertionError, match="errors are"):
        assert_within(stats.mean_over_data(from_prior), exact["amortization"].mean())


def test_means_and_totals_add_up(seed: int) -> None:
    """Data have draws of their own: variances add; those of other data come from the spread."""
    _, gap, exact = many(seed)
    for name in Parts._fields:
        part: Estimate = getattr(gap.parts, name)
        total, mean = getattr(gap.total, name), getattr(gap.mean, name)
        torch.testing.assert_close(total.value, part.value.sum())
        torch.testing.assert_close(total.error, part.error.square().sum().sqrt())
        torch.testing.assert_close(mean.error, total.error / 300)
        assert_within(mean, exact[name].mean())
        spread = getattr(gap.population, name)
        torch.testing.assert_close(spread.error, part.value.std() / 300**0.5)


def test_sampled_evidence_of_ten_latents(seed: int) -> None:
    """From the fitted proposal, as for a program without a closed form, on one that has it."""
    facts = FactorAnalysis(torch.randn(15, 10) / 2, torch.zeros(15), torch.rand(15) + 0.5)
    y, guide = facts.sample(10), off_guide("diagonal", facts)
    for estimator in (pv.ImportanceSampling(4000, proposal=pv.Fitted()), pv.Tightest().sampled):
        gap = inference_gap(
            model_of(facts), guide, y, estimator=estimator, num_samples=1000, seed=seed
        )
        assert gap.log_marginal.method == "importance sampling"
        assert bool(gap.reliable.all())
        for name, exact in closed_gaps("diagonal", facts, y, guide).items():
            assert_within(getattr(gap.parts, name), exact)


# Programs that are not linear, held against grids.


class Grid(NamedTuple):
    """Points `(points, latents)`, the log joint `(points, batch)` and log p(y) on them."""

    z: Tensor
    log_joint: Tensor
    log_cell: float

    @staticmethod
    def of(case: Case, batch: Batch, low: float, high: float, size: int) -> "Grid":
        """All of a square."""
        axis = torch.linspace(low, high, size)
        z = torch.cartesian_prod(*[axis] * case.latents).view(-1, case.latents)
        log_joint = case.density(z[:, None].expand(-1, len(batch[0]), -1), *batch)
        return Grid(z, log_joint, case.latents * math.log((high - low) / (size - 1)))

    @property
    def log_p(self) -> Tensor:
        """Sums over the points."""
        return self.log_joint.logsumexp(dim=0) + self.log_cell

    def divergence(self, parameters: Tensor, family: Family) -> Tensor:
        """KL(q || posterior), normalized on the grid, `(batch,)`."""
        log_q = family(parameters).log_prob(self.z[:, None])
        log_ratio = log_q - self.log_joint + self.log_p
        return ((log_q + self.log_cell).exp() * log_ratio).sum(dim=0)

    def best(self, family: Family) -> Tensor:
        """Parameters of least divergence, from the moments of the posterior."""
        weights = (self.log_joint + self.log_cell - self.log_p).exp()
        loc = weights.T @ self.z
        square = torch.einsum("kn,ki,kj->nij", weights, self.z, self.z)
        precision = torch.linalg.inv(square - loc[:, :, None] * loc[:, None])
        closest: Tensor = family.closest_normal(loc, precision)  # type: ignore[attr-defined]
        parameters = closest.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = self.divergence(parameters, family).sum()
            (parameters.grad,) = torch.autograd.grad(value, parameters)
            return value

        optimizer.step(loss)
        return parameters.detach()


PROGRAMS = {**CASES, **IDIOMS}
GRIDS = {  # the last two sum out discrete sites
    "gamma": (-12.0, 6.0, 4001),
    "factor": (-5.0, 5.0, 2001),
    "interval": (-14.0, 14.0, 281),
    "clusters": (-9.0, 9.0, 4001),
    "switches": (-7.0, 7.0, 4001),
}


class Constant(nn.Module):
    """The same answer for all data, a normal that is near no posterior."""

    def __init__(self, family: Family, latents: int) -> None:
        super().__init__()
        self.row = family.initial(torch.full((latents,), 0.4), 0.8)

    def forward(self, *batch: Tensor) -> Tensor:
        """One row each."""
        return self.row.expand(len(batch[0]), -1)


@pytest.mark.parametrize(
    ("name", "family_name"),
    [*((name, "diagonal") for name in GRIDS), ("interval", "full-rank")],
)
def test_parts_are_those_of_a_grid(name: str, family_name: str, seed: int) -> None:
    """Log p(y), KL(q || posterior) and the least of them, by sums that share no code."""
    case, family = PROGRAMS[name], FAMILIES[family_name]
    batch = case.data()
    grid = Grid.of(case, batch, *GRIDS[name])
    net = Constant(family, case.latents)
    guide = pv.Guide(case.program, pv.Encoder(net), family, example=batch)
    gap = inference_gap(case.program, guide, batch, num_samples=1000, seed=seed)
    torch.testing.assert_close(gap.log_marginal.value, grid.log_p, rtol=0, atol=1e-3)
    whole = grid.divergence(net(*batch), family)
    least = grid.divergence(grid.best(family), family)
    assert bool((least < whole).all())
    assert_within(gap.inference, whole, slack=1e-3)
    # The fit's points stand for q: where the posterior is not normal they are off by a little.
    assert_within(gap.approximation, least, slack=5e-3)
    assert_within(gap.amortization, whole - least, slack=5e-3)
    assert bool(gap.converged.all())


# Two ways to the same number.


def test_the_sum_is_exact_and_the_ends_are_the_inputs(seed: int) -> None:
    """To the last bit; and log p(y) less the ELBO, which are those of the entry points."""
    y, gap, _ = many(seed)
    assert torch.equal(gap.inference.value, gap.approximation.value + gap.amortization.value)
    ends = gap.log_marginal.value - gap.elbo.value
    torch.testing.assert_close(gap.inference.value, ends, rtol=0, atol=1e-12)
    alone = pv.elbo(model_of(WEAK), off_guide("diagonal", WEAK), y[:5], 150, seed=seed)
    torch.testing.assert_close(gap.elbo.value[:5], alone.elbo.value)


def numbers(gap: InferenceGap) -> Tensor:
    """All values and errors, `(parts, 2, batch)`."""
    return torch.stack([torch.stack(tuple(part)) for part in gap.parts])


@pytest.mark.slow
def test_a_datum_has_its_own_numbers(seed: int) -> None:
    """Whatever stands beside it and where, however the work is cut; other draws on another seed."""
    y, model, guide = WEAK.sample(6), model_of(WEAK), off_guide("diagonal", WEAK)
    call = functools.partial(inference_gap, model, guide, num_samples=50, seed=seed)
    sampled = pv.Tightest(50).sampled
    whole = numbers(call(y, estimator=sampled))
    assert torch.equal(whole, numbers(call(y, estimator=sampled)))
    order = torch.tensor([4, 2, 5, 0])
    near = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-7)
    near(numbers(call(y[order], estimator=sampled)), whole[..., order])
    cut = call(y, estimator=pv.Tightest(50, memory=0.05).sampled, fitting=pv.FitRows(max_rows=40))
    near(numbers(cut), whole)
    other = numbers(call(y, estimator=sampled, seed=seed + 1))
    assert bool((other[1] != whole[1]).all())


def test_the_callers_stream_is_left_alone() -> None:
    """And no gradient is made."""
    y, guide = WEAK.sample(2), off_guide("diagonal", WEAK)
    before = torch.get_rng_state()
    gap = inference_gap(model_of(WEAK), guide, y, num_samples=10)
    assert torch.equal(before, torch.get_rng_state())
    assert not numbers(gap).requires_grad


def test_a_program_is_as_good_as_a_guide(seed: int) -> None:
    """Written by hand, the same q has the same parts, found from draws of it alone."""
    y, model = FACTS.sample(5), model_of(FACTS)
    by_hand = inference_gap(model, mean_field_program(FACTS), y, num_samples=500, seed=seed)
    ours = inference_gap(model, mean_field_guide(FACTS, model), y, num_samples=500, seed=seed)
    torch.testing.assert_close(numbers(by_hand), numbers(ours), rtol=0, atol=1e-6)


# Programs of many idioms.


def shared_mean(y: Tensor) -> None:
    """A guide by hand for a program with a site that all data share."""
    pyro.sample("mean", dist.Normal(0.7, 0.01))
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y, 1.0))


def test_of_a_program_with_a_site_that_all_data_share(seed: int) -> None:
    """Conditional on its value: that given, or the mean of its posterior; and it says so."""
    y, mean = torch.randn(4), torch.tensor(0.3)
    guides: list[ProgramLike] = [
        shared_mean,
        pv.Guide(population, pv.LocalParameters(4), example=y),
    ]
    for guide in guides:
        gap = inference_gap(population, guide, y, given={"mean": mean}, num_samples=500, seed=seed)
        torch.testing.assert_close(gap.log_marginal.value, conditional(y, mean))
        assert_within(gap.approximation, 0.0, slack=TOLERANCE)
        assert "mean" in gap.given
        assert gap.given == gap.log_marginal.given
    unsaid = inference_gap(population, shared_mean, y, num_samples=100, seed=seed)
    torch.testing.assert_close(
        unsaid.log_marginal.value, conditional(y, torch.tensor(0.7)), rtol=0, atol=0.01
    )


OTHERS = ("dependent", "dirichlet", "outer-data", "missing", "covariate", "markov", "words")


@pytest.mark.parametrize("name", OTHERS)
def test_order_holds_on_programs_of_many_idioms(name: str, seed: int) -> None:
    """L[guide] <= L[q*] <= log p(y): several sites, simplices, inner plates, steps in time."""
    case = PROGRAMS[name]
    batch = case.data()
    guide = pv.Guide(case.program, pv.GlobalParameters(), example=batch)
    gap = inference_gap(case.program, guide, batch, num_samples=400, seed=seed)
    limit = float(norm.isf(FALSE_ALARM / len(batch[0])))
    for part in (gap.approximation, gap.amortization):
        assert bool((part.value > -limit * part.error - TOLERANCE).all()), part
    assert float(gap.amortization.value.max()) > 0.01  # the prior is not the posterior
    # Of "dependent" z and -z are equally likely, and b_1 + b_2 given a is N(4 a, 1 / 2), so that
    # y given a is N(4 a^2, 1 + a^2 / 2). Log p(a, y) is even in a, with a minimum between two equal
    # modes where its slope in a^2 at a = 0, y^2 / 4 + 4 y - 3 / 4, is above zero. No other of
    # these posteriors has two modes.
    two_modes = batch[0] > 67**0.5 - 8 if name == "dependent" else torch.zeros_like(gap.reliable)
    several = [m for why, m in gap.log_marginal.doubts.items() if why is Doubt.SEVERAL_MODES]
    doubted = torch.stack([torch.zeros_like(gap.reliable), *several]).any(dim=0)
    assert not bool((doubted & ~two_modes).any())
    few = torch.stack([*gap.elbo_doubts.values()]).any(dim=0)  # 400 draws are few for some tails
    assert bool((gap.reliable | doubted | few).all())


# What cannot be trusted is said.


def test_a_guide_richer_than_its_family_is_not_hidden(seed: int) -> None:
    """The posterior itself, by hand, is better than any mean-field q: that is no amortization."""
    y = FACTS.sample(4)
    gap = inference_gap(model_of(FACTS), exact_guide(FACTS), y, num_samples=2000, seed=seed)
    assert_within(gap.amortization, -float(FACTS.mean_field_gap()))
    assert_within(gap.approximation, float(FACTS.mean_field_gap()))
    assert bool(gap.suboptimal.all())
    assert not bool(gap.converged.any() or gap.reliable.any())
    assert bool(gap.fit_converged.all())  # the fit itself cannot know
    assert gap.why_not(2) == [
        "the guide beats q*, so q* was not found or the guide has a richer family"
    ]
    assert "4 of 4 data cannot be trusted" in gap.verdict
    assert gap.verdict.endswith("the best q was not found for 4 data.")


def test_no_gap_is_called_negative_by_chance(seed: int) -> None:
    """Guides that are the best member themselves; a false alarm is one in a thousand batches."""
    for estimator in (None, pv.Tightest(500).sampled):
        y, guide = FACTS.sample(20), mean_field_guide(FACTS, model_of(FACTS))
        gap = inference_gap(
            model_of(FACTS), guide, y, estimator=estimator, num_samples=500, seed=seed
        )
        assert int(gap.suboptimal.sum()) == 0
        assert int((~gap.reliable).sum()) <= 1


def with_log_p(gap: InferenceGap, shift: Tensor) -> InferenceGap:
    """The same with another log p(y)."""
    marginal = dataclasses.replace(gap.log_marginal, value=gap.log_marginal.value + shift)
    approximation = Estimate(gap.approximation.value + shift, gap.approximation.error)
    inference = Estimate(approximation.value + gap.amortization.value, gap.inference.error)
    return dataclasses.replace(
        gap, log_marginal=marginal, approximation=approximation, inference=inference
    )


def test_a_log_p_below_the_elbo_is_said() -> None:
    """Of the data that it holds for, and of no other."""
    y, guide = FACTS.sample(4), off_guide("diagonal", FACTS)
    gap = inference_gap(model_of(FACTS), guide, y, num_samples=500)
    assert [gap.why_not(row) for row in range(4)] == [[], [], [], []]
    low = with_log_p(gap, torch.tensor([0.0, -5.0, 0.0, 0.0]))
    assert low.reliable.tolist() == [True, False, True, True]
    assert low.why_not(1) == [
        f"the {name} gap is negative, so the estimate of log p(y) is too low"
        for name in ("inference", "approximation")
    ]
    assert "1 of 4 data cannot be trusted" in low.verdict


def test_a_fit_that_was_stopped_is_said() -> None:
    """Nor is a gap from it called converged."""
    y, guide = FACTS.sample(3), off_guide("diagonal", FACTS)
    stopped = pv.FitRows(max_steps=0)
    gap = inference_gap(model_of(FACTS), guide, y, num_samples=2000, fitting=stopped)
    assert not bool(gap.fit_converged.any() or gap.converged.any() or gap.reliable.any())
    assert gap.why_not(0) == ["the fit of q* stopped before it converged"]


def censored(times: Tensor, died: Tensor) -> None:
    """Survival with a log hazard, whose cdf rounds to 1, and its gradient to nan, far away."""
    with pyro.plate("data", len(times)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=died):  # type: ignore[call-overload]
            pyro.sample("time", dist.Normal(z, 0.3), obs=times)
        with poutine.mask(mask=~died):  # type: ignore[call-overload]
            pyro.factor("alive", (1 - dist.Normal(z, 0.3).cdf(times)).log())


def test_a_datum_without_a_gradient_does_not_stop_the_others() -> None:
    """It says so, and so does one to which the guide's ELBO is minus infinity."""
    times, died = torch.tensor([-1.0, 6.0, -1.5, 0.9]), torch.tensor([True, True, False, False])
    guide = pv.Guide(censored, pv.GlobalParameters(), example=(times, died))
    gap = inference_gap(censored, guide, (times, died), num_samples=500)
    z = torch.linspace(-8, 8, 20_001)[:, None]
    alive = torch.special.log_ndtr((z - times) / 0.3)
    terms = torch.where(died, dist.Normal(z, 0.3).log_prob(times), alive) - z.square() / 2
    truth = terms.logsumexp(dim=0) + math.log(16 / 20_000) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(gap.log_marginal.value, truth, rtol=0, atol=1e-3)
    gap = dataclasses.replace(gap, elbo_doubts={})  # the prior's ELBO has a tail
    assert [gap.why_not(row) for row in range(4)] == [
        [], [Doubt.FIT_STOPPED.value], [], [Doubt.INFINITE.value],
    ]  # fmt: skip
    draws = pv.posterior_draws(censored, guide, (times[:2], died[:2]), num_samples=50)
    assert draws.reliable.all()


def test_what_is_no_family_is_refused() -> None:
    """A flow without nets, as a further family."""
    y, guide = FACTS.sample(2), off_guide("diagonal", FACTS)
    with pytest.raises(ValueError, match="belong to no guide yet"):
        inference_gap(model_of(FACTS), guide, y, families={"flow": pv.NormalizingFlow()})


def test_the_table(seed: int) -> None:
    """Every part with its errors, and a sentence that says where the gap is."""
    y = WEAK.sample(50)

    class Few(Off):
        def forward(self, y: Tensor) -> Tensor:
            moved = torch.cat([torch.full((4,), 1.0), torch.zeros(len(y) - 4)])
            return super().forward(y) + moved[:, None]

    guide = pv.Guide(
        model_of(WEAK), pv.Encoder(Few("diagonal", WEAK, 0.0, shared=False)), example=y
    )
    gap = inference_gap(
        model_of(WEAK), guide, y, num_samples=300, seed=seed, families={"full": pv.FullRankNormal()}
    )
    assert sorted(gap.worst(4).tolist()) == [0, 1, 2, 3]
    said = gap.summary().splitlines()
    assert [line[:24].strip() for line in said[1:8]] == [
        *("log p(y)", "ELBO of the guide", "ELBO of q*", "inference gap", "approximation gap"),
        *("amortization gap", "approximation, full"),
    ]
    assert f"{float(gap.mean.inference.value):.4f}" in said[4]
    assert "100% of the amortization gap comes from 8% of the data." in gap.verdict
    one = inference_gap(model_of(WEAK), off_guide("diagonal", WEAK), y[:1], num_samples=50)
    assert "± data" in one.summary()  # one datum has no spread
    assert "of the amortization gap comes from" not in one.verdict  # and 8% of it are no data


# Several modes.


@pytest.mark.parametrize("latents", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_normal_holds_one_mode_of_several(latents: int, seed: int) -> None:
    """Log p(y) has all of them; the family's gap is log 2 a latent, as modes are far apart.

    The guide is the prior: a saddle, from which no gradient leads away. It is found nonetheless.
    """
    model, y = squared(latents, 0.1), torch.tensor([1.0, 2.0, 3.0])[:, None].expand(-1, latents)
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    gap = inference_gap(model, guide, y, num_samples=1000, seed=seed)
    torch.testing.assert_close(gap.log_marginal.value, squared_log_p(y, 0.1), rtol=0, atol=1e-4)
    skew = 0.02  # a mode is not quite normal
    assert_within(gap.approximation, latents * math.log(2), slack=skew * latents)
    gap = dataclasses.replace(gap, elbo_doubts={})  # the prior's ELBO has a tail
    assert bool(gap.reliable.all())


@pytest.mark.slow
def test_modes_beyond_a_grid_are_seen(seed: int) -> None:
    """With three latents, Tightest is right: it draws from a mixture over all of them.

    A Gaussian on one mode of eight far ones is a perfect proposal for an eighth of p(y): no weight
    tells. Then log p(y) is low by log 2 a latent, and the gap of the family with it.
    """
    model, y = squared(3, 0.1), torch.tensor([[1.0, 1.5, 2.0], [3.0, 3.0, 3.0]])
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    gap = inference_gap(model, guide, y, num_samples=2000, seed=seed)
    missing = (squared_log_p(y, 0.1) - gap.log_marginal.value) / math.log(2)
    assert bool(gap.log_marginal.reliable.all())
    assert float(missing.abs().max()) < 0.05


# Trained on or held out.


def test_generalization_is_the_difference(seed: int) -> None:
    """An encoder that is good on one half of the data only; the errors are those of data."""

    class Half(Off):
        def forward(self, y: Tensor) -> Tensor:
            return super().forward(y) + 0.4 * (y[:, :1] > WEAK.mean[0]) * torch.tensor(
                [1.0, 1, 0, 0]
            )

    net = Half("diagonal", WEAK, 0.0, shared=False)
    guide = pv.Guide(model_of(WEAK), pv.Encoder(net), example=WEAK.mean.expand(2, -1))
    y = WEAK.sample(100)
    known = y[:, 0] <= WEAK.mean[0]
    of: Callable[[Tensor], InferenceGap] = lambda part: inference_gap(  # noqa: E731
        model_of(WEAK), guide, part, num_samples=150, seed=seed
    )
    train, test = of(y[known]), of(y[~known])
    difference = generalization(train, test)
    e = torch.tensor([0.4, 0.4])
    exact = e @ WEAK.posterior_precision @ e / 2
    assert_within(difference.amortization, exact)
    assert_within(difference.inference, exact)
    assert_within(difference.approximation, 0.0)
    log_p = [WEAK.log_evidence(part) for part in (y[~known], y[known])]
    torch.testing.assert_close(difference.log_marginal.value, log_p[0].mean() - log_p[1].mean())
    spread = torch.stack([part.var() / len(part) for part in log_p]).sum().sqrt()
    torch.testing.assert_close(difference.log_marginal.error, spread)
    back = generalization(test, train)
    torch.testing.assert_close(back.amortization.value, -difference.amortization.value)
    with pytest.raises(ValueError, match="data"):
        generalization(train, of(y[:1]))
