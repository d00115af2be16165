"""Columns of several kinds in one table; and counts with an exposure."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.likelihoods import (
    Bernoulli,
    Beta,
    Categorical,
    DecodedDispersion,
    DecodedSigma,
    Gaussian,
    LearnedDispersion,
    LearnedSigma,
    Likelihood,
    LogNormal,
    Mixed,
    NegativeBinomial,
    Ordinal,
    Poisson,
    SelfMasking,
    StudentT,
    ZeroInflated,
)
from pyro_vae.storage.parts import build, record

float64 = pytest.mark.usefixtures("float64")
NAN = math.nan


def table() -> dict[str, Likelihood]:
    """Columns of many kinds; some stand apart from others of the same kind, one has a dot."""
    return {
        "age": Gaussian(LearnedSigma(initial=0.5)),
        "sex": Bernoulli(),
        "grade": Categorical(3),
        "size.cm": Gaussian(LearnedSigma(initial=0.5)),
        "visits": Poisson(),
        "colour": Categorical(3),
        "shape": Categorical(4),
        "pain": Ordinal(4),
        "mood": Ordinal(4),
        "income": LogNormal(DecodedSigma()),
        "share": Beta(),
        "genes": ZeroInflated(NegativeBinomial(DecodedDispersion())),
        "days": Poisson(),
        "noise": StudentT(3.0),
    }


def made() -> tuple[Mixed, Tensor, Tensor]:
    """A table's likelihood with parameters of its own for each column, an output, and data."""
    likelihood = Mixed(table())
    with torch.no_grad():
        for value in likelihood.parameters():
            value.add_(0.3 * torch.randn_like(value))
    output = torch.randn(6, likelihood.outputs)
    with torch.no_grad():
        return likelihood, output, likelihood(output).sample()


def by_column(likelihood: Mixed, output: Tensor, y: Tensor, *given: Tensor) -> list[Tensor]:
    """Log density of each column, by the likelihood of that column alone."""
    parts = output.split([column.outputs for column in likelihood], dim=1)
    columns = zip(likelihood, parts, y.unbind(dim=1), strict=True)
    return [column(part, *given).log_prob(data[:, None]) for column, part, data in columns]


@float64
def test_columns_are_apart() -> None:
    """The density of each column is that of its own likelihood, with what that has learned."""
    likelihood, output, y = made()
    assert likelihood.output_shape((14,)) == (output.shape[1],)
    expected = torch.stack(by_column(likelihood, output, y), dim=1)
    features = likelihood.distribution(output)
    torch.testing.assert_close(features.log_prob(y), expected)
    torch.testing.assert_close(likelihood(output).log_prob(y), expected.sum(dim=1))
    widths = [column.outputs for column in likelihood]
    means = [
        column.mean(part)
        for column, part in zip(likelihood, output.split(widths, dim=1), strict=True)
    ]
    torch.testing.assert_close(likelihood.mean(output), torch.cat(means, dim=1))
    others = [list(likelihood)[place] for place in (0, 3)]  # alike, but for what was learned
    assert isinstance(others[0], Gaussian)
    swapped = by_column(Mixed([others[1], *list(likelihood)[1:]]), output, y)
    assert not torch.equal(swapped[0], expected[:, 0])


@float64
def test_gradients_reach_every_column() -> None:
    """Every parameter of every column, and every number of the output."""
    likelihood, output, y = made()
    output.requires_grad_()
    likelihood(output).log_prob(y).sum().backward()
    for name, value in likelihood.named_parameters():
        assert value.grad is not None, name
        assert (value.grad != 0).any(), name
    expected = torch.autograd.grad(torch.cat(by_column(likelihood, output, y)).sum(), output)[0]
    torch.testing.assert_close(output.grad, expected)


@float64
def test_draws() -> None:
    """Draws of a column are those of its own likelihood, by a test of two samples at 1e-6."""
    likelihood, output, _ = made()
    ours = likelihood(output[:1]).sample((5000,))[:, 0]
    parts = output[:1].split([column.outputs for column in likelihood], dim=1)
    for place, (column, part) in enumerate(zip(likelihood, parts, strict=True)):
        theirs = column(part).sample((5000,))[:, 0, 0]
        assert differ(ours[:, place], theirs) > 1e-6 / len(table())
        wrong = column(part + 2.0 * torch.arange(1, part.shape[1] + 1)).sample((5000,))[:, 0, 0]
        assert differ(ours[:, place], wrong) < 1e-6


