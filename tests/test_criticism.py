"""Model criticism: bits, paired differences, tables; both kinds of error against repetition."""

import math
import warnings
from importlib import import_module
from importlib.metadata import version

import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.criticism import (
    bits_per_dimension,
    compare_models,
    elpd_data,
    paired_difference,
)
from pyro_vae.data import Grey, digits
from pyro_vae.evidence import LogMarginal
from pyro_vae.results import Doubt
from tests.helpers.factor_analysis import WEAK, exact_guide, model_of, prior_guide
from tests.helpers.statistics import FACTS, assert_mean

pytestmark = pytest.mark.usefixtures("float64")


def result(value: Tensor, error: Tensor | float = 0.1, doubted: int = 0) -> LogMarginal:
    """Estimates with these values, the first few of them doubted."""
    nan = torch.full_like(value, torch.nan)
    draws = torch.full_like(value, 10, dtype=torch.int64)
    errors = torch.as_tensor(error).expand(value.shape)
    doubts = {Doubt.OTHER: torch.arange(len(value)) < doubted}
    return LogMarginal(value, errors, nan, nan, draws, doubts=doubts)


def test_bits_of_fair_coins() -> None:
    """One bit a coin, exactly."""
    bits = bits_per_dimension(result(torch.full((5,), -16 * math.log(2)), 0.0), 16)
    assert float(bits.value) == pytest.approx(1.0)
    assert float(bits.error) == float(bits.population_error) == 0.0


def test_bits_do_not_depend_on_the_unit() -> None:
    """Scaled data and the scale put back: the bits of the data in their own unit."""
    y, scale = torch.randn(50, 4), torch.tensor([2.0, 0.5, 3.0, 1.0])
    own = torch.distributions.Normal(0.0, scale).log_prob(y * scale).sum(-1)
    scaled = torch.distributions.Normal(0.0, 1.0).log_prob(y).sum(-1)
    there = bits_per_dimension(result(own), 4)
    here = bits_per_dimension(result(scaled), 4, -float(scale.log().sum()))
    by_row = bits_per_dimension(result(scaled), 4, -scale.log().sum().expand(50))
    torch.testing.assert_close(here, there)
    torch.testing.assert_close(by_row, there)
    assert abs(float(bits_per_dimension(result(scaled), 4).value - there.value)) > 0.1


def test_bits_of_a_data_set_in_its_own_unit() -> None:
    """Grey levels uniform on [0, 16] have 4 bits per pixel; stored as y / 16, their density is 1.

    `log_scale` of a data set has the same sign as here, for one number and for a number per row.
    """
    grey = digits(binarization=Grey())
    stored = result(torch.zeros(len(grey.test)))
    for log_scale in (grey.log_scale, grey.log_scales(grey.test)):
        assert float(bits_per_dimension(stored, 64, log_scale).value) == pytest.approx(4.0)


def test_no_dimension_is_refused() -> None:
    """And one datum has no spread."""
    with pytest.raises(ValueError, match="num_dimensions"):
        bits_per_dimension(result(torch.zeros(3)), 0)
    with pytest.raises(ValueError, match="2 or more data; got 1"):
        bits_per_dimension(result(torch.zeros(1)), 2)


def test_errors_of_a_difference() -> None:
    """The population error is the spread over data sets; the Monte Carlo error is apart."""
    shift, spread, noise = 0.3, 0.5, 0.2
    replicates, number = 1000, 30
    hard = 10 * torch.randn(replicates, number)  # common to both models: drops out
    first = hard + shift + spread * torch.randn(replicates, number)
    first = first + noise * torch.randn(replicates, number)
    pairs = [
        paired_difference(result(a, noise), result(b, 0.0))
        for a, b in zip(first, hard, strict=True)
    ]
    means = torch.stack([pair.mean.value for pair in pairs])
    variances = torch.stack([pair.mean.population_error for pair in pairs]).square()
    assert_mean(means, shift)
    assert_mean((means - shift).square() - variances, 0.0)
    assert float(pairs[0].mean.error) == pytest.approx(noise / number**0.5)


