"""Every likelihood of the table: density, draws, means, gradients, holes, and what is refused."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.likelihoods import Likelihood, start_from
from pyro_vae.storage.parts import build, record
from tests.helpers.likelihood_cases import CASES, LikelihoodCase, Reference
from tests.helpers.statistics import FALSE_ALARM

float64 = pytest.mark.usefixtures("float64")
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())

NUM_DRAWS = 20_000
NAN = math.nan


def made(case: LikelihoodCase) -> tuple[Likelihood, Tensor, Tensor, Reference]:
    """The likelihood, an output for each row of its data, the data, and the reference."""
    likelihood, y = case.make(), torch.tensor(case.y)
    parts = torch.randn(likelihood.outputs, *y.shape).clamp(-1.5, 1.5)
    parts[-1] += case.shift
    output = torch.cat(list(parts), dim=1)
    return likelihood, output, y, case.reference(*parts.numpy())


def some_missing(y: Tensor) -> Tensor:
    """The same with a hole in every row but the last."""
    holes = y.clone()
    rows = torch.arange(len(y) - 1)
    holes[rows, rows % y.shape[1]] = NAN
    return holes


# ---------------------------------------------------------------------- density, mean, draws


@float64
@every
def test_density(case: LikelihoodCase) -> None:
    """That of SciPy, at the edges of the support too; another output has another one."""
    likelihood, output, y, reference = made(case)
    expected = reference.log_density(y.numpy()).sum(axis=1)
    log_prob = likelihood(output).log_prob(y).detach().numpy()
    np.testing.assert_allclose(log_prob, expected, rtol=1e-9, atol=1e-10)
    other = likelihood(output + 1e-3 * torch.arange(output.shape[1])).log_prob(y).detach().numpy()
    assert (np.abs(other - expected) > 1e-6).any()


@float64
@pytest.mark.parametrize(
    "likelihood",
    [
        pv.likelihoods.Poisson(),
        pv.likelihoods.NegativeBinomial(0.5),
        pv.likelihoods.ZeroInflated(pv.likelihoods.Poisson()),
    ],
    ids=lambda likelihood: type(likelihood).__name__,
)
def test_integer_counts(likelihood: Likelihood) -> None:
    """Counts in an integer tensor have the density of the same floats, as torch's have."""
    output, counts = torch.randn(4, 3 * likelihood.outputs), torch.arange(12).view(4, 3)
    expected = likelihood(output).log_prob(counts.double())
    torch.testing.assert_close(likelihood(output).log_prob(counts), expected)


@float64
@every
def test_mean(case: LikelihoodCase) -> None:
    """That of SciPy."""
    likelihood, output, _, reference = made(case)
    mean = likelihood.mean(output).detach().numpy()
    np.testing.assert_allclose(mean, reference.mean(), rtol=1e-9, atol=1e-12)
    assert likelihood(output).event_shape == mean.shape[1:]


def uniforms(reference: Reference, y: np.ndarray) -> np.ndarray:
    """The distribution function at draws, uniform if it is theirs; spread out over its jumps."""
    upper = reference.cdf(y)
    if not reference.discrete:
        return upper
    return upper - np.random.default_rng(0).random(y.shape) * np.exp(reference.log_density(y))


def assert_uniform(u: np.ndarray) -> None:
    """Kolmogorov and Smirnov's test of each column; a false alarm in a million for all of them."""
    p = min(stats.kstest(column, "uniform").pvalue for column in u.T)
    assert p > FALSE_ALARM / u.shape[1], f"p = {p:.1e}; resolution about 0.02 in probability"


@float64
@every
def test_draws_have_the_density(case: LikelihoodCase) -> None:
    """A goodness-of-fit test of each feature; draws from another output are caught."""
    likelihood, output, _, _ = made(case)
    parts = output[0].view(likelihood.outputs, -1).numpy()
    draws = likelihood(output[:1]).sample((NUM_DRAWS,))[:, 0]
    assert draws.dtype == output.dtype
    assert not draws.requires_grad
    likelihood.check(draws)
    assert_uniform(uniforms(case.reference(*parts), draws.numpy()))
    twin = likelihood(output[:1] + 0.5 * torch.arange(output.shape[1])).sample((NUM_DRAWS,))[:, 0]
    with pytest.raises(AssertionError, match="resolution"):
        assert_uniform(uniforms(case.reference(*parts), twin.numpy()))


# ---------------------------------------------------------------------- shapes


@float64
@every
def test_images(case: LikelihoodCase) -> None:
    """A datum of any shape: outputs are stacked along its first axis."""
    likelihood, output, y, reference = made(case)
    shape = (3, 2, 5)
    tall = output.view(len(y), -1, 3, 1, 1).expand(-1, -1, *shape).reshape(len(y), -1, *shape[1:])
    data = y[:, :, None, None].expand(-1, *shape)
    assert likelihood.output_shape(shape) == tall.shape[1:]
    expected = 10 * reference.log_density(y.numpy()).sum(axis=1)
    log_prob = likelihood(tall).log_prob(data).detach().numpy()
    np.testing.assert_allclose(log_prob, expected, rtol=1e-9, atol=1e-10)
    assert likelihood(tall).sample((7,)).shape == (7, *data.shape)
    assert likelihood.mean(tall).shape == data.shape
    start = likelihood.start(data)
    assert start.shape == tall.shape[1:]
    assert start.isfinite().all()


