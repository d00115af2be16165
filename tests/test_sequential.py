"""The state-space model: against a Kalman filter, with series of different lengths and holes."""

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import pyro_vae as pv
from pyro_vae.models import NormalGiven, SequentialVAE, padded
from pyro_vae.registry import arguments_of
from tests.helpers.cases import normal
from tests.helpers.models import assert_compares, assert_works_under_every_guide
from tests.helpers.statistics import FALSE_ALARM, assert_mean

float64 = pytest.mark.usefixtures("float64")
STATES, FEATURES, LENGTH = 2, 3, 5
STEP, NOISE = 0.4, 0.5


def linear(length: int = LENGTH) -> SequentialVAE:
    """z_t | z_{t-1} ~ N(F z + f, 0.4^2), y_t | z_t ~ N(H z + h, 0.5^2)."""
    transition = NormalGiven(nn.Linear(STATES, STATES), STEP)
    likelihood = pv.likelihoods.Gaussian(NOISE)
    return SequentialVAE(transition, nn.Linear(STATES, FEATURES), likelihood, STATES, length)


def shorter(model: SequentialVAE, length: int) -> SequentialVAE:
    """The same model for series of another length."""
    return SequentialVAE(**{**arguments_of(model), "length": length})


def affine(net: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias."""
    assert isinstance(net, nn.Linear)
    return net.weight.detach(), net.bias.detach()


def kalman(model: SequentialVAE, series: Tensor) -> Tensor:
    """Log p of one series by a Kalman filter; what is nan is not seen."""
    forward, drift = affine(model.transition.net)
    emit, offset = affine(model.decoder)
    mean, covariance = torch.zeros(STATES), torch.eye(STATES)
    total = torch.zeros(())
    for time, value in enumerate(series):
        if time > 0:
            mean = forward @ mean + drift
            covariance = forward @ covariance @ forward.T + STEP**2 * torch.eye(STATES)
        seen = ~value.isnan()
        if not seen.any():
            continue
        rows = emit[seen]
        spread = rows @ covariance @ rows.T + NOISE**2 * torch.eye(len(rows))
        predicted = rows @ mean + offset[seen]
        total = total + MultivariateNormal(predicted, spread).log_prob(value[seen])
        gain = covariance @ rows.T @ torch.linalg.inv(spread)
        mean = mean + gain @ (value[seen] - predicted)
        covariance = covariance - gain @ rows @ covariance
    return total


def with_holes(rows: int = 6) -> Tensor:
    """Series of different lengths, with a time and single entries missing."""
    y = torch.randn(rows, LENGTH, FEATURES)
    y[0, 3:] = torch.nan
    y[1, 1:] = torch.nan
    y[2, 2] = torch.nan
    y[3, 0, 1] = y[3, 4, 2] = torch.nan
    y[4, :4] = torch.nan
    return y


def closed_form(model: SequentialVAE, y: Tensor) -> Tensor:
    """Log p of every series, read off the program."""
    guide = pv.Guide(model, pv.GlobalParameters())
    return pv.log_marginal_likelihood(model, guide, y, pv.ClosedForm()).value


# ---------------------------------------------------------------------- exact answers


@float64
def test_the_evidence_is_kalmans() -> None:
    """Of whole series and of those with holes; one with its times reversed is another."""
    model, y = linear(), with_holes()
    for data in (torch.randn(4, LENGTH, FEATURES), y):
        exact = torch.stack([kalman(model, series) for series in data])
        torch.testing.assert_close(closed_form(model, data), exact, rtol=1e-9, atol=1e-9)
    assert (closed_form(model, y.flip(1)) - exact).abs().min() > 1e-3


@float64
def test_simulated_series() -> None:
    """Series that the model itself has made: exact, and by importance sampling in its errors."""
    model = linear(4)
    y = model.sample(5, seed=1)
    exact = torch.stack([kalman(model, series) for series in y])
    torch.testing.assert_close(closed_form(model, y), exact, rtol=1e-9, atol=1e-9)
    guide = pv.Guide(model, pv.LocalParameters(5), pv.FullRankNormal()).fit_rows(y)
    found = pv.log_marginal_likelihood(model, guide, y, pv.ImportanceSampling(2000))
    limit = stats.norm.isf(FALSE_ALARM / 2 / len(y))
    assert ((found.value - exact).abs() < limit * found.error + 1e-6).all()
    mean_field = pv.Guide(model, pv.ExactPosterior())
    bound = pv.elbo(model, mean_field, y, 2000).elbo
    assert ((bound.value - exact) / bound.error).abs().max() > limit  # the ELBO is caught


@float64
def test_a_series_does_not_know_its_padding() -> None:
    """A masked tail gives what the series alone gives, in a model of just its length."""
    model = linear()
    series = [torch.randn(length, FEATURES) for length in (1, 3, 5, 2)]
    together = closed_form(model, padded(series, LENGTH))
    for value, part in zip(together, series, strict=True):
        alone = closed_form(shorter(model, len(part)), part[None])[0]
        assert abs(float(value - alone)) < 1e-9
    zeros = padded(series, LENGTH).nan_to_num(0.0)
    assert (closed_form(model, zeros) - together).abs().max() > 0.1  # zeros are data


@float64
def test_the_program_is_its_equations() -> None:
    """Log p(y, z), written out."""
    model, y, z = linear(), torch.randn(3, LENGTH, FEATURES), torch.randn(4, 3, STATES * LENGTH)
    states = model.states(z)
    expected = normal(states[..., 0, :], 0.0, 1.0).sum(-1)
    steps = normal(states[..., 1:, :], model.transition.net(states[..., :-1, :]), STEP)
    expected = expected + steps.sum((-2, -1))
    expected = expected + normal(y, model.decoder(states), NOISE).sum((-2, -1))
    torch.testing.assert_close(pv.log_joint(model, z, y), expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(model.decode(z), model.decoder(states).detach())


@float64
def test_draws() -> None:
    """The covariance of what is seen at the first time and at the last, by hand."""
    model = linear(3)
    forward, _ = affine(model.transition.net)
    emit, _ = affine(model.decoder)
    y = model.sample(20_000, seed=2)
    assert y.shape == (20_000, 3, FEATURES)
    across = emit @ (forward @ forward).mT @ emit.T  # Cov(y_1, y_3) = H F'^2 H'
    centred = y - y.mean(dim=0)
    products = centred[:, 0, :, None] * centred[:, 2, None, :]
    assert_mean(products, across)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(products, across + 0.2)


@float64
def test_forecast() -> None:
    """Given the last state, the next data have the moments of one more step."""
    model = linear(3)
    (forward, drift), (emit, offset) = affine(model.transition.net), affine(model.decoder)
    z = torch.randn(3 * STATES)
    draws = model.forecast(z.expand(20_000, -1), steps=2, seed=1)
    assert draws.shape == (20_000, 2, FEATURES)
    state = forward @ z[-STATES:] + drift
    assert_mean(draws[:, 0], emit @ state + offset)
    assert_mean(draws[:, 1], emit @ (forward @ state + drift) + offset)
    covariance = STEP**2 * emit @ emit.T + NOISE**2 * torch.eye(FEATURES)
    centred = draws[:, 0] - emit @ state - offset
    assert_mean(centred[:, :, None] * centred[:, None, :], covariance)
    for draws_of in ((), (0,), (5,), (2, 4)):
        states = z.expand(*draws_of, -1)
        assert model.forecast(states, steps=3).shape == (*draws_of, 3, FEATURES)
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 6\).*: pass all latents of a datum"):
        model.forecast(z[1:], steps=1)


@float64
def test_the_future_given_the_past() -> None:
    """Forecasts from posterior draws have the mean that a longer series' posterior has."""
    model, y = linear(3), torch.randn(2, 3, FEATURES)
    guide = pv.Guide(model, pv.ExactPosterior(), pv.FullRankNormal())
    draws = model.forecast(guide.sample(y, 20_000, seed=1), steps=1, seed=2)[:, :, 0]
    longer = shorter(model, 4)
    ahead = pv.Guide(longer, pv.ExactPosterior(), pv.FullRankNormal())
    z = ahead.mean(torch.cat([y, torch.full_like(y[:, :1], torch.nan)], dim=1))
    assert_mean(draws, longer.decode(z)[:, -1])


# ---------------------------------------------------------------------- other likelihoods


@float64
def test_binary_and_decoded_sigma() -> None:
    """Likelihoods that are no location and one sigma, with holes, by hand."""
    z, y = torch.randn(1, 6, 2 * LENGTH), torch.rand(6, LENGTH, FEATURES).round()
    y[0, 3:] = torch.nan
    walk = NormalGiven(nn.Identity(), 1.0)
    binary = SequentialVAE(walk, nn.Linear(2, FEATURES), pv.likelihoods.Bernoulli(), 2, LENGTH)
    logits = binary.decoder(binary.states(z))
    prior = normal(z[..., :2], 0.0, 1.0).sum(-1) + normal(z[..., 2:], z[..., :-2], 1.0).sum(-1)
    terms = nn.functional.logsigmoid((2 * y - 1) * logits).nan_to_num(0.0).sum((-2, -1))
    torch.testing.assert_close(pv.log_joint(binary, z, y), prior + terms)
    gaussian = pv.likelihoods.Gaussian(pv.likelihoods.DecodedSigma())
    scaled = SequentialVAE(walk, nn.Linear(2, 2 * FEATURES), gaussian, 2, LENGTH)
    loc, raw = scaled.decoder(scaled.states(z)).chunk(2, dim=-1)
    terms = normal(y, loc, 0.01 + nn.functional.softplus(raw)).nan_to_num(0.0).sum((-2, -1))
    torch.testing.assert_close(pv.log_joint(scaled, z, y), prior + terms)
    assert scaled.sample(4).shape == (4, LENGTH, FEATURES)


# ---------------------------------------------------------------------- under guides


@pytest.mark.filterwarnings("ignore")
def test_every_guide() -> None:
    """With the recurrent encoder, and holes."""
    model = linear(3)
    y = with_holes()[:, :3]
    y = y[~y.isnan().flatten(1).all(dim=1)]
    assert_works_under_every_guide(
        model, (y,), lambda: pv.nets.GRUEncoder(FEATURES, hidden=4, length=3)
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_comparison() -> None:
    """Guides side by side."""
    y = torch.randn(6, 2, FEATURES)
    assert_compares(linear(2), (y,), lambda: pv.nets.GRUEncoder(FEATURES, hidden=4, length=2))


@pytest.mark.slow
def test_a_recurrent_encoder_learns_to_smooth() -> None:
    """With the model fixed, its ELBO comes near the best of its family, and above the prior's."""
    model = linear(4).double()
    y = model.sample(400, seed=1).masked_fill(torch.rand(400, 4, 1) < 0.2, torch.nan)
    y = y[~y.isnan().flatten(1).all(dim=1)]
    guide = pv.Guide(model, pv.Encoder(pv.nets.GRUEncoder(FEATURES, 32, 4).double()))
    pv.fit(model, guide, y, num_epochs=200, train_model=False, progress=False)
    best = pv.Guide(model, pv.ExactPosterior())
    bounds = [pv.elbo(model, each, y, 400).elbo.value.mean() for each in (guide, best)]
    prior = pv.elbo(model, pv.Guide(model, pv.GlobalParameters()), y, 400).elbo.value.mean()
    assert bounds[1] - 0.15 < bounds[0] < bounds[1] + 0.02
    assert bounds[0] > prior + 1.0


# ---------------------------------------------------------------------- what is refused


def test_padded() -> None:
    """One tensor, nan beyond the ends; dtype and more axes are kept."""
    series = [torch.ones(2, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)]
    whole = padded(series)
    assert whole.dtype == torch.float64
    assert whole.isnan().sum(dim=(1, 2)).tolist() == [6, 0]
    assert padded(series, 6).shape == (2, 6, 3)
    counts = padded([part.long() for part in series])
    torch.testing.assert_close(counts, whole.to(counts), equal_nan=True)
    third = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    for start in (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64)):
        assert torch.equal(padded([start, third])[1, :1], third)
    with pytest.raises(ValueError, match=r"at most length=3 time steps; got .* \[\(2, 3\), \(4"):
        padded(series, 3)
    with pytest.raises(ValueError, match="the same number of features"):
        padded([torch.ones(2, 3), torch.ones(2, 2)])
    with pytest.raises(ValueError, match="got 0 series"):
        padded([])


@pytest.mark.usefixtures("user_param_store")
def test_what_is_refused() -> None:
    """With what was expected and what to do."""
    gaussian = pv.likelihoods.Gaussian()
    walk = NormalGiven(nn.Identity(), 1.0)
    with pytest.raises(ValueError, match="`length` must be the number of time steps"):
        SequentialVAE(walk, nn.Linear(2, 3), gaussian, 2, 0)
    with pytest.raises(ValueError, match=r"must give 2 latents, .* a state has; got 3"):
        SequentialVAE(NormalGiven(nn.Linear(2, 3), 1.0), nn.Linear(2, 3), gaussian, 2, 4)
    masked = pv.likelihoods.SelfMasking(gaussian, 3)
    with pytest.raises(
        ValueError, match=r"must not model which entries are missing, .* got SelfMasking: pass"
    ):
        SequentialVAE(walk, nn.Linear(2, 3), masked, 2, 4)
    with pytest.raises(ValueError, match="cannot decode z"):
        SequentialVAE(walk, nn.Linear(3, 3), gaussian, 2, 4)
    model = linear()
    with pytest.raises(ValueError, match=r"gives, \(5, 3\); got shape \(4, 3\)"):
        model(torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match=r"shape \(batch, length, \.\.\.\)"):
        model.decode(torch.zeros(2, STATES * LENGTH), torch.zeros(2, 4, 1))


def test_arguments_make_the_same() -> None:
    """The arguments that the model was made with."""
    model = linear()
    assert repr(SequentialVAE(**arguments_of(model))) == repr(model)
