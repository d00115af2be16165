"""Proposals fitted to every datum, and the estimator that chooses a way to log p(y)."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evidence import Bound, LadderMarginal, Proposal, Rung, saturation
from pyro_vae.evidence.fitted import other_modes, starting_points
from pyro_vae.evidence.weights import conditioned
from pyro_vae.guides import FamilyPosterior, Posterior
from pyro_vae.results import Doubt
from tests.helpers.cases import CASES
from tests.helpers.factor_analysis import WEAK, mean_field_guide, model_of
from tests.helpers.gaps import squared
from tests.helpers.statistics import (
    FACTS,
    FALSE_ALARM,
    FactorAnalysis,
    assert_coverage,
    assert_mean,
)
from tests.trust.programs import folded

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:log p.y. cannot be trusted"),  # some are meant not to be
]

lml = pv.log_marginal_likelihood
LIMIT = float(norm.isf(FALSE_ALARM))


def linear(y: Tensor, facts: FactorAnalysis = FACTS) -> tuple[Any, pv.Guide]:
    """A model whose answers are known, and its best mean-field guide."""
    model = model_of(facts)
    return model, mean_field_guide(facts, model)


def test_pareto_k_is_below_the_guides(seed: int) -> None:
    """The mean-field guide's is 0.6 here; a normal of full rank, a little wider, has no tail."""
    y = FACTS.sample(30)
    model, guide = linear(y)
    ours = lml(model, guide, y, pv.ImportanceSampling(2000, proposal=pv.Fitted()), seed=seed)
    theirs = lml(model, guide, y, pv.ImportanceSampling(5000), seed=seed)
    assert bool(ours.reliable.all())
    assert float(ours.pareto_k.max()) < 0.2 < 0.45 < float(theirs.pareto_k.mean()) < 0.75
    assert float(ours.ess.min()) > 1800  # (2 s^2 - 1) / s^4 of them for each latent
    torch.testing.assert_close(ours.ess.mean() / 2000, torch.tensor(0.968), rtol=0.01, atol=0)


@pytest.mark.parametrize(
    "sampled",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["fitted", "tightest"],
)
def test_p_is_unbiased(sampled: bool, seed: int) -> None:  # noqa: FBT001
    """The mean of the estimates of p is p; the ELBO's exponential is not, and errors cover."""
    y = WEAK.sample(300)
    model, guide = linear(y, WEAK)
    proposal = pv.Fitted(scale=1.2)
    method = pv.ImportanceSampling(200, proposal=proposal)
    found = lml(
        model, guide, y, pv.Tightest(200, proposal=proposal).sampled if sampled else method,
        seed=seed,
    )  # fmt: skip
    off = found.value - WEAK.log_evidence(y)
    assert_mean(off.exp(), 1.0)
    assert_coverage(off.abs() < norm.isf(0.1) * found.error, level=0.8)
    elbo = pv.elbo(model, guide, y, 200, seed=seed).elbo.value - WEAK.log_evidence(y)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(elbo.exp(), 1.0)


@pytest.mark.parametrize(
    "family", [pv.FullRankNormal(), pv.LowRankNormal(2), pv.DiagonalNormal()], ids=repr
)
def test_every_family_proposes(family: Any, seed: int) -> None:
    """From a guide at the prior, which is of no use itself."""
    y = FACTS.sample(5)
    guide = pv.Guide(model_of(FACTS), pv.GlobalParameters(), example=y)
    method = pv.ImportanceSampling(1000, proposal=pv.Fitted(family, scale=1.3))
    found = lml(model_of(FACTS), guide, y, method, seed=seed)
    limit = norm.isf(FALSE_ALARM / 2 / 5)
    assert bool(((found.value - FACTS.log_evidence(y)).abs() < limit * found.error).all())


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_scales_that_are_none(scale: float) -> None:
    """Refused when it is made."""
    with pytest.raises(ValueError, match="`scale` must be a finite number above 0"):
        pv.Fitted(scale=scale)


def test_numbers_out_of_range() -> None:
    """Those of what it will call."""
    for wrong in ({"num_samples": 1}, {"prior_share": 0.0}, {"prior_share": 1.0}, {"memory": 0.0}):
        with pytest.raises(ValueError, match="got"):
            pv.Tightest(**wrong)