@float64
def test_missing_columns() -> None:
    """A row with holes has the density of the columns that are left, alone in a Mixed of theirs."""
    likelihood, output, y = made()
    holes = y.masked_fill(torch.rand_like(y) < 0.4, NAN)
    holes[:, 0] = y[:, 0]
    log_prob = likelihood(output).log_prob(holes)
    parts = output.split([column.outputs for column in likelihood], dim=1)
    for row in range(len(y)):
        left = [place for place in range(len(table())) if not holes[row, place].isnan()]
        alone = Mixed([copy.deepcopy(list(likelihood)[place]) for place in left])
        own = torch.cat([parts[place][row] for place in left])[None]
        expected = alone(own).log_prob(y[row, left][None])[0]
        torch.testing.assert_close(log_prob[row], expected)


@float64
def test_parameters_of_alike_columns_train(seed: int) -> None:
    """Each sigma goes to that of its own column, though they are evaluated together."""
    likelihood = Mixed([Gaussian(LearnedSigma()) for _ in range(3)])
    sigmas = torch.tensor([0.5, 1.0, 2.0])
    y = sigmas * torch.randn(2000, 3)
    optimizer = torch.optim.LBFGS(likelihood.parameters(), line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -likelihood(torch.zeros_like(y)).log_prob(y).mean()
        value.backward()
        return value

    optimizer.step(loss)
    learned = [column.sigma(torch.zeros(1, 1))[1].item() for column in likelihood]
    np.testing.assert_allclose(learned, y.square().mean(dim=0).sqrt().numpy(), rtol=1e-4)


def differ(first: Tensor, second: Tensor) -> float:
    """Probability of draws that are as far apart, from the same distribution."""
    p: float = stats.ks_2samp(first.numpy(), second.numpy(), method="asymp").pvalue
    return p


class Shifted(Likelihood):
    """A user's own likelihood that does not say what it was made from."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def distribution(self, output: Tensor, *given: Tensor) -> Any:
        """A Gaussian somewhere else."""
        return Gaussian().distribution(output + self.shift)


def test_likelihoods_of_a_users_own() -> None:
    """They are not taken for alike when they do not say what they are made of."""
    likelihood = Mixed([Shifted(0.0), Shifted(1.0)])
    means = likelihood.mean(torch.zeros(1, 2))
    assert means.tolist() == [[0.0, 1.0]]


@float64
def test_in_a_model(seed: int) -> None:
    """A table with holes: the model checks, trains, evaluates and gives, with a decoder of ours."""
    likelihood = Mixed(table())
    decoder = pv.nets.MLPDecoder(2, likelihood.output_shape((14,)), hidden=(8,))
    model = pv.models.VAE(decoder, likelihood, latent_dim=2)
    y = model.sample(40, seed=seed)
    holes = y.masked_fill(torch.rand_like(y) < 0.3, NAN)
    holes[:, 0] = y[:, 0]
    model.check(holes, likelihood.names)
    pv.likelihoods.start_from(decoder, likelihood.start(holes))
    guide = pv.Guide(model, pv.Encoder(pv.nets.MissingIndicator(pv.nets.MLPEncoder(28, (8,)))))
    before = copy.deepcopy(likelihood.state_dict())
    result = pv.fit(model, guide, holes, num_epochs=3, seed=seed, progress=False)
    assert np.isfinite(result.history.elbo).all()
    after = likelihood.state_dict()
    for name, value in before.items():
        assert not torch.equal(value, after[name]), name
    assert pv.log_weights(model, guide, holes, num_samples=3).isfinite().all()
    assert model.decode(torch.zeros(2, 2)).shape == (2, 14)
    copied = copy.deepcopy(model)
    assert torch.equal(copied.decode(torch.zeros(2, 2)), model.decode(torch.zeros(2, 2)))


def test_starts() -> None:
    """Each column's own, one after the other; holes are left out."""
    likelihood = Mixed({"age": Gaussian(), "grade": Categorical(3), "visits": Poisson()})
    y = torch.tensor([[1.0, 0.0, NAN], [3.0, 2.0, 7.5], [NAN, NAN, 7.5]])
    shares = torch.tensor([0.5, 1 / 6, 0.5])
    expected = torch.cat([torch.tensor([2.0]), shares.log(), torch.tensor([7.75]).log()])
    torch.testing.assert_close(likelihood.start(y), expected)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "visits",
            -1.0,
            r"Poisson takes only whole values of at least 0, which excludes 1 of",
        ),
        ("visits", 0.5, r"use LogNormal for positive amounts"),
        ("colour", 3.0, r"Categorical\(3\) takes only whole values in \[0, 2\]"),
        ("sex", 2.0, r"Bernoulli takes only values in \[0, 1\]"),
        ("share", 1.0, r"Beta takes only values in \(0, 1\).*use ContinuousBernoulli .* move"),
        ("income", 0.0, r"LogNormal takes only values above 0.*below the detection limit"),
    ],
)
def test_wrong_values(column: str, value: float, message: str) -> None:
    """The error names the row and the column, wherever columns alike are, and what to do."""
    likelihood, _, y = made()
    place = likelihood.names.index(column)
    y[4, place], y[2, place] = value, NAN
    with pytest.raises(ValueError, match=rf"row 4, column {place} \('{column}'\)"):
        likelihood.check(y, likelihood.names)
    with pytest.raises(ValueError, match=message):
        likelihood.check(y)


