"""Evidence: input that does not fit is refused, and numbers that fail have a culprit."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.evidence import evaluate
from pyro_vae.evidence.weights import require_numbers
from tests.helpers.factor_analysis import (
    mean_field_program,
    model_of,
    prior_guide,
)
from tests.helpers.statistics import FACTS, FACTS_Y
from tests.helpers.training import OverTheBatch, layered_vae

pytestmark = pytest.mark.usefixtures("float64")

MODEL = model_of(FACTS)
MEAN_FIELD = mean_field_program(FACTS)


def poisoned(module: nn.Module) -> None:
    """Makes the last bias nan, as a step of training that diverged does."""
    with torch.no_grad():
        list(module.parameters())[-1].fill_(torch.nan)


@pytest.mark.parametrize("question", [pv.evaluate, pv.encode, pv.inference_gap])
@pytest.mark.parametrize("part", ["model", "guide"])
def test_nan_has_a_culprit(question: Callable[..., Any], part: str) -> None:
    """Parameters that are nan are named, whatever is asked."""
    model, guide = layered_vae(pv.likelihoods.Gaussian())
    poisoned(model.decoder if part == "model" else guide)
    with pytest.raises(
        FloatingPointError, match=rf"parameter '.*bias' of the {part} has nan entries"
    ):
        question(model, guide, torch.ones(2, 3))


MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda out: out.sum(dim=0, keepdim=True).expand_as(out),
    "centred": lambda out: out - out.mean(dim=0),
    "neighbour": lambda out: out + 0.1 * out.roll(1, dims=0),
    "earlier": lambda out: out.cumsum(dim=0),
    "of many": lambda out: out - out.mean(dim=0) if len(out) > 3 else out,
}


@pytest.mark.parametrize("name", MIXES)
def test_rows_that_are_mixed(name: str) -> None:
    """A datum has no density of its own; a twin whose rows are apart passes, with noise too."""
    y = torch.randn(5, 3)
    for change in (MIXES[name], torch.tanh, lambda out: out + torch.randn_like(out)):
        model = pv.models.VAE(OverTheBatch(change), pv.likelihoods.Gaussian(), 2)
        guide, is_mixed = pv.Guide(model, pv.GlobalParameters()), change is MIXES[name]
        refused = pytest.raises(ValueError, match="the program mixes rows")
        with refused if is_mixed else nullcontext():
            pv.elbo(model, guide, y, 3)


def test_a_program_is_asked_again_when_a_layer_is_replaced() -> None:
    """That its rows are apart is known of the layers that it had."""
    model = pv.models.VAE(OverTheBatch(torch.tanh), pv.likelihoods.Gaussian(), 2)
    guide, y = pv.Guide(model, pv.GlobalParameters()), torch.randn(5, 3)
    for _ in range(2):
        pv.elbo(model, guide, y, 3)
    model.decoder = OverTheBatch(MIXES["centred"])
    with pytest.raises(ValueError, match="the program mixes rows"):
        pv.elbo(model, guide, y, 3)


def test_nan_of_one_datum_is_found() -> None:
    """In a program written by hand, far from the first chunk: counted from the first row."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = torch.where(y > 5, torch.nan, z[:, :1])
            pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)

    y = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    with pytest.raises(FloatingPointError, match="log_likelihood is nan for particle 0 of datum 3"):
        evaluate(model, prior_guide, y, pv.ImportanceSampling(5, memory=1e-6))
    with pytest.raises(FloatingPointError, match="datum 0"):
        evaluate(model, prior_guide, y[[3]], pv.ImportanceSampling(5))


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("log_guide", "finite"), ("log_prior", "finite or minus infinity")],
)
def test_the_message_says_what_a_log_density_may_be(name: str, allowed: str) -> None:
    """A draw can have density 0 under the model, but not under the guide that it came from."""
    value, z = torch.tensor([[0.0, -torch.inf]]), torch.zeros(1, 2, 1)
    refused = pytest.raises(FloatingPointError, match="is -inf for particle 0 of datum 1")
    with refused if name == "log_guide" else nullcontext():
        require_numbers(name, value, z, range(2))
    with pytest.raises(FloatingPointError, match=f"it must be {allowed}: check"):
        require_numbers(name, value.abs(), z, range(2))