@float64
@every
def test_more_batch_dimensions(case: LikelihoodCase) -> None:
    """A distribution that is expanded is the same in every copy."""
    likelihood, output, y, _ = made(case)
    features = likelihood(output).expand([5, len(y)])
    assert features.sample().shape == (5, *y.shape)
    expected = likelihood(output).log_prob(y).expand(5, -1)
    torch.testing.assert_close(features.log_prob(y), expected)


# ---------------------------------------------------------------------- extremes


@pytest.mark.parametrize("extreme", [-1e3, -50.0, -1e-4, 0.0, 1e-4, 50.0, 1e3])
@every
def test_gradients_at_extremes(case: LikelihoodCase, extreme: float) -> None:
    """In float32 every log density and gradient is finite, whatever the decoder gives."""
    likelihood = case.make()
    y = torch.tensor([case.extremes]).mT.expand(-1, 2)
    output = torch.full((len(y), 2 * likelihood.outputs), extreme, requires_grad=True)
    mixed = output * torch.tensor([1.0, -1.0]).repeat(likelihood.outputs)
    for given in (output, mixed):
        log_prob = likelihood(given).log_prob(y)
        assert log_prob.dtype == torch.float32
        assert log_prob.isfinite().all()
        parameters = [output, *likelihood.parameters()]
        for gradient in torch.autograd.grad(log_prob.sum(), parameters):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("name", [name for name in CASES if "gaussian" not in name])
def test_single_precision(name: str) -> None:
    """Float32 says what float64 says of the same numbers."""
    case = CASES[name]
    likelihood, output, y, _ = made(case)
    single = likelihood(output).log_prob(y.float())
    double = case.make().double()(output.double()).log_prob(y.float().double())
    torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=2e-4)