def test_wrong_columns() -> None:
    """Another order, another number, or names that are none."""
    likelihood = Mixed({"age": Gaussian(), "sex": Bernoulli()})
    with pytest.raises(ValueError, match=r"\['age', 'sex'\] in this order; got \['sex', 'age'\]"):
        likelihood.check(torch.zeros(2, 2), ("sex", "age"))
    with pytest.raises(
        ValueError, match=r"'age', 'sex', each datum must have shape \(2,\); got shape \(3,\)"
    ):
        likelihood.check(torch.zeros(2, 3))
    with pytest.raises(
        ValueError, match=r"for 2 columns, .* 2 numbers per row; got shape \(1, 5\)"
    ):
        likelihood(torch.zeros(1, 5))
    with pytest.raises(
        ValueError, match=r"for 2 columns, .* 2 numbers .*: build the decoder with MLPDecoder"
    ):
        pv.models.VAE(pv.nets.MLPDecoder(1, 1), likelihood, 1)
    with pytest.raises(ValueError, match="distinct column names"):
        Mixed([Gaussian(), Gaussian()], names=("age", "age"))
    with pytest.raises(ValueError, match="got 0 likelihoods"):
        Mixed({})
    with pytest.raises(TypeError, match=r"column 'both' must have .* got a Mixed"):
        Mixed({"both": likelihood})


def test_warns_of_constant_columns() -> None:
    """By name, where a sigma is learned."""
    likelihood = Mixed({"age": Gaussian(), "size": Gaussian(LearnedSigma())})
    with pytest.warns(UserWarning, match=r"constant in 1 of 2 columns over 3 rows \('size'\)"):
        likelihood.check(torch.ones(3, 2))


def test_arguments_make_the_same() -> None:
    """A sequence and names, since that is what a file can hold."""
    likelihood, output, y = made()
    again = build(record(likelihood, "it"), "it")
    assert again.names == likelihood.names
    again.load_state_dict(likelihood.state_dict())
    assert torch.equal(again(output).log_prob(y), likelihood(output).log_prob(y))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StudentT(0.0), "`df` must be a finite number above 0 .* got 0"),
        (lambda: StudentT(math.inf), "`df` must be a finite number above 0 .* got inf"),
        (
            lambda: NegativeBinomial(-1.0),
            r"inverse_dispersion` must be positive and finite; got -1",
        ),
        (lambda: LearnedDispersion(initial=1.0, floor=1.0), r"0 <= floor < initial"),
        (lambda: Categorical(1), "`num_categories` must be at least 2; got 1"),
        (lambda: Ordinal(0), "`num_levels` must be at least 2; got 0"),
        (
            lambda: Categorical(3)(torch.zeros(1, 4)),
            r"for 3 categories, .* build the decoder with `outputs=3`",
        ),
        (
            lambda: Beta()(torch.zeros(1, 3)),
            r"for a Beta, the decoder must give 2 numbers per feature.*outputs=2",
        ),
        (
            lambda: ZeroInflated(Poisson())(torch.zeros(1, 3)),
            "for zero-inflated counts, the decoder must give 2 numbers",
        ),
    ],
)
def test_wrong_arguments(make: Callable[[], object], message: str) -> None:
    """With what was given and what should be."""
    with pytest.raises(ValueError, match=message):
        make()


