"""Missing entries: closed-form conditionals are met, and a guide alone does not meet them."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.queries import Imputation, impute, reconstruction_draws
from pyro_vae.stats.checks import weighted_mean
from tests.helpers.queries import conditional, guide, program, vae, with_holes
from tests.helpers.statistics import FALSE_ALARM, assert_coverage, assert_mean

pytestmark = pytest.mark.usefixtures("float64")

DRAWS = pv.ImportanceSampling(2000)


def largest_z(filled: Imputation, y: Tensor) -> tuple[float, float]:
    """Largest deviation of a mean of missing entries in its errors, and what chance allows."""
    exact = torch.stack([conditional(row)[0] for row in y])
    z = ((filled.value - exact) / filled.error)[filled.missing].abs()
    return float(z.max()), float(stats.norm.isf(FALSE_ALARM / 2 / z.numel()))


@pytest.mark.parametrize("model", [program, vae()], ids=["program", "vae"])
def test_conditional_means(model: Any, seed: int) -> None:
    """With 30% removed, every mean is the closed form's within its error; so is the spread."""
    _, y = with_holes(40)
    filled = impute(model, guide(model), y, estimator=DRAWS, seed=seed)
    assert filled.reliable.double().mean() > 0.8  # the guide is mean-field
    worst, allowed = largest_z(filled, y)
    assert worst < allowed
    exact = torch.stack([conditional(row)[1].diagonal() for row in y])[filled.missing].sqrt()
    value, error = (part[filled.missing] for part in filled.sd)
    assert float(((value - exact) / error).abs().max()) < 1.2 * allowed  # skewed for some


@pytest.mark.parametrize("proposal", [pv.Fitted(), pv.Widened(2.0)], ids=["fitted", "widened"])
def test_other_proposals(proposal: Any, seed: int) -> None:
    """A guide that is off is put right by a fit to every row; one too narrow by widening it."""
    _, y = with_holes(25)
    off = guide(program, width=0.7, shift=0.3)
    method = pv.ImportanceSampling(2000, proposal=proposal)
    worst, allowed = largest_z(impute(program, off, y, estimator=method, seed=seed), y)
    assert worst < allowed


def test_no_guide(seed: int) -> None:
    """A proposal is then fitted to every row."""
    _, y = with_holes(15)
    filled = impute(vae(), None, y, seed=seed)
    worst, allowed = largest_z(filled, y)
    assert worst < allowed
    assert bool(filled.reliable.all())
    assert float(filled.ess[filled.missing.any(dim=1)].min()) > 1500


def test_without_weights_it_is_caught(seed: int) -> None:
    """Wrong twin: what the guide decodes to, unweighted, is off by many errors where it is off."""
    _, y = with_holes(25)
    off = guide(program, shift=0.5)
    filled = impute(program, off, y, estimator=DRAWS, seed=seed)
    worst, allowed = largest_z(filled, y)
    assert worst < allowed
    draws = reconstruction_draws(program, off, y, 2000, seed=seed)
    exact = torch.stack([conditional(row)[0] for row in y])
    z = (draws.mean(dim=0) - exact) / (draws.std(dim=0) / len(draws) ** 0.5)
    assert float(z[y.isnan()].abs().median()) > 3 * allowed / 2


def test_draws_are_of_the_conditional(seed: int) -> None:
    """Intervals of the draws hold the entries that were removed; correlations are kept."""
    truth, y = with_holes(160, share=0.5)
    filled = impute(vae(), guide(vae()), y, 200, estimator=pv.ImportanceSampling(500), seed=seed)
    exact = [conditional(row) for row in y]
    # One missing entry a row: those of one row go together.
    rows, columns = filled.missing.nonzero().T
    first = torch.cat([torch.tensor([True]), rows[1:] != rows[:-1]])
    rows, columns = rows[first], columns[first]
    low, high = filled.interval(0.9)
    hits = ((low <= truth) & (truth <= high))[rows, columns]
    assert_coverage(hits, 0.9 - 0.9 / 200)  # quantiles of 200 draws fall short by about 1/200
    drawn = filled.draws[:, rows, columns]
    spread = torch.stack([exact[n][1][c, c] for n, c in zip(rows.tolist(), columns, strict=True)])
    mean = torch.stack([exact[n][0][c] for n, c in zip(rows.tolist(), columns, strict=True)])
    assert_mean(((drawn - mean) / spread.sqrt()).square().mean(dim=0), 1.0)


def test_pairs_keep_their_covariance(seed: int) -> None:
    """Two missing entries of one row are drawn together; apart, as by the means, they are not."""
    row = torch.tensor([[0.3, 0.1, torch.nan, torch.nan, 1.2]])
    mean, covariance = conditional(row[0])
    filled = impute(program, guide(program), row.repeat(40, 1), 200, seed=seed)
    left, right = (filled.draws[:, :, c] - mean[c] for c in (2, 3))
    assert abs(float(covariance[2, 3])) > 0.1
    assert_mean((left * right).mean(dim=0), float(covariance[2, 3]))
    shuffled = right[torch.randperm(200)]
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean((left * shuffled).mean(dim=0), float(covariance[2, 3]))


