"""Cross-checks: right estimators agree, a wrong one is caught, and a bound has its bias."""

from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evidence import Bound, Inference, LogMarginal
from pyro_vae.evidence.exact import ClosedForm
from pyro_vae.evidence.quadrature import Quadrature
from pyro_vae.evidence.validation import CrossCheck, cross_check
from pyro_vae.results import Doubt
from tests.helpers.cases import gamma
from tests.helpers.factor_analysis import WEAK, mean_field_program, model_of
from tests.helpers.statistics import FACTS, FACTS_Y, FactorAnalysis

pytestmark = pytest.mark.usefixtures("float64")

MODEL, GUIDE = model_of(WEAK), mean_field_program(WEAK)


@dataclass(frozen=True)
class Planted:
    """Importance sampling with something wrong, that calls itself what it likes."""

    shift: float
    bound: Bound = Bound.LOWER
    num_samples: int = 2000
    reliable: bool = True

    def __call__(self, inference: Inference, *, seed: int, progress: bool | None) -> LogMarginal:
        """The estimate, shifted."""
        method = pv.ImportanceSampling(self.num_samples)
        found = method(inference, seed=seed, progress=progress)
        doubts = {} if self.reliable else {Doubt.OTHER: torch.ones_like(found.reliable)}
        return replace(found, value=found.value + self.shift, bound=self.bound, doubts=doubts)


def checked(seed: int, num_data: int = 40, **estimators: pv.evidence.Estimator) -> CrossCheck:
    """A check against quadrature."""
    y = WEAK.sample(60)
    methods = {"quadrature": Quadrature(), **estimators}
    return cross_check(MODEL, GUIDE, y, methods, num_data=num_data, seed=seed)


@pytest.mark.slow
def test_defaults_agree(seed: int) -> None:
    """Importance sampling, quadrature and the closed form, on factor analysis."""
    check = cross_check(MODEL, GUIDE, WEAK.sample(60), seed=seed)
    assert list(check.results) == ["importance sampling", "quadrature", "closed form"]
    assert len(check.comparisons) == 3
    assert check.consistent, check.summary()
    assert len(check.rows) == 50
    assert [pair.verdict for pair in check.comparisons] == ["agree"] * 3
    assert "If all estimators are right" in check.verdict
    assert "at most once in 1000 times" in check.verdict


@pytest.mark.parametrize("bound", [Bound.LOWER, Bound.TWO_SIDED, Bound.EXACT])
def test_too_high_is_caught(bound: Bound, seed: int) -> None:
    """By 0.05 nats, whatever the estimator calls itself, but an upper bound."""
    check = checked(seed, planted=Planted(0.05, bound))
    assert not check.consistent
    assert check.comparisons[0].verdict == "contradict each other"
    assert "quadrature and planted contradict" in check.summary()


BIASES = [(Bound.UPPER, 1), (Bound.UPPER, -1), (Bound.LOWER, 1), (Bound.LOWER, -1)]


@dataclass(frozen=True)
class Biased:
    """Exact but for a shift of some squared errors, and draws that the error speaks of."""

    bound: Bound
    squares: float
    error: float = 0.8

    def __call__(self, inference: Inference, *, seed: int, progress: bool | None) -> LogMarginal:
        """The shifted answer."""
        exact = ClosedForm()(inference)
        error = torch.full_like(exact.error, self.error)
        value = exact.value + self.squares * error.square()
        return replace(exact, value=value, error=error, bound=self.bound)


@pytest.mark.parametrize(("bound", "sign"), BIASES)
def test_a_bound_has_its_bias_to_one_side(bound: Bound, sign: int, seed: int) -> None:
    """Within its squared error, which its mean over data shows, and to that side alone."""
    allowed = (bound is Bound.UPPER) == (sign > 0)
    check = checked(seed, planted=Biased(bound, 0.9 * sign))
    assert check.consistent == allowed, check.summary()
    assert not checked(seed, planted=Biased(bound, 3.0 * sign)).consistent


@pytest.mark.parametrize("bound", list(Bound))
@pytest.mark.parametrize("other", ["quadrature", "fair"])
def test_five_nats_are_a_contradiction(bound: Bound, other: str, seed: int) -> None:
    """Whatever an estimate calls itself, against quadrature and against a lower bound."""
    y = WEAK.sample(20)
    fair: pv.evidence.Estimator = Quadrature() if other == "quadrature" else Planted(0.0)
    methods: dict[str, pv.evidence.Estimator] = {other: fair, "low": Planted(-5.0, bound)}
    check = cross_check(MODEL, GUIDE, y, methods, seed=seed)
    assert not check.consistent
    assert check.comparisons[0].verdict == "contradict each other"


def test_two_lower_bounds_agree(seed: int) -> None:
    """The other way round: two that are right are not called wrong (once in 1,000 checks)."""
    check = checked(seed, one=Planted(0.0), two=Planted(0.0, num_samples=1000))
    assert check.consistent, check.summary()


def test_few_draws_are_no_contradiction(seed: int) -> None:
    """They are biased low; what they call unreliable is not compared."""
    check = checked(seed, few=pv.ImportanceSampling(5), fair=Planted(0.0, num_samples=150))
    few, fair, _ = check.comparisons
    assert "cannot be compared" in few.verdict
    assert "nan" in few.verdict or not few.compared.any()
    assert fair.contradiction <= fair.limit
    assert check.consistent


def test_nothing_to_compare_is_no_agreement(seed: int) -> None:
    """Silence is not consistency."""
    check = checked(seed, doubtful=Planted(0.0, reliable=False))
    assert not check.contradictions
    assert not check.consistent
    assert "no datum is reliable under both" in check.summary()