def infinite(value: float) -> Callable[[Tensor], None]:
    """A program whose log likelihood has this value for every datum."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            delta = dist.Delta(y, log_density=torch.full((len(y),), value), event_dim=1)
            pyro.sample("y", delta, obs=y)

    return model


def test_infinite_densities() -> None:
    """Plus infinity is no density; minus infinity is a weight of 0, and log p(y) too then."""
    with pytest.raises(FloatingPointError, match="log_likelihood is inf"):
        evaluate(infinite(torch.inf), prior_guide, FACTS_Y, pv.ImportanceSampling(50))
    result = evaluate(infinite(-torch.inf), prior_guide, FACTS_Y, pv.ImportanceSampling(50))
    assert result.log_marginal.value.tolist() == [-torch.inf]
    assert not result.log_marginal.reliable.any()


def missing_site(y: Tensor) -> None:
    """A guide that has no z."""
    with pyro.plate("data", len(y)):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def extra_site(y: Tensor) -> None:
    """A guide that has a site too many."""
    prior_guide(y)
    with pyro.plate("more", len(y)):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def no_plate(y: Tensor) -> None:
    """A guide that counts all data as one."""
    pyro.sample("z", dist.Normal(torch.zeros(len(y), 2), 1.0).to_event(2))


def other_rows() -> pv.Guide:
    """A table of nine rows."""
    return pv.Guide(MODEL, pv.LocalParameters(9), example=FACTS_Y)


def other_model() -> pv.Guide:
    """A guide of another model, with three latents."""
    model = pv.models.VAE(nn.Linear(3, 4), pv.likelihoods.Gaussian(), latent_dim=3)
    return pv.Guide(model, pv.GlobalParameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: missing_site, r"lacks \['z'\]"),
        (lambda: extra_site, "samples site 'x', but the latent sites of the model are"),
        (lambda: no_plate, "sample this site inside"),
        (other_rows, "fit_rows"),
        (other_model, r"made for a model whose latent sites have the sizes \{'z': 3\}"),
    ],
    ids=["missing", "extra", "no-plate", "other-rows", "other-model"],
)
def test_guide_that_does_not_fit(make: Callable[[], Any], message: str) -> None:
    """What is missing or too much, by its name, and what to do."""
    with pytest.raises(ValueError, match=message):
        pv.elbo(MODEL, make(), FACTS_Y, 5)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(0, 3), "at least one row"),
        (torch.tensor([[0, torch.nan, 0], [0, 0, 0]]), "MissingIndicator"),
        (torch.tensor([[0, torch.inf, 0], [0, 0, 0]]), "row 0, column 1"),
        (
            torch.tensor([[0, 0, 0], [torch.nan] * 3]),
            "no entry is observed in 1 of 2 rows of tensor 0 of the data, the first at row 1",
        ),
        (torch.full((2, 3), 255.0), "divide by 255"),
        (torch.zeros(2, 4), "shape"),
        (torch.zeros(()), "y.None"),
    ],
    ids=["empty", "nan", "inf", "no observed entry", "range", "shape", "scalar"],
)
def test_bad_data(y: Tensor, message: str) -> None:
    """Refused at the door, with the place and the remedy."""
    model, guide = layered_vae(pv.likelihoods.Bernoulli())
    with pytest.raises((ValueError, RuntimeError), match=message):
        pv.elbo(model, guide, y.double(), 5)


def test_data_outside_the_support() -> None:
    """A program written by hand refuses them too, through Pyro: numbers are no excuse."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Bernoulli(logits=z[:, :1]).to_event(1), obs=y)

    with pytest.raises(ValueError, match="support"):
        pv.elbo(model, prior_guide, torch.full((2, 1), 255.0), 5)


def test_one_datum() -> None:
    """One row, as an array or a tensor, is a data set."""
    one = pv.elbo(MODEL, MEAN_FIELD, FACTS_Y, 5).elbo.value
    assert one.shape == (1,)
    assert torch.equal(pv.elbo(MODEL, MEAN_FIELD, FACTS_Y.numpy(), 5).elbo.value, one)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pv.ImportanceSampling(1), "at least 2 for a standard error; got 1"),
        (lambda: pv.ImportanceSampling(5, memory=0.0), "`memory` must be a number above 0"),
        (lambda: pv.elbo(MODEL, MEAN_FIELD, FACTS_Y, 1), "at least 2 for"),
        (lambda: pv.log_weights(MODEL, MEAN_FIELD, FACTS_Y, num_samples=0), "at least 1; got 0"),
    ],
)
def test_bad_sizes(call: Callable[[], Any], message: str) -> None:
    """An error needs two draws, and a budget something to spend."""
    with pytest.raises(ValueError, match=message):
        call()


def rates(y: Tensor, x: Tensor) -> None:
    """Counts, the rate of which depends on a covariate: torch keeps both for a gradient."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Poisson((z * x).exp()), obs=y)


@pytest.mark.parametrize(
    "estimator",
    [pv.Tightest(), pv.ImportanceSampling(500, proposal=pv.Fitted()), pv.Quadrature()],
    ids=lambda estimator: type(estimator).__name__,
)
def test_inference_mode_changes_nothing(estimator: Any, tmp_path: Path) -> None:
    """The mode of the caller, of the data and of what is loaded: the same numbers as without."""
    data = torch.tensor([1.0, 3.0, 0.0]), torch.tensor([1.0, 0.5, 2.0])
    guide = pv.Guide(rates, pv.GlobalParameters(), pv.FullRankNormal(), example=data)
    plain = pv.log_marginal_likelihood(rates, guide, data, estimator)
    pv.save(tmp_path / "saved", model=layered_vae(pv.likelihoods.Gaussian())[0])
    with torch.inference_mode():
        y, x = (part * 1.0 for part in data)
        again = pv.log_marginal_likelihood(rates, guide, (y, x), estimator)
        assert torch.is_inference_mode_enabled()
        gap = pv.inference_gap(rates, guide, (y, x), num_samples=50)
        model = pv.load(tmp_path / "saved").model
    torch.testing.assert_close(again.value, plain.value, rtol=0, atol=1e-9)
    assert gap.log_marginal.reliable.all()
    assert not any(part.is_inference() for part in model.parameters())