def test_a_flow_without_nets_is_refused() -> None:
    """It says how to train one; a flow that was trained so is accepted."""
    y, family = FACTS.sample(2), pv.NormalizingFlow()
    model, guide = linear(y)
    method = pv.ImportanceSampling(100, proposal=pv.Fitted(family))
    with pytest.raises(ValueError, match=r"belong to no guide yet.*the same object `family`"):
        lml(model, guide, y, method)
    flow = pv.Guide(model, pv.LocalParameters(len(y)), family, example=y)
    pv.fit(model, flow, y, num_epochs=5, train_model=False)
    assert lml(model, guide, y, method).value.isfinite().all()


@pytest.mark.parametrize(
    ("name", "method"),
    [("factor-analysis", "closed form"), ("gamma", "quadrature"), ("inner-plate", "closed form")],
)
def test_the_way_is_chosen_by_the_program(name: str, method: str) -> None:
    """An exact answer where there is one, by either way the same as that way alone."""
    case, batch = CASES[name], CASES[name].data()
    guide = pv.Guide(case.program, pv.GlobalParameters(), example=batch)
    found = lml(case.program, guide, batch, pv.Tightest())
    alone: Any = pv.ClosedForm() if method == "closed form" else pv.Quadrature(1e-3)
    expected = lml(case.program, guide, batch, alone)
    assert found.method == expected.method == method
    assert torch.equal(found.value, expected.value)
    assert found.bound is (Bound.EXACT if method == "closed form" else Bound.TWO_SIDED)


def test_more_latents_are_sampled(seed: int) -> None:
    """Three that are not linear: within errors of quadrature, which can still do three."""
    case, batch = CASES["dependent"], CASES["dependent"].data()
    guide = pv.Guide(case.program, pv.GlobalParameters(), example=batch)
    few = pv.TemperedSMC(4, 16)
    found = lml(case.program, guide, batch, pv.Tightest(2000, tempering=few), seed=seed)
    assert (found.method, found.bound) == ("importance sampling", Bound.LOWER)
    exact = lml(case.program, guide, batch, pv.Quadrature(tolerance=1e-3))
    off = (found.value - exact.value).abs() - exact.error
    # Its tails are heavier than a normal's: where Pareto k says so, nothing is promised.
    fine = found.reliable
    assert bool((off <= norm.isf(FALSE_ALARM / 2 / 5) * found.error)[fine].all())
    assert bool(fine.any())


def beside(loc: float, log_scale: float, y: Tensor, model: Any) -> pv.Guide:
    """The same normal for all data."""
    row = torch.tensor([loc] * 3 + [log_scale] * 3)
    return pv.Guide(model, pv.Encoder(Fixed(row)), example=y)


class Fixed(torch.nn.Module):
    """A row for every datum."""

    def __init__(self, row: Tensor) -> None:
        super().__init__()
        self.row = row

    def forward(self, y: Tensor) -> Tensor:
        """Looks at nothing."""
        return self.row.expand(len(y), -1)


def test_no_mass_is_missed_where_the_prior_is_the_posterior(seed: int) -> None:
    """Both estimates are exact: no rounding sends a datum back for more draws."""

    def unused(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y.new_zeros(3), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(y.new_zeros(5), 0.3).to_event(1), obs=y)

    y = torch.randn(40, 5)
    guide = pv.Guide(unused, pv.GlobalParameters(), example=y)
    with conditioned(unused, guide, y, seed) as inference:
        result = pv.Tightest(200).sampled(inference, seed=seed)
    assert result.method == "importance sampling"
    assert bool(result.reliable.all())


def test_modes_are_seen_where_there_are_two() -> None:
    """On a program whose marginal density of a is known: see the order on many idioms."""
    case, y = CASES["dependent"], torch.tensor([-2.0, 0.0, 0.1, 2.0, 4.0])
    a = torch.linspace(-3, 3, 6001).unsqueeze(-1)
    density = dist.Normal(0.0, 1.0).log_prob(a)
    density = density + dist.Normal(4 * a**2, (1 + a**2 / 2).sqrt()).log_prob(y)
    higher = density.diff(dim=0) > 0
    number = (higher[:-1] & ~higher[1:]).sum(dim=0)
    assert number.tolist() == [1, 1, 1, 2, 2]
    guide = pv.Guide(case.program, pv.GlobalParameters(), example=y)
    with conditioned(case.program, guide, y, 0) as (program, posterior, batch):
        seen = other_modes(program, pv.Fitted()(program, posterior, batch), batch, pv.FitRows())
    assert seen.tolist() == [False, False, False, True, True]


