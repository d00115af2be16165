"""Tests per datum: their level under the exact posterior, and what is wrong is caught."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.diagnostics import (
    PosteriorCalibration,
    out_of_distribution,
    posterior_calibration,
    two_sample_test,
)
from pyro_vae.diagnostics import calibration as sbc
from pyro_vae.results import Doubt, Doubts
from pyro_vae.stats import FalseAlarms, holm, rank_p_value
from tests.helpers.factor_analysis import model_of
from tests.helpers.statistics import FACTS, FALSE_ALARM, assert_coverage, assert_mean

pytestmark = pytest.mark.usefixtures("float64")

MODEL = model_of(FACTS)


class Exact(NamedTuple):
    """Independent draws of the posterior."""

    z: Tensor
    ess: Tensor
    doubts: Doubts = {}  # noqa: RUF012 (not changed)


def drawn(y: Tensor, number: int) -> Exact:
    """From the closed form; they are said to be worth far more, so that all may be used."""
    return Exact(FACTS.posterior(y).sample((number,)), torch.full((len(y),), 20.0 * number))


def guide_of(scale: float = 1.0, shift: float = 0.0) -> Callable[[Tensor], None]:
    """The exact posterior, its scales multiplied and its means moved."""

    def guide(y: Tensor) -> None:
        posterior = FACTS.posterior(y)
        covariance = posterior.covariance_matrix * scale**2
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.MultivariateNormal(posterior.loc + shift, covariance))

    return guide


# ------------------------------------------------------------------------------- two samples


def test_two_samples_have_their_level(seed: int) -> None:
    """P-values of the exact posterior are uniform; a wrong guide's are not."""
    y = FACTS.sample(250)
    draws = drawn(y, 40)
    sizes: dict[str, Any] = {"num_samples": 40, "num_permutations": 19}
    exact = two_sample_test(MODEL, guide_of(), y, draws, **sizes, seed=seed)
    assert bool(exact.reliable.all())
    assert_coverage(exact.value > 0.2, 0.8)
    for wrong in (guide_of(0.5), guide_of(1.0, 0.4)):
        result = two_sample_test(MODEL, wrong, y, draws, **sizes, seed=seed)
        with pytest.raises(AssertionError, match="resolution"):
            assert_coverage(result.value > 0.2, 0.8)
        assert float(result.statistic.mean()) > float(exact.statistic.mean())


def weighted(y: Tensor, number: int) -> Exact:
    """Resampled from draws of a wider proposal by their weights, which repeats some of them."""
    posterior = FACTS.posterior(y)
    factor = 1.6
    wide = torch.distributions.MultivariateNormal(
        posterior.loc, posterior.covariance_matrix * factor**2
    )
    z = wide.sample((20 * number,))
    shares = (posterior.log_prob(z) - wide.log_prob(z)).softmax(dim=0)
    chosen = torch.multinomial(shares.T, 4 * number, replacement=True).T
    return Exact(z[chosen, torch.arange(len(y))], 1 / shares.square().sum(dim=0))


def test_draws_that_repeat_keep_the_level(seed: int) -> None:
    """One in 20 effective ones is used. The wrong twin takes each for a draw of its own."""
    y = FACTS.sample(250)
    draws = weighted(y, 60)
    sizes: dict[str, Any] = {"num_samples": 60, "num_permutations": 19}
    result = two_sample_test(MODEL, guide_of(), y, draws, **sizes, seed=seed)
    assert_coverage(result.value > 0.2, 0.8)
    repeated = draws._replace(z=draws.z[:20].repeat(12, 1, 1), ess=torch.full((250,), 1e9))
    twin = two_sample_test(MODEL, guide_of(), y, repeated, **sizes, seed=seed)
    with pytest.raises(AssertionError, match="resolution"):
        assert_coverage(twin.value > 0.2, 0.8)


