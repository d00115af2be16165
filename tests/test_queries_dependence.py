"""Dependence between features: closed forms of the normal, each with a twin."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.formatting import plus_minus
from pyro_vae.queries import (
    Correlation,
    MutualInformation,
    RankCorrelation,
    correlation,
    dependence,
    measures,
)
from pyro_vae.randomness import stream
from tests.helpers.queries import FACTORS, program, vae
from tests.helpers.statistics import FALSE_ALARM, assert_mean

pytestmark = pytest.mark.usefixtures("float64")


def exact_correlation() -> Tensor:
    """Of factor analysis."""
    covariance = FACTORS.marginal.covariance_matrix
    scale = covariance.diagonal().sqrt()
    return covariance / scale / scale.unsqueeze(1)


def pairs(matrix: Tensor) -> Tensor:
    """What is above the diagonal."""
    return matrix[*torch.triu_indices(len(matrix), len(matrix), offset=1)]


def largest_z(result: pv._types.Estimate, exact: Tensor) -> float:
    """Over all pairs."""
    return float((pairs(result.value - exact) / pairs(result.error)).abs().max())


@pytest.mark.parametrize("model", [program, vae()], ids=["program", "vae"])
def test_correlations(model: pv._types.ProgramLike, seed: int) -> None:
    """Those of W W^T + Psi; without the noise they are far off."""
    example = torch.zeros(1, 5)
    result = dependence(model, None, example, Correlation(4000), seed=seed)
    allowed = stats.norm.isf(FALSE_ALARM / 20)
    assert largest_z(result.estimate, exact_correlation()) < allowed
    noiseless = torch.corrcoef(FACTORS.loadings)
    assert largest_z(result.estimate, noiseless) > 5 * allowed


def test_errors_of_correlations() -> None:
    """The spread over repetitions, also where data are far from normal; Fisher's formula is not."""
    runs = 400
    shared, noise = torch.randn(runs, 500, 1), torch.randn(runs, 500, 2)
    y = (shared + 0.7 * noise).exp()  # log-normal: heavy tails, but all moments
    results = [correlation(sample.clamp(max=20.0)) for sample in y]
    values = torch.stack([result.value[0, 1] for result in results])
    errors = torch.stack([result.error[0, 1] for result in results])
    ratio = float(errors.square().mean() / values.var())
    assert 0.7 < ratio < 1.4  # the variance of 400 is known to 7%
    fisher = (1 - values.mean() ** 2) / 500**0.5
    assert float(fisher**2 / values.var()) < 0.7


def test_rank_correlations(seed: int) -> None:
    """6 / pi arcsin(r / 2) for the normal, and the same after exponentiating."""
    result = dependence(program, None, torch.zeros(1, 5), RankCorrelation(10_000), seed=seed)
    exact = 6 / math.pi * (exact_correlation() / 2).asin()
    allowed = float(stats.t.isf(FALSE_ALARM / 20, df=49))
    assert largest_z(result.estimate, exact) < allowed
    assert largest_z(result.estimate, -exact) > 5 * allowed


def test_mutual_information(seed: int) -> None:
    """Minus log(1 - r^2) / 2 for the normal; with few latents and no correction it is off."""
    measure = MutualInformation(num_samples=200, num_latents=1000, num_replicates=20)
    result = dependence(vae(), None, None, measure, seed=seed)
    exact = -(1 - exact_correlation().square()).log() / 2
    allowed = float(stats.t.isf(FALSE_ALARM / 20, df=19))
    assert largest_z(result.estimate, exact) < allowed
    assert float(pairs(result.estimate.error).max()) < 0.05
    assert bool(result.estimate.value.diagonal().isnan().all())
    assert largest_z(result.estimate, torch.zeros(5, 5)) > 2 * allowed
    assert result.measure == "mutual information (nats)"


def narrow(latent_dim: int, sd: float) -> tuple[pv.models.LinearGaussian, float]:
    """Two features with little noise, and their mutual information."""
    torch.manual_seed(1)
    model = pv.models.LinearGaussian(latent_dim, 2)
    with torch.no_grad():
        model.log_noise.fill_(2 * math.log(sd))
    covariance = model.covariance().detach()
    share = covariance[0, 1].square() / covariance.diagonal().prod()
    return model, float(-(1 - share).log() / 2)