@float64
@every
def test_gradients_where_every_output_is_0(case: LikelihoodCase) -> None:
    """Those of a decoder whose last layer starts at 0: the slopes between two points nearby."""
    likelihood, y = case.make(), torch.tensor(case.y)
    output = torch.zeros(len(y), likelihood.outputs * y.shape[1], requires_grad=True)
    for value in (lambda at: likelihood(at).log_prob(y), likelihood.mean):
        if not value(output).requires_grad:  # a code
            continue
        (found,) = torch.autograd.grad(value(output).sum(), output)
        step = 1e-6 * torch.eye(output.shape[1])
        slopes = [(value(output + d) - value(output - d)).sum() / 2e-6 for d in step]
        torch.testing.assert_close(found.sum(dim=0), torch.stack(slopes), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- holes


@float64
@every
def test_missing_entries(case: LikelihoodCase) -> None:
    """A row with holes has the density of a row without these features; gradients have no nan."""
    likelihood, output, y, _ = made(case)
    output.requires_grad_()
    holes = some_missing(y)
    log_prob = likelihood(output).log_prob(holes)
    for row, observed in enumerate(~holes.isnan()):
        left = output[row].view(likelihood.outputs, -1)[:, observed].reshape(1, -1)
        expected = likelihood(left).log_prob(y[row, observed][None])[0]
        torch.testing.assert_close(log_prob[row], expected, rtol=1e-12, atol=1e-12)
    gradient = torch.autograd.grad(log_prob.sum(), output)[0]
    assert gradient.isfinite().all()
    of_feature = gradient.view(len(y), likelihood.outputs, -1)
    assert (of_feature.mT[holes.isnan()] == 0).all()
    assert (log_prob[:-1] != likelihood(output).log_prob(y)[:-1]).all()


# ---------------------------------------------------------------------- data


@every
def test_what_is_refused(case: LikelihoodCase) -> None:
    """Values off the support, with the row, the column's name and a remedy; holes are no values."""
    likelihood = case.make()
    y = torch.tensor(case.y, dtype=torch.float32)
    names = ("height", "width", "depth")
    likelihood.check(some_missing(y), names)
    for value in case.refused:
        wrong = some_missing(y)
        wrong[3, 1] = value
        with pytest.raises(ValueError, match=r"row 3, column 1 \('width'\)"):
            likelihood.check(wrong, names)
        with pytest.raises(ValueError, match=r"row 3, column 1, counted from 0"):
            likelihood.check(wrong)


# ---------------------------------------------------------------------- starts


@float64
@every
def test_starts(case: LikelihoodCase) -> None:
    """Where training starts no output is better by much; holes are left out."""
    likelihood, output, y, _ = made(case)
    with torch.no_grad():
        data = likelihood(output[:1]).sample((400,))[:, 0]
        start = likelihood.start(data)
        holes = torch.where(torch.rand_like(data) < 0.3, NAN, data)
        again = likelihood.start(holes)
        unseen = likelihood.start(data.index_fill(1, torch.tensor([1]), NAN))
    assert start.shape == likelihood.output_shape(tuple(y.shape[1:]))
    assert again.isfinite().all()
    assert unseen.isfinite().all(), "a column without an observed entry has a start, too"
    best = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([best], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -likelihood(best.expand(len(data), -1)).log_prob(data).mean()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        reached = loss_at(likelihood, start, data)
        assert reached < loss_at(likelihood, best, data) + 1.5 / 3
        assert loss_at(likelihood, again, data) < reached + 0.5
        assert reached <= loss_at(likelihood, torch.full_like(start, 3.0), data)


def loss_at(likelihood: Likelihood, output: Tensor, data: Tensor) -> float:
    """Mean of the log density with the same output for all data, with the sign of a loss."""
    return float(-likelihood(output.expand(len(data), -1)).log_prob(data).mean())


@every
def test_a_decoder_starts_there(case: LikelihoodCase) -> None:
    """The bias of its last layer is the start; the rest of the decoder is left alone."""
    likelihood = case.make()
    start = likelihood.start(torch.tensor(case.y, dtype=torch.float32))
    decoder = pv.nets.MLPDecoder(2, 3, outputs=likelihood.outputs)
    start_from(decoder, start)
    assert any(torch.equal(value, start) for value in decoder.parameters())
    with pytest.raises(ValueError, match=r"bias of 4 numbers, .*; got no bias"):
        start_from(torch.nn.ReLU(), torch.zeros(4))


# ---------------------------------------------------------------------- in a model


@every
def test_training(case: LikelihoodCase, seed: int) -> None:
    """A VAE on data with holes takes steps under any likelihood, and all its numbers are finite."""
    likelihood = case.make()
    decoder = pv.nets.MLPDecoder(2, 3, hidden=(8,), outputs=likelihood.outputs)
    model = pv.models.VAE(decoder, likelihood, latent_dim=2)
    y = some_missing(model.sample(24, seed=seed))
    assert y.dtype == torch.float32
    model.check(y)
    start_from(decoder, likelihood.start(y))
    before = [value.detach().clone() for value in likelihood.parameters()]
    guide = pv.Guide(model, pv.Encoder(pv.nets.MissingIndicator(pv.nets.MLPEncoder(6, (8,)))))
    result = pv.fit(model, guide, y, num_epochs=2, seed=seed, progress=False)
    assert np.isfinite(result.history.elbo).all()
    for old, new in zip(before, likelihood.parameters(), strict=True):
        assert new.isfinite().all()
        assert not torch.equal(old, new)
    assert model.decode(torch.zeros(5, 2)).shape == (5, 3)


@pytest.mark.slow
@float64
@every
def test_evidence_with_holes(case: LikelihoodCase, seed: int) -> None:
    """Log p of data with holes is the integral over z of SciPy's density of what was observed."""
    likelihood = case.make()
    decoder = nn.Linear(1, 3 * likelihood.outputs)
    model = pv.models.VAE(decoder, likelihood, latent_dim=1)
    y = some_missing(model.sample(4, seed=seed))
    guide = pv.Guide(model, pv.GlobalParameters())
    ours = pv.log_marginal_likelihood(model, guide, y, pv.Quadrature()).value
    expected = [log_evidence(case, decoder, row) for row in y]
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5)


def log_evidence(case: LikelihoodCase, decoder: nn.Linear, row: Tensor) -> float:
    """By the trapezoidal rule, from the reference at the entries that were observed."""
    grid = torch.linspace(-9, 9, 4001)
    with torch.no_grad():
        parts = decoder(grid[:, None]).view(len(grid), -1, 3).unbind(dim=1)
    filled = np.broadcast_to(row.nan_to_num(nan=float(case.y[0, 1])).numpy(), (len(grid), 3))
    log_density = case.reference(*(part.numpy() for part in parts)).log_density(filled)
    log_joint = log_density[:, ~row.isnan().numpy()].sum(axis=1) + stats.norm.logpdf(grid.numpy())
    return float(special.logsumexp(log_joint) + math.log(18 / 4000))


@every
def test_arguments_make_the_same(case: LikelihoodCase) -> None:
    """Its arguments, recorded and made again, give the same likelihood."""
    likelihood = case.make()
    recorded = record(likelihood, "likelihood")
    again = build(recorded, "likelihood")
    assert record(again, "likelihood") == recorded
    again.load_state_dict(likelihood.state_dict())
    y = torch.tensor(case.y, dtype=torch.float32)
    output = torch.randn(len(y), 3 * likelihood.outputs)
    assert torch.equal(again(output).log_prob(y), likelihood(output).log_prob(y))