def test_a_model_of_missingness_is_of_all_columns() -> None:
    """Of one column it would be left out; the remedy is followed."""
    with pytest.raises(TypeError, match=r"column 'b' .* got SelfMasking: .*SelfMasking\(Mixed"):
        Mixed({"a": Gaussian(), "b": SelfMasking(Gaussian())})
    SelfMasking(Mixed({"a": Gaussian(), "b": Gaussian()}), (2,))


# ---------------------------------------------------------------------- two levels, ordered cuts


@float64
def test_ordinal_cuts_stay_in_order() -> None:
    """Whatever their parameters; with two levels there is one, and it is a Bernoulli."""
    likelihood = Ordinal(5, shape=(3,))
    with torch.no_grad():
        for value in likelihood.parameters():
            value.add_(10 * torch.randn_like(value))
    assert likelihood.cuts.shape == (3, 4)
    assert (likelihood.cuts.diff(dim=-1) > 0).all()
    torch.testing.assert_close(
        likelihood.probabilities(torch.randn(2, 3)).sum(dim=-1), torch.ones(2, 3)
    )
    output, y = torch.randn(4, 3), torch.randint(2, (4, 3)).double()
    two = Ordinal(2)(output).log_prob(y)
    torch.testing.assert_close(two, Bernoulli()(output).log_prob(y))


def test_categorical_gives_probabilities() -> None:
    """All of them, and the most probable code as its mean."""
    likelihood = Categorical(2)
    output = torch.tensor([[0.0, 3.0, 1.0, 1.0]])  # two features: category 0, then category 1
    expected = torch.tensor([[[0.0, 1.0], [3.0, 1.0]]]).softmax(dim=-1)
    torch.testing.assert_close(likelihood.probabilities(output), expected)
    assert likelihood.mean(output).tolist() == [[1.0, 0.0]]


# ---------------------------------------------------------------------- exposure

COUNTS: dict[str, Callable[[], Likelihood]] = {
    "poisson": Poisson,
    "negative-binomial": lambda: NegativeBinomial(2.5),
    "zero-inflated": lambda: ZeroInflated(NegativeBinomial(DecodedDispersion())),
}
counts = pytest.mark.parametrize("make", COUNTS.values(), ids=COUNTS.keys())


@float64
@counts
@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3)])
def test_exposure(make: Callable[[], Likelihood], shape: tuple[int, ...]) -> None:
    """It multiplies the rate: the same as its logarithm added to what the decoder gives."""
    likelihood, exposure = make(), 0.1 + 5 * torch.rand(shape)
    log_rates, rest = torch.randn(5, 3), torch.randn(5, 3 * (likelihood.outputs - 1))
    y = torch.poisson(torch.full((5, 3), 2.0))
    per_row = exposure[:, None] if exposure.dim() == 1 else exposure
    plain, shifted = (
        torch.cat([rates, rest], dim=1) for rates in (log_rates, log_rates + per_row.log())
    )
    ours = likelihood(plain, exposure)
    torch.testing.assert_close(ours.log_prob(y), likelihood(shifted).log_prob(y))
    torch.testing.assert_close(likelihood.mean(plain, exposure), likelihood.mean(shifted))
    assert not torch.allclose(ours.log_prob(y), likelihood(plain).log_prob(y))


@counts
def test_exposure_in_a_model(make: Callable[[], Likelihood], seed: int) -> None:
    """Data and exposure as the two tensors of the batch, from training to evaluation."""
    likelihood = make()
    decoder = nn.Linear(2, 3 * likelihood.outputs)
    model = pv.models.VAE(decoder, likelihood, latent_dim=2)
    exposure = 1 + 9 * torch.rand(40)
    y = model.sample_data(torch.randn(40, 2), exposure)
    y[0, 1] = NAN
    pv.likelihoods.start_from(decoder, likelihood.start(y, exposure))
    guide = pv.Guide(model, pv.Encoder(First()), example=(y[1:3], exposure[1:3]))
    pv.fit(model, guide, (y, exposure), num_epochs=2, seed=seed, progress=False)
    with_it = pv.log_weights(model, guide, y, exposure, num_samples=3)
    without = pv.log_weights(model, guide, y, torch.ones(40), num_samples=3)
    assert with_it.isfinite().all()
    assert not torch.allclose(with_it, without)
    assert model.decode(torch.zeros(7, 40, 2), exposure).shape == (7, 40, 3)


class First(nn.Module):
    """An encoder that looks at the data and not at the exposure."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.net = pv.nets.MissingIndicator(pv.nets.MLPEncoder(6, (8,)))

    def forward(self, y: Tensor, exposure: Tensor) -> Tensor:
        """The net's answer."""
        answer: Tensor = self.net(y)
        return answer