def test_draws_of_the_ladder_catch_a_missed_mode(seed: int) -> None:
    """A guide on one of two modes has equal weights there; half of the posterior is elsewhere."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
            pyro.sample("y", dist.Normal(z.abs(), 0.1), obs=y)

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y / 1.01, 0.1 / 1.01**0.5))

    y = torch.tensor([1.0, 1.5])
    draws = pv.posterior_draws(model, guide, y, num_samples=400, seed=seed)
    result = two_sample_test(model, guide, y, draws, seed=seed)
    assert result.rejected(FalseAlarms(0.01)).all()
    assert "rejected for 2 of 2 data" in result.summary()


def test_too_few_draws_are_said_to_be(seed: int) -> None:
    """They test nothing, and nothing is rejected; other data are refused."""
    y = FACTS.sample(3)
    draws = drawn(y, 50)
    few = draws._replace(ess=torch.tensor([1e4, 100.0, 10.0]))
    result = two_sample_test(MODEL, guide_of(1.0, 3.0), y, few, seed=seed)
    assert result.reliable.tolist() == [True, False, False]
    assert result.rejected().tolist() == [True, False, False]
    assert result.why_not(2) == [Doubt.FEW_EFFECTIVE_DRAWS.value]
    assert float(result.value[2]) == 1
    size = f"{float(result.statistic[0]):.3g}"  # of what was tested
    assert f"median {size}, largest {size}; 2 data cannot be tested" in result.summary()
    assert "median" not in result[1:].summary()
    with pytest.raises(ValueError, match=r"`draws\.z` must have the shape .* for 2 data"):
        two_sample_test(MODEL, guide_of(), y[:2], draws)


# ----------------------------------------------------------------------------- posterior SBC

REPLICATES = 30


def near(guide: Callable[[Tensor], None], seed: int, num_data: int = 150) -> PosteriorCalibration:
    """Posterior SBC of a guide."""
    y = FACTS.sample(num_data)
    return posterior_calibration(
        MODEL, guide, y, drawn(y, 200), REPLICATES, 19, seed=seed, progress=False
    )


def test_posterior_sbc_has_its_level(seed: int) -> None:
    """Ranks near every datum are uniform under the exact posterior, for any number of draws."""
    result = near(guide_of(), seed)
    assert result.names == ("z[0]", "z[1]", "log p(y | z)")
    assert_mean((result.ranks.double().flatten(0, 1) + 0.5) / 20, 0.5)
    for place in range(3):
        p_values = torch.tensor([rank_p_value(r, 19) for r in result.ranks[..., place]])
        assert_coverage(p_values > 0.2, 0.8)
    assert (result.pooled.adjusted > FALSE_ALARM).all()
    assert bool((result.ess > 2).all() & (result.ess < 20).all())
    adjusted = holm(torch.tensor([rank_p_value(r, 19) for r in result.ranks[0].T]))
    assert float(result.value[0]) == pytest.approx(float(adjusted.min()))


def test_ranks_without_weights_are_the_wrong_twin(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one datum's posterior, where the truth is of that of two: even the exact guide fails.

    Over data of the model these ranks are uniform, as in ordinary SBC: near every datum not.
    """
    weighed = sbc.Ranked.weighed

    def without(*args: object, **options: object) -> Iterator[tuple[Tensor, Tensor]]:
        pieces = weighed(*args, **options)  # type: ignore[arg-type]
        return ((values, 0 * weights) for values, weights in pieces)

    monkeypatch.setattr(sbc.Ranked, "weighed", without)
    result = near(guide_of(), seed)
    assert (result.pooled.adjusted > FALSE_ALARM).all()
    p_values = torch.tensor([rank_p_value(r, 19) for r in result.ranks[..., 0]])
    with pytest.raises(AssertionError, match="resolution"):
        assert_coverage(p_values > 0.2, 0.8)


@pytest.mark.parametrize(
    ("scale", "shift", "words"), [(0.6, 0, "too narrow"), (1.7, 0, "too wide"), (1, 0.4, "high")]
)
def test_posterior_sbc_catches(scale: float, shift: float, words: str, seed: int) -> None:
    """A guide that is wrong near the data, and in what way."""
    result = near(guide_of(scale, shift), seed)
    assert (result.pooled.adjusted[:2] < 0.01).all()  # at most 5e-4 on 14 seeds
    assert words in result.pooled.verdict().split("z[0]")[1].split(",")[0]
    assert int(result.rejected().sum()) > 5
    assert "not calibrated" in result.summary()


def test_a_guide_that_is_wrong_in_one_place_is_caught_there(seed: int) -> None:
    """Right on average over most data: only near the data where it is wrong is it rejected."""

    def scalar(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(()), 3.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    def broken(y: Tensor) -> None:
        variance = 1 / (1 / 9 + 4)
        scale = torch.where(y > 0, 0.4, 1.0) * variance**0.5
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(4 * variance * y, scale))

    y = torch.tensor([-4.0, -3.0, 3.0, 4.0])
    variance = 1 / (1 / 9 + 4)
    z = (4 * variance * y + variance**0.5 * torch.randn(500, 4))[..., None]
    draws = Exact(z, torch.full((4,), 1e4))
    result = posterior_calibration(scalar, broken, y, draws, 200, 49, seed=seed, progress=False)
    assert result.rejected(FalseAlarms(1e-4)).tolist() == [False, False, True, True]
    assert "too narrow" in result.near(3).verdict()


def test_posterior_sbc_says_what_it_cannot_test(seed: int) -> None:
    """Few effective draws; sites that are summed out."""
    y = FACTS.sample(2)
    draws = drawn(y, 50)._replace(ess=torch.tensor([1e4, 100.0]))
    result = posterior_calibration(MODEL, guide_of(), y, draws, 60, 9, seed=seed, progress=False)
    assert result.reliable.tolist() == [True, False]
    assert len(result.pooled.ranks) == 60
    none = result[1:]
    assert "1 datum cannot be tested" in none.summary()
    with pytest.raises(ValueError, match="no datum can be tested"):
        none.plot()