def test_unpaired_errors_are_caught() -> None:
    """Wrong twin: errors of two separate means are far wider than those of the difference."""
    hard = 10 * torch.randn(100)
    pair = paired_difference(result(hard + 0.3), result(hard))
    separate = bits_per_dimension(result(hard), 1).population_error
    assert float(separate) > 100 * float(pair.mean.population_error)


def test_unreliable_data_are_counted() -> None:
    """Those of either model."""
    pair = paired_difference(result(torch.zeros(5), doubted=1), result(torch.ones(5), doubted=2))
    assert pair.reliable.tolist() == [False, False, True, True, True]
    assert "2 of 5 data cannot be trusted" in pair.summary()
    assert "-1.000 nats per datum" in pair.summary()


def test_other_data_are_refused() -> None:
    """The same rows are needed."""
    with pytest.raises(ValueError, match="same data in the same order; got 3 and 4 data"):
        paired_difference(result(torch.zeros(3)), result(torch.zeros(4)))


def test_arviz_compares_held_out_densities() -> None:
    """Under ArviZ 1 as our own table does; ArviZ 0.23 would give them a wrong name."""
    hard = 10 * torch.randn(200) - 300
    results = {"better": result(hard + 1, doubted=1), "worse": result(hard + torch.randn(200))}
    if int(version("arviz").split(".")[0]) < 1:
        with pytest.raises(RuntimeError, match=r"leave-one-out or WAIC.*compare_models"):
            elpd_data(results["better"])
        return
    elpds = {name: elpd_data(one) for name, one in results.items()}
    ranked = import_module("arviz").compare(elpds, method="BB-pseudo-BMA", round_to="none")
    ours = compare_models(results)
    assert list(ranked.index) == list(ours.means) == ["better", "worse"]
    assert ranked["elpd"].tolist() == pytest.approx(
        [200 * float(ours.means[name].value) for name in ranked.index]
    )
    value, error = ours.to_best["worse"].mean.value, ours.to_best["worse"].mean.population_error
    assert ranked["elpd_diff"]["worse"] == pytest.approx(200 * float(value))
    # ArviZ divides by the number of data, not by that less one.
    assert ranked["dse"]["worse"] == pytest.approx(200 * float(error) * (199 / 200) ** 0.5)
    assert elpds["better"].kind is None
    assert elpds["better"].warning
    assert elpds["better"].se == pytest.approx(200 * float(ours.means["better"].population_error))
    with pytest.raises(ValueError, match="200 names; got 1"):
        elpd_data(results["better"], names=["a"])


def test_the_true_model_wins(seed: int) -> None:
    """Of two factor analyses the one that made the data; the difference is the exact one."""
    y = WEAK.sample(60)
    method = pv.ImportanceSampling(2000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few unlikely data are beyond this guide
        true = pv.log_marginal_likelihood(model_of(WEAK), prior_guide, y, method, seed=seed)
    wrong = pv.log_marginal_likelihood(model_of(FACTS), exact_guide(FACTS), y, method, seed=seed)
    table = compare_models({"wrong": wrong, "true": true})
    assert list(table.means) == ["true", "wrong"]
    exact = (FACTS.log_evidence(y) - WEAK.log_evidence(y)).mean()
    mean = table.to_best["wrong"].mean
    value, error, population = *mean, mean.population_error
    assert abs(float(value - exact)) < 5 * float(error)  # one false alarm in 2 million
    assert float(population) > float(error)
    assert [float(part) for part in table.to_best["true"].mean] == [0.0, 0.0]
    lines = table.summary().splitlines()
    assert [line.split()[0] for line in lines] == ["model", "true", "wrong"]


def test_one_model_is_refused() -> None:
    """There is nothing to compare it with."""
    with pytest.raises(ValueError, match="at least 2 models"):
        compare_models({"one": result(torch.zeros(3))})