def test_observed_entries_stay(seed: int) -> None:
    """Bit for bit, with no error; rows without holes have no weights."""
    y = torch.tensor([[0.1, torch.nan, 0.3, 0.4, 0.5], [1.0, 2.0, 3.0, 4.0, 5.0]])
    filled = impute(vae(), guide(vae()), y, 7, seed=seed)
    assert bool((filled.draws[:, 1] == y[1]).all())
    assert bool((filled.draws[:, 0, 2:] == y[0, 2:]).all())
    assert bool((filled.error[~filled.missing] == 0).all())
    assert bool((filled.sd.value[~filled.missing] == 0).all())
    assert filled.ess.isnan().tolist() == [False, True]
    assert filled.reliable.tolist() == [True, True]
    assert "missing entries: 1 (10.0%), in 1 of 2 rows" in filled.summary()
    complete = impute(vae(), None, y[1:], 3)
    assert bool((complete.draws == y[1]).all())
    assert "missing entries: 0 (0.0%)" in complete.summary()


def test_a_row_depends_on_itself_alone(seed: int) -> None:
    """Not on the rows beside it, nor on their order."""
    _, y = with_holes(12)
    whole = impute(vae(), guide(vae()), y, 5, seed=seed)
    again = impute(vae(), guide(vae()), y.flip(0), 5, seed=seed)
    torch.testing.assert_close(whole.draws, again.draws.flip(1))
    torch.testing.assert_close(whole.value, again.value.flip(0))


def test_a_hopeless_proposal_says_so(seed: int) -> None:
    """A guide that is far too narrow: rows are doubted, in words."""
    _, y = with_holes(20)
    narrow = guide(program, width=0.2)
    filled = impute(program, narrow, y, estimator=DRAWS, seed=seed)
    holed = filled.missing.any(dim=1)
    assert float((~filled.reliable)[holed].double().mean()) > 0.5
    doubted = (~filled.reliable).nonzero().flatten().tolist()
    assert all(filled.why_not(row) for row in doubted)
    assert any("few weights" in reason for row in doubted for reason in filled.why_not(row))
    assert "cannot be trusted (a few weights" in filled.summary()


def test_a_row_that_the_model_rules_out_is_doubted() -> None:
    """Its weights are all 0, so that all draws count equally; other rows are imputed as ever."""
    _, y = with_holes(4)
    far = torch.tensor([[1e200, torch.nan, 0.0, 0.0, 0.0]])
    filled = impute(vae(), guide(vae()), torch.cat([y, far]), 5)
    assert bool(filled.draws.isfinite().all())
    assert not bool(filled.reliable[-1])
    torch.testing.assert_close(filled.value[:4], impute(vae(), guide(vae()), y, 5).value)
    curve = pv.queries.conditional_density(vae(), guide(vae()), far, 1)
    assert bool(curve.value.isfinite().all() and not curve.reliable.any())


def test_counts_and_images(seed: int) -> None:
    """Binary images: draws are zero or one, and the most frequent value is one of them."""
    decoder = nn.Sequential(nn.Linear(2, 6), nn.Unflatten(1, (1, 2, 3)))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=2)
    y = torch.ones(4, 1, 2, 3)
    y[:, 0, 1, 1] = torch.nan
    filled = impute(model, None, y, 20, seed=seed)
    assert filled.draws.shape == (20, 4, 1, 2, 3)
    assert set(filled.draws.unique().tolist()) <= {0.0, 1.0}
    assert set(filled.most_frequent.unique().tolist()) <= {0.0, 1.0}
    p, error = filled.estimate
    assert bool(((p[..., 1, 1] > 0) & (p[..., 1, 1] < 1) & (error[..., 1, 1] > 0)).all())


def test_encoders_that_refuse() -> None:
    """The remedy is named: an indicator, or no guide."""
    model = vae()
    blind = pv.Guide(model, pv.Encoder(nn.Linear(5, 4)))
    with pytest.raises(ValueError, match="MissingIndicator") as caught:
        impute(model, blind, torch.tensor([[torch.nan, 1.0, 1.0, 1.0, 1.0]]))
    assert any("pass None" in note for note in caught.value.__notes__)