@float64
def test_start_with_an_exposure() -> None:
    """The rate is all counts by all exposure, of what was observed."""
    y, exposure = torch.tensor([[3.0, NAN], [5.0, 4.0]]), torch.tensor([1.0, 4.0])
    expected = torch.tensor([8.5 / 5, 4.5 / 4]).log()
    torch.testing.assert_close(Poisson().start(y, exposure), expected)


@pytest.mark.parametrize("place", [None, 1, 2])
def test_exposure_of_columns(place: int | None) -> None:
    """In a table an exposure is for the counts; one shaped like the data goes by column."""
    likelihood = Mixed({"age": Gaussian(), "visits": Poisson(), "days": Poisson()})
    output, y, exposure = torch.randn(4, 3), torch.ones(4, 3), torch.full((4,), 2.0)
    if place is not None:
        exposure = torch.ones(4, 3)
        exposure[:, place] = 2.0
    ours = likelihood.distribution(output, exposure).log_prob(y)
    plain = likelihood.distribution(output).log_prob(y)
    changed = [column for column in range(3) if not torch.equal(ours[:, column], plain[:, column])]
    assert changed == ([1, 2] if place is None else [place])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (torch.ones(3),),
            r"for counts of shape \(4, 3\), the exposure must be one tensor.*shapes \[\(3,\)\]",
        ),
        ((torch.ones(4), torch.ones(4)), r"takes 1 tensor"),
        ((torch.ones(4, 2),), r"got 1 tensor of shapes \[\(4, 2\)\]: call model\(y, exposure\)"),
        (
            (torch.tensor([1.0, 0.0, 1.0, 1.0]),),
            "every exposure must be positive; got 0 as the smallest",
        ),
        (
            (torch.tensor([1.0, NAN, 1.0, 1.0]),),
            "every exposure must be positive; got nan as the smallest",
        ),
    ],
)
def test_wrong_exposures(given: tuple[Tensor, ...], message: str) -> None:
    """Of another number of rows or columns, not positive, or more than one."""
    with pytest.raises(ValueError, match=message):
        Poisson()(torch.zeros(4, 3), *given)


# ---------------------------------------------------------------------- digits


@pytest.mark.parametrize("make", [Poisson, lambda: NegativeBinomial(2.5)])
def test_large_counts_in_single_precision(make: Callable[[], Likelihood]) -> None:
    """Counts of a million to 1e-2 nats; log gamma of them in float32 is off by a nat and more."""
    y = torch.tensor([[1e6, 1.001e6, 2e5]])
    output = torch.tensor([[1e6, 1e6, 2e5]]).log()
    likelihood = make()
    ours = likelihood.distribution(output).log_prob(y).double()
    exact = likelihood.distribution(output.double()).log_prob(y.double())
    assert (ours - exact).abs().max() < 1e-2
    naive = y * output - output.exp() - (y + 1).lgamma()
    poisson = Poisson().distribution(output.double()).log_prob(y.double())
    assert (naive - poisson).abs().max() > 0.5


def test_the_poisson_limit() -> None:
    """A negative binomial of little dispersion, a Student's t of many degrees of freedom."""
    output, y = torch.tensor([[1.0, 5.0, 8.0]]), torch.tensor([[3.0, 140.0, 3000.0]])
    ours = NegativeBinomial(1e7).distribution(output).log_prob(y)
    torch.testing.assert_close(ours, Poisson().distribution(output).log_prob(y), rtol=0, atol=1e-3)
    t = StudentT(1e6).distribution(output).log_prob(output + 1)
    torch.testing.assert_close(t, Gaussian().distribution(output).log_prob(output + 1))


@pytest.mark.parametrize("likelihood", [Gaussian(), Mixed({"a": Gaussian(), "b": Bernoulli()})])
def test_no_tensor_is_left_unused(likelihood: Likelihood) -> None:
    """Only counts take an exposure; what else is given would have had no effect."""
    output = torch.zeros(3, 2)
    assert likelihood(output).batch_shape == (3,)
    with pytest.raises(ValueError, match=r"takes 0 tensors besides the data.*ConditionalVAE"):
        likelihood(output, torch.ones(3))
    with pytest.raises(ValueError, match="takes 1 tensor"):
        Mixed({"a": Gaussian(), "b": Poisson()})(output, torch.ones(3), torch.ones(3))