def of_the_data(seed: int, name: str) -> int:
    """A wrong twin: the stream of latents is the one that the data are simulated from."""
    return stream(seed, "simulate" if name == "dependence.latents" else name)


def replicates_off(latent_dim: int, seed: int) -> float:
    """By how many of its errors mutual information is off the closed form."""
    model, exact = narrow(latent_dim, 0.1)
    estimate = dependence(model, measure=MutualInformation(100, 500, 60), seed=seed).estimate
    return float((estimate.value - exact)[0, 1] / estimate.error[0, 1])


@pytest.mark.parametrize("latent_dim", [2, 5])
def test_data_are_not_weighed_by_their_own_latents(
    latent_dim: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With little noise a datum's own latents among the draws of the prior would be too good."""
    allowed = float(stats.t.isf(FALSE_ALARM / 2, df=59))
    assert abs(replicates_off(latent_dim, seed)) < allowed
    monkeypatch.setattr(measures, "stream", of_the_data)
    assert replicates_off(latent_dim, seed) > allowed


def test_data_that_no_latents_explain() -> None:
    """Noise so narrow that no draw of the prior is near: nan, and what to do; not infinite."""
    model, _ = narrow(2, 1e-4)
    with pytest.warns(
        UserWarning,
        match="is nan, because some datum has density 0 under all 100 draws .*num_latents=1000",
    ):
        estimate = dependence(model, measure=MutualInformation(20, 100, 3)).estimate
    assert bool(estimate.value.isnan().all())
    assert bool(estimate.error.isnan().all())


def test_independent_features_have_none(seed: int) -> None:
    """Of a decoder that ignores z: every estimate is zero to rounding."""
    decoder = nn.Linear(1, 3)
    with torch.no_grad():
        decoder.weight.zero_()
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=1)
    result = dependence(model, measure=MutualInformation(50, 100, 3), seed=seed)
    torch.testing.assert_close(pairs(result.estimate.value), torch.zeros(3), atol=1e-12, rtol=0)


def test_coins(seed: int) -> None:
    """Two coins that agree: log 2 nats, exactly in the limit of a steep decoder."""
    decoder = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        decoder.weight.copy_(torch.full((2, 1), 1e4))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=1)
    measure = MutualInformation(200, 2000, 20)
    result = dependence(model, measure=measure, names=["left", "right"], seed=seed)
    value, error = (float(pairs(part)) for part in result.estimate)
    assert abs(value - math.log(2)) < max(6 * error, 0.01)
    assert f"left and right: {plus_minus(value, error)}" in result.summary()


def test_ties_share_a_rank() -> None:
    """As SciPy has it."""
    y = torch.randint(0, 4, (300, 2)).double()
    y[:, 1] += y[:, 0]
    from pyro_vae.queries.measures import _ranks

    expected = stats.spearmanr(y.numpy()).statistic
    assert float(correlation(_ranks(y)).value[0, 1]) == pytest.approx(expected)


def test_strongest_pairs() -> None:
    """By size, whatever the sign, with names."""
    result = dependence(vae(), names=list("abcde"), measure=Correlation(2000))
    first = result.strongest(1)[0]
    strengths = exact_correlation().abs().fill_diagonal_(0)
    place = divmod(int(strengths.argmax()), 5)
    assert first[:2] == ("abcde"[min(place)], "abcde"[max(place)])
    assert len(result.strongest()) == 10
    frame = result.to_dataframe()
    assert len(frame) == len(result.names) * (len(result.names) - 1) // 2
    assert tuple(frame.iloc[0]) == first
    assert result.summary(2).startswith("correlation of features under the model\n")


def test_correlations_are_unbiased() -> None:
    """Over seeds, to a bias of order 1 / n."""
    runs = [
        dependence(program, None, torch.zeros(1, 5), Correlation(1000), seed=s).estimate.value
        for s in range(30)
    ]
    assert_mean(torch.stack([pairs(run) for run in runs]), pairs(exact_correlation()))