def test_differences_are_as_said(seed: int) -> None:
    """Fields against a computation by hand."""
    check = checked(seed, num_data=7, other=Planted(0.0))
    one, other = check.results.values()
    error = (one.error.square() + other.error.square()).sqrt()
    pair = check.comparisons[0]
    torch.testing.assert_close(pair.z, (one.value - other.value) / error)
    torch.testing.assert_close(pair.difference.value, (one.value - other.value).mean())
    torch.testing.assert_close(pair.difference.error, error.square().sum().sqrt() / 7)
    assert pair.limit == pytest.approx(3.836, abs=0.01)  # 8 comparisons, 1 in 1,000, two sides


def test_estimators_have_seeds_of_their_own(seed: int) -> None:
    """The same estimator twice: different draws, so that agreement means something."""
    check = checked(seed, one=Planted(0.0), two=Planted(0.0))
    assert not torch.equal(check.results["one"].value, check.results["two"].value)


def test_many_latents(seed: int) -> None:
    """Four latents and no closed form: a second sampler stands in, and it says why."""

    def model(y: Tensor) -> None:
        import pyro
        import pyro.distributions as dist

        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("y", dist.Poisson(z.exp()).to_event(1), obs=y)

    y = torch.poisson(torch.ones(3, 4))
    guide = pv.Guide(model, pv.LocalParameters(3), example=y)
    guide.fit_rows(y)
    check = cross_check(model, guide, y, seed=seed)
    assert list(check.results) == ["importance sampling", "fewer draws"]
    assert list(check.skipped) == ["closed form"]
    assert "does not apply: pv.ClosedForm() requires" in check.summary()


def test_no_closed_form_is_skipped(seed: int) -> None:
    """By default; an estimator that was asked for must apply."""
    y = torch.arange(4.0)
    guide = pv.Guide(gamma, pv.LocalParameters(4), example=y)
    guide.fit_rows(y)
    check = cross_check(gamma, guide, y, seed=seed)
    assert check.consistent, check.summary()
    assert list(check.skipped) == ["closed form"]
    assert check.skipped["closed form"].endswith("a method log_evidence(*batch)")  # no remedy
    asked: dict[str, pv.evidence.Estimator] = {"quadrature": Quadrature(), "exact": ClosedForm()}
    with pytest.raises(ValueError, match=r"ClosedForm\(\) requires"):
        cross_check(gamma, guide, y, asked, seed=seed)


def test_one_estimator_is_too_few() -> None:
    """There is nothing to compare it with."""
    with pytest.raises(ValueError, match="two estimators"):
        cross_check(MODEL, GUIDE, FACTS_Y, {"quadrature": Quadrature()})
    with pytest.raises(ValueError, match=r"`num_data` must be .* at least 1; got 0"):
        cross_check(MODEL, GUIDE, FACTS_Y, num_data=0)


@pytest.mark.slow
@pytest.mark.parametrize("width", [0.85, 1.5])
def test_skewed_samplers_are_no_contradiction(width: float, seed: int) -> None:
    """Two samplers whose log means are skewed: 30 checks, one false alarm in 1,000 of each.

    Narrow guides have weights with a heavy tail, wide ones many that are next to nothing; what
    is too skewed is doubted, and not compared. That a contradiction is seen, others test.
    """
    methods = {"few": pv.ImportanceSampling(500), "many": pv.ImportanceSampling(2000)}
    model = model_of(FACTS)

    def guide(y: Tensor) -> None:
        posterior = FACTS.posterior(y)
        with pyro.plate("data", len(y)):
            covariance = posterior.covariance_matrix * width**2
            pyro.sample("z", dist.MultivariateNormal(posterior.loc, covariance))

    checks = [
        cross_check(model, guide, FACTS.sample(50), methods, seed=100 * seed + number)
        for number in range(30)
    ]
    assert sum(len(check.contradictions) for check in checks) < 2
    assert sum(int(check.comparisons[0].compared.sum()) for check in checks) > 100


@pytest.mark.slow
def test_false_alarms_are_rare(seed: int) -> None:
    """40 checks of right estimators, one false alarm in 1,000 of each: two would be a wonder."""
    facts = FactorAnalysis(WEAK.loadings, FACTS.mean, FACTS.noise_variance)
    model, guide = model_of(facts), mean_field_program(facts)
    methods: dict[str, pv.evidence.Estimator] = {
        "importance": pv.ImportanceSampling(1000),
        "exact": ClosedForm(),
    }
    alarms = 0
    for number in range(40):
        y = facts.sample(50)
        check = cross_check(model, guide, y, methods, seed=100 * seed + number)
        alarms += len(check.contradictions)
    assert alarms < 2


@pytest.mark.filterwarnings("ignore:log p:UserWarning")
def test_a_guide_that_is_tied_to_rows(seed: int) -> None:
    """Some of its rows are checked, each with its own parameters."""
    y = WEAK.sample(12)
    guide = pv.Guide(MODEL, pv.LocalParameters(12), example=y)
    guide = guide.fit_rows(y)
    check = cross_check(MODEL, guide, y, num_data=5, seed=seed)
    assert len(check.rows) == 5
    ess = check.results["importance sampling"].ess  # a row with another's parameters has fewer
    same = pv.log_marginal_likelihood(MODEL, guide, y).ess[check.rows]
    torch.testing.assert_close(ess, same, rtol=0.3, atol=0)
    whole = pv.log_marginal_likelihood(MODEL, guide, y, pv.ClosedForm())
    torch.testing.assert_close(check.results["closed form"].value, whole.value[check.rows])