# ----------------------------------------------------------------------- out of distribution


@pytest.mark.parametrize("poor", [1.0, 1.4], ids=["exact", "poor"])
def test_answers_to_data_of_the_model_have_their_level(poor: float, seed: int) -> None:
    """P-values are uniform for any guide, given the reference; data of another model are caught."""
    guide, reference = guide_of(poor), FACTS.sample(1000)
    sizes: dict[str, Any] = {"num_samples": 20, "seed": seed, "progress": False}
    result = out_of_distribution(MODEL, guide, FACTS.sample(300), reference, **sizes)
    assert_mean(result.value, 0.5 + 1 / 1002)
    simulated = out_of_distribution(MODEL, guide, FACTS.sample(300), 1000, **sizes)
    for one in (result, simulated):
        # The reference is shared: its own quantile is off by its binomial error, too.
        assert (
            float((one.value <= 0.1).double().mean()) < 0.1 + 5.2 * (0.09 / 300 + 0.09 / 500) ** 0.5
        )
    other = out_of_distribution(MODEL, guide, 2 * FACTS.sample(300), reference, **sizes)
    assert float((other.value <= 0.1).double().mean()) > 0.3


def test_a_datum_far_from_the_data_is_named(seed: int) -> None:
    """With what is unusual about the answer: the decoder makes nothing like it."""
    y = torch.cat([FACTS.sample(20), torch.tensor([[9.0, -9.0, 9.0, -9.0]])])
    result = out_of_distribution(MODEL, guide_of(), y, 400, num_samples=20, seed=seed)
    assert int(result.statistic.argmax()) == 20
    assert float(result.value[20]) == pytest.approx(1 / 201)
    assert "distortion" in [name for name, _ in result.unusual(20)]
    assert len(result.names) == result.deviations.shape[1] == 7
    with pytest.raises(ValueError, match=r"held-out data with at least 20 rows, .*; got 19"):
        out_of_distribution(MODEL, guide_of(), y, 19)


def test_an_answer_that_never_varies_is_far_out_where_it_does(seed: int) -> None:
    """A guide that is the same for all reference data has no spread to measure by."""

    def guide(y: Tensor) -> None:
        far = (y.abs().amax(dim=-1) > 50).double()[:, None]
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(0 * y[:, :2] + far, 1.0).to_event(1))

    y = torch.cat([FACTS.sample(5), torch.full((1, 4), 1e3)])
    result = out_of_distribution(MODEL, guide, y, 100, num_samples=5, seed=seed)
    assert bool(result.value.isfinite().all())
    assert float(result.value[5]) == pytest.approx(1 / 51)


def test_reference_data_that_the_model_rules_out_are_far_out(seed: int) -> None:
    """They do not count for the mean, and are as far out as a datum like them."""
    y = FACTS.sample(60)
    y[::3] = 1e200
    far = torch.full((1, 4), 1e200)
    p_value = out_of_distribution(MODEL, guide_of(), torch.cat([y[1:3], far]), y, seed=seed).value
    assert float(p_value[2]) == pytest.approx((1 + 10) / 31)
    assert bool((p_value[:2] >= p_value[2]).all())
    with pytest.raises(ValueError, match="zero density to some draw of the guide"):
        out_of_distribution(MODEL, guide_of(), y[:2], far.expand(20, -1), seed=seed)


def test_quantities_of_ones_own_are_ranked(seed: int) -> None:
    """A rising function of a latent has its ranks, a falling one those from the other end."""
    y = FACTS.sample(3)
    own: dict[str, sbc.Quantity] = {
        "rising": lambda draws: draws.z[..., 0].exp(),
        "falling": lambda draws: -draws.z[..., 0],
        "of the data": lambda draws: draws.batch[0][:, 0] - draws.z[..., 0],
    }
    ranks = {}
    for quantities in (own, {}, None):
        result = posterior_calibration(
            MODEL, guide_of(), y, drawn(y, 200), 40, 199, quantities=quantities, seed=seed
        )
        assert result.names[:2] == ("z[0]", "z[1]")
        expected = ["log p(y | z)"] if quantities is None else [*quantities]
        assert list(result.names[2:]) == expected
        assert result.ranks.shape == (3, 40, 2 + len(expected))
        if quantities:
            ranks = dict(zip(result.names, result.ranks.double().unbind(dim=-1), strict=True))
    # Ties with the true latent are broken by chance, within its own weight.
    off = {name: (part - ranks["z[0]"]).abs().median() for name, part in ranks.items()}
    assert off["rising"] < 5
    assert (199 - ranks["falling"] - ranks["z[0]"]).abs().median() < 5
    assert (199 - ranks["of the data"] - ranks["z[0]"]).abs().median() < 5
    assert off["falling"] > 20  # the wrong twin
    assert off["z[1]"] > 20