def test_programs_that_refuse() -> None:
    """A program that was not written for holes is told how."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z.expand(-1, 2), 1.0).to_event(1), obs=y)

    with pytest.raises(ValueError, match=r"PartlyObserved.*\.to_event"):
        impute(model, None, torch.tensor([[math.nan, 1.0]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "at least 1"),
        ({"estimator": pv.ImportanceSampling(10)}, "at least 30 draws"),
        ({"estimator": pv.ImportanceSampling(100, until=pv.ErrorTarget(0.1))}, "fixed number"),
    ],
)
def test_bad_arguments(arguments: Any, message: str) -> None:
    """In words."""
    with pytest.raises(ValueError, match=message):
        impute(vae(), None, torch.tensor([[torch.nan, 1.0, 1.0, 1.0, 1.0]]), **arguments)


def test_rows_with_nothing_observed() -> None:
    """Are refused, and a bad level of an interval, too."""
    with pytest.raises(ValueError, match=r"nan|observed"):
        impute(vae(), None, torch.full((2, 5), torch.nan))
    filled = impute(vae(), None, torch.tensor([[torch.nan, 1.0, 1.0, 1.0, 1.0]]), 3)
    with pytest.raises(ValueError, match="between 0 and 1"):
        filled.interval(1.0)


def test_errors_of_weighted_means() -> None:
    """By hand; of equal shares the textbook's; and the same wherever the zero of the unit is."""
    values, shares = torch.tensor([1.0, 3.0]), torch.tensor([0.25, 0.75])
    mean, error = weighted_mean(values, shares)
    assert float(mean) == pytest.approx(2.5)
    assert float(error) == pytest.approx(math.hypot(0.25 * 1.5, 0.75 * 0.5))
    draws = torch.randn(500, dtype=torch.float64)
    equal = torch.full((500,), 1 / 500, dtype=torch.float64)
    for offset in (0.0, 1e3):
        estimate = weighted_mean(draws + offset, equal)
        exact = draws.std(correction=0) / math.sqrt(500)
        torch.testing.assert_close(estimate.error, exact, rtol=1e-9, atol=0)


def test_spread_and_its_error_do_not_depend_on_the_zero_of_the_unit(seed: int) -> None:
    """A column that lies a thousand units off is filled as well as one that does not."""

    def model_at(offset: float) -> Any:
        def model(y: Tensor) -> None:
            with pyro.plate("data", len(y)):
                z = pyro.sample("z", dist.Normal(y.new_zeros(1), 1.0).to_event(1))
                features = pv.PartlyObserved(dist.Normal(offset + z.expand(-1, 2), 0.5))
                pyro.sample("y", features.to_event(1), obs=y)

        return model

    y = torch.tensor([[0.7, torch.nan]], dtype=torch.float64)
    near, far = (impute(model_at(at), None, y + at, seed=seed).sd for at in (0.0, 1e3))
    exact = math.sqrt(1 / (1 + 4) + 0.25)
    for value, error in (near, far):
        assert abs(float(value[0, 1]) - exact) < 5 * float(error[0, 1])
    for one, other in zip(near, far, strict=True):
        assert float(other[0, 1]) == pytest.approx(float(one[0, 1]), rel=0.2)


def of_draws(draws: Tensor) -> Imputation:
    """An imputation with these draws `(samples, rows)` of one column, all of it missing."""
    draws = draws[..., None]
    value, nothing = draws.mean(dim=0), torch.full((draws.shape[1],), torch.nan)
    sd = pv.Estimate(draws.std(dim=0), torch.zeros_like(value))
    missing = torch.ones_like(value, dtype=torch.bool)
    return Imputation(draws, value, torch.zeros_like(value), sd, missing, nothing, nothing)


@pytest.mark.parametrize("number", [5, 10, 38, 39, 100])
def test_intervals_of_few_draws_hold_another(number: int) -> None:
    """The entry is like one more draw: 95% of the intervals hold it, whatever their number."""
    draws = torch.randn(number + 1, 4000)
    low, high = of_draws(draws[1:]).interval()[..., 0]
    assert_coverage((low <= draws[0]) & (draws[0] <= high))


@pytest.mark.parametrize("number", [10, 100])
def test_plain_quantiles_hold_too_few(number: int) -> None:
    """The wrong twin: quantiles of the draws themselves."""
    draws = torch.randn(number + 1, 40_000)
    low, high = draws[1:].quantile(torch.tensor([0.025, 0.975]), dim=0)
    with pytest.raises(AssertionError):
        assert_coverage((low <= draws[0]) & (draws[0] <= high))


def test_entries_have_intervals_of_the_level_asked_for() -> None:
    """Of 99 draws, half of further ones lie between the 25th and the 75th: these, in the unit."""
    frame = pd.DataFrame({"a": [1.0, 2.0, None, 4.0] * 10, "b": [30.0, 10.0, 20.0, 60.0] * 10})
    filled = pv.TableVAE.of(frame).impute(frame, 99, progress=False)
    entries = filled.entries(level=0.5)
    wide, table = filled.entries(), filled.table
    assert table is not None
    sorted_draws = filled.draws.double().sort(dim=0).values
    for end, place in (("low", 24), ("high", 74)):
        expected = table.decode(sorted_draws[place])["a"][frame["a"].isna()]
        np.testing.assert_allclose(entries[end], expected, rtol=1e-6)
    assert (wide["low"] < entries["low"]).all()
    assert (wide["high"] > entries["high"]).all()