def steep(slope: float) -> pv._types.ProgramLike:
    """A feature z, and e to a multiple of it."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
            both = torch.stack([z, (slope * z).exp()], dim=-1)
            pyro.sample("y", dist.Normal(both, 0.1).to_event(1), obs=y)

    return model


def test_a_correlation_that_a_few_draws_decide_is_in_doubt(seed: int) -> None:
    """It is 0.001, and of 10,000 draws about 0.1, with a plain error of 0.02; ranks do not mind.

    One such sample in 300 is taken for one without a tail; of e^(4 z), none in 3,000.
    """
    y = torch.zeros(1, 2)
    with pytest.warns(UserWarning, match="few draws dominate the variance of b, .*RankCorr"):
        found = dependence(steep(4.0), None, y, names=["a", "b"], seed=seed)
    assert bool(found.estimate.error[0, 1].isnan())
    assert float(found.estimate.error[0, 0]) < 1e-6  # rounding
    assert found.summary().endswith(", with an unknown error")
    ranks = dependence(steep(4.0), None, y, RankCorrelation(), names=["a", "b"], seed=seed)
    assert 0.95 < float(ranks.estimate.value[0, 1]) < 0.99
    assert float(ranks.estimate.error[0, 1]) < 0.002


def test_an_ordinary_feature_is_in_no_doubt(seed: int) -> None:
    """Neither a slightly skewed one, nor a rare one of two values."""
    y = torch.zeros(1, 2)
    assert bool(dependence(steep(0.2), None, y, seed=seed).estimate.error.isfinite().all())
    rare = (torch.arange(1000) % 300 == 0).double()[:, None].expand(-1, 2)
    assert not bool(measures._heavy(rare).any())


def test_bad_input() -> None:
    """In words."""
    with pytest.raises(ValueError, match="must be 5 names, one per feature; got 1"):
        dependence(vae(), names=["a"])
    with pytest.raises(ValueError, match="pass `data="):
        dependence(program)


@pytest.mark.parametrize("measure", [Correlation(), RankCorrelation(100)])
def test_codes_of_categories_are_no_numbers(measure: Any) -> None:
    """Their correlation is nan, with a warning that names them; mutual information is not."""
    kinds = {"w": pv.data.Categories(("a", "b", "c")), "x": pv.data.Real(), "n": pv.data.Count()}
    frame = {"w": ["a", "b", "c"] * 3, "x": [0.5, 1.0, 2.0] * 3, "n": [0, 1, 4] * 3}
    model = pv.TableVAE.of(pv.data.from_frame(frame, kinds=kinds)).model
    with pytest.warns(UserWarning, match=r"\['w'\] have categories .*MutualInformation"):
        found = dependence(model, measure=measure, names=list(frame)).estimate
    assert found.value[0].isnan().all()
    assert found.value[:, 0].isnan().all()
    assert bool(found.value[1, 2].isfinite())
    few = MutualInformation(num_samples=20, num_latents=20, num_replicates=2)
    assert bool(dependence(model, measure=few, names=list(frame)).estimate.value[0, 1].isfinite())


@pytest.mark.parametrize("measure", [Correlation(200), MutualInformation(20, 100, 3)], ids=repr)
def test_missing_entries_of_the_example_play_no_part(measure: Any) -> None:
    """Only its shape is used."""
    holes = torch.tensor([[0.0, torch.nan, 0.0, torch.nan, 0.0]])
    with_holes = dependence(vae(), None, holes, measure).estimate
    whole = dependence(vae(), None, torch.zeros(1, 5), measure).estimate
    torch.testing.assert_close(pairs(with_holes.value), pairs(whole.value))


@pytest.mark.parametrize(("draws", "logit"), [(60, 0.0), (4000, -4.0)])
def test_rank_correlations_of_a_rare_word_have_an_error(draws: int, logit: float) -> None:
    """Batches without the word are left out; the error is that of independent ranks."""
    net = nn.Linear(1, 2)
    nn.init.zeros_(net.weight)
    with torch.no_grad():
        net.bias.copy_(torch.tensor([0.0, logit]))
    model = pv.models.VAE(net, pv.likelihoods.Bernoulli(), latent_dim=1)
    error = dependence(model, measure=RankCorrelation(draws)).estimate.error[0, 1]
    assert 0.4 < float(error) * draws**0.5 < 1.8  # 1 is exact, and 10 batches or more are known