def far_from_zero(y: Tensor) -> None:
    """Two modes about 10, of a prior with sd 5, and two latents that the data determine."""
    with pyro.plate("data", len(y)):
        m = pyro.sample("m", dist.Normal(y.new_tensor(10.0), 5.0))
        z = pyro.sample("z", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
        mean = torch.cat([(m - 10).abs().unsqueeze(-1), z], dim=-1)
        pyro.sample("y", dist.Normal(mean, y.new_tensor([0.25, 0.1, 0.1])).to_event(1), obs=y)


def test_modes_of_a_prior_far_from_zero_are_found() -> None:
    """A search that starts at N(0, I) finds the nearer mode alone (then p(y) is half as large)."""
    y = torch.tensor([[4.0, 0.3, -0.5], [6.0, -1.0, 0.2], [2.5, 0.1, 0.1]]).double()
    guide = pv.Guide(far_from_zero, pv.GlobalParameters(), example=y)
    with conditioned(far_from_zero, guide, y, 0) as (program, posterior, batch):
        proposal = pv.Fitted()(program, posterior, batch)
        assert bool(other_modes(program, proposal, batch, pv.FitRows()).all())


def cubed(y: Tensor) -> None:
    """Of y = 2 the mode is at z = 1.77; fits can also end at z = -0.8, 40 nats lower."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(y.new_zeros(1), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z**3 - 2 * z, 0.1).to_event(1), obs=y)


@pytest.mark.parametrize(("mean", "another"), [(-0.8, True), (1.77, False)])
def test_a_mode_far_above_the_proposal_is_another_mode(mean: float, *, another: bool) -> None:
    """The proposal's own mode is too low to count beside the highest, which thus seems alone."""
    y, parameters = torch.full((1, 1), 2.0), torch.tensor([[mean, math.log(0.05)]])
    with conditioned(cubed, lambda y: None, y.double(), 0) as (program, _, batch):
        proposal = FamilyPosterior(pv.DiagonalNormal(), parameters.double())
        assert other_modes(program, proposal, batch, pv.FitRows()).tolist() == [another]


@pytest.mark.parametrize("rows", [1, 2, 100], ids="{} rows at once".format)
def test_starts_do_not_depend_on_how_the_work_is_cut(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five data and 64 draws, in 320 calls, in 160, and in 4."""
    case, batch = CASES["dependent"], CASES["dependent"].data()
    guide = pv.Guide(case.program, pv.GlobalParameters(), example=batch)
    with conditioned(case.program, guide, batch, 0) as (program, posterior, data):
        given = (program, posterior, data, pv.FullRankNormal())
        whole = starting_points(*given)
        monkeypatch.setattr(saturation, "_ROWS_AT_ONCE", rows)
        for part, expected in zip(starting_points(*given), whole, strict=True):
            assert torch.equal(part, expected)


def test_a_grid_keeps_to_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quadrature gets the budget that the estimator was given."""
    given: list[float] = []

    def spy(method: pv.Quadrature, *args: Any, **kwargs: Any) -> Any:
        given.append(method.memory)
        return called(method, *args, **kwargs)

    called = pv.Quadrature.__call__
    monkeypatch.setattr(pv.Quadrature, "__call__", spy)
    case, batch = CASES["gamma"], CASES["gamma"].data()
    guide = pv.Guide(case.program, pv.GlobalParameters(), example=batch)
    lml(case.program, guide, batch, pv.Tightest(memory=64.0))
    assert given == [64.0]


def heavy(y: Tensor) -> None:
    """One mode, with tails that no normal reaches."""
    zero = torch.zeros(3)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.StudentT(1.5, zero, 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(-1), y.abs()), obs=y)


@pytest.mark.slow
def test_a_datum_has_its_own_numbers(seed: int) -> None:
    """Whatever stands beside it, also where it is done again.

    But chains make differences of rounding larger, up to their Monte Carlo error.
    """
    y = torch.tensor([0.5, 1.0, 2.0, 20.0])
    guide = pv.Guide(heavy, pv.GlobalParameters(), example=y)
    narrow = pv.Fitted(scale=0.3)  # so that Pareto k is beyond its limit
    method = pv.Tightest(300, proposal=narrow, tempering=pv.TemperedSMC(4, 16))
    first = lml(heavy, guide, y, pv.ImportanceSampling(300, proposal=narrow), seed=seed)
    whole = lml(heavy, guide, y, method, seed=seed)
    assert isinstance(whole, LadderMarginal)
    assert bool((first.value != whole.value).any())
    alike = 0
    for row in range(4):
        alone = lml(heavy, guide, y[row : row + 1], method, seed=seed)
        assert isinstance(alone, LadderMarginal)
        if {alone.rungs[0], whole.rungs[row]} & {Rung.MIXTURE, Rung.TEMPERED}:
            error = math.hypot(float(alone.error[0]), float(whole.error[row]))
            assert abs(float(alone.value[0] - whole.value[row])) < LIMIT * error
            continue
        torch.testing.assert_close(alone.value[0], whole.value[row], rtol=0, atol=1e-6)
        torch.testing.assert_close(alone.error[0], whole.error[row], rtol=0, atol=1e-6)
        assert alone.why_not(0) == whole.why_not(row)
        alike += 1
    assert alike >= 2


def test_the_proposal_is_asked_once() -> None:
    """Data that are done again are drawn for from the same fit."""
    calls: list[int] = []

    class Counting(pv.Fitted):
        def __call__(self, program: Any, posterior: Posterior, batch: Any) -> Posterior:
            calls.append(len(batch[0]))
            return super().__call__(program, posterior, batch)

    model, y = squared(3, 0.3), torch.tensor([[1.0, 1.5, 2.0], [0.1, 0.1, 0.1]])
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    lml(model, guide, y, pv.Tightest(300, proposal=Counting(), tempering=pv.TemperedSMC(2, 8)))
    assert calls == [2]


@pytest.mark.parametrize("proposal", [pv.Fitted(), pv.Defensive(base=pv.Fitted())], ids=repr)
def test_fitted_alone_doubts_data_with_several_modes(proposal: Proposal) -> None:
    """A Gaussian at one of eight modes has equal weights, and is low by log 2 to log 8.

    Without the search for modes, 15 and 3 of 40 such data are called reliable and are wrong.
    """
    torch.manual_seed(0)
    case = folded(40, 3, 3, 0.1)
    guide = pv.Guide(case.model, pv.GlobalParameters(), example=case.batch[0][:2])
    method = pv.ImportanceSampling(1000, proposal=proposal)
    with pytest.warns(UserWarning, match="cannot be trusted"):
        found = pv.log_marginal_likelihood(case.model, guide, case.batch, method)
    wrong = (found.value - case.log_p).abs() > 5 * found.error + 1e-6
    assert int(wrong.sum()) > 10
    assert not bool((wrong & found.reliable).any())
    assert bool(found.doubts[Doubt.SEVERAL_MODES].any())


class _Magnitudes(torch.nn.Module):
    """A decoder that hides the signs of all latents, and repeats the first one."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z.abs(), z[..., :1].abs()], dim=-1)


def test_queries_without_a_guide_doubt_data_with_several_modes() -> None:
    """They fit a Gaussian to each row. Without the search, 12 of 40 such rows are not doubted."""
    torch.manual_seed(0)
    model = pv.models.VAE(_Magnitudes(), pv.likelihoods.Gaussian(0.1), latent_dim=3)
    y = folded(40, 3, 3, 0.1).batch[0]
    filled = pv.impute(model, None, torch.nn.functional.pad(y, (0, 1), value=torch.nan))
    assert bool(filled.doubts[Doubt.SEVERAL_MODES].any())
    assert not bool(filled.reliable.any())


def test_one_mode_is_not_doubted_without_a_guide() -> None:
    """A linear decoder has Gaussian posteriors, which the proposal matches."""
    model = pv.models.VAE(torch.nn.Linear(2, 3), pv.likelihoods.Gaussian(0.5), latent_dim=2)
    y = model.sample(20, seed=1)
    y[:, 0] = torch.nan
    assert bool(pv.impute(model, None, y).reliable.all())
