"""Values of what all data share, in every function that takes them.

A program given a value of its global site is the program with that value written into it: every
function must answer alike for the two, to the last draw, and otherwise for another value.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae import diagnostics, queries
from pyro_vae.programs import PartlyObserved
from tests.helpers.public import public
from tests.helpers.statistics import FALSE_ALARM, assert_mean

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:.*cannot be trusted"),
]

SD = 0.5  # of the noise
VALUE, OTHER = torch.tensor([-1.5, 2.5], dtype=torch.float64)
Y = torch.tensor([[0.5, -1.0], [2.0, -1.5], [-1.0, 0.3], [0.2, 0.1], [1.5, 1.0]]).double()


def multiples(mean: Tensor, y: Tensor) -> None:
    """Two noisy multiples of z, the second times the mean: the mean moves all, correlations too."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        features = PartlyObserved(dist.Normal(torch.stack([z, mean * z], dim=-1), SD))
        pyro.sample("y", features.to_event(1), obs=y)


def shared(y: Tensor) -> None:
    """All data share the mean of z."""
    multiples(pyro.sample("mean", dist.Normal(0.0, 2.0)), y)


def at(mean: Tensor) -> Callable[[Tensor], None]:
    """The same with the mean written into it."""
    return lambda y: multiples(mean, y)


def posterior(y: Tensor, mean: Tensor) -> tuple[Tensor, float]:
    """Mean and standard deviation of z given the data and the mean, exactly."""
    precision = 1 + (1 + mean**2) / SD**2
    return (mean + (y[:, 0] + mean * y[:, 1]) / SD**2) / precision, float(precision) ** -0.5


def log_p(y: Tensor, mean: Tensor, columns: list[int]) -> Tensor:
    """The log density of some columns, exactly."""
    loading = torch.stack([torch.ones(()), mean])[columns]
    covariance = loading[:, None] * loading + SD**2 * torch.eye(len(columns))
    return torch.distributions.MultivariateNormal(loading * mean, covariance).log_prob(
        y[:, columns]
    )


def guide_of(model: Any, map: pv.InferenceMap | None = None) -> pv.Guide:
    """Whose posterior is exact given the mean."""
    return pv.Guide(model, map or pv.ExactPosterior(), example=Y)


def with_draws(test: Callable[..., Any], *more: Any) -> Callable[..., Any]:
    """A test that takes draws of the posterior, too."""

    def tested(model: Any, guide: Any, y: Tensor, **given: Any) -> Any:
        draws = pv.posterior_draws(model, guide, y, num_samples=200, **given)
        return test(model, guide, y, draws, *more, **given)

    return tested


def of(function: Callable[..., Any], *more: Any, **options: Any) -> Callable[..., Any]:
    """A function of a model, a guide and data, with further arguments."""
    return lambda model, guide, y, **given: function(model, guide, y, *more, **options, **given)


def table_of(model: Any) -> pv.Guide:
    """A guide of a free row per datum, which is fitted afresh to other rows."""
    return guide_of(model, pv.LocalParameters(len(Y)))


FEW = pv.AnnealedImportanceSampling(2, num_temperatures=3, leapfrog_steps=1)
HOLES = Y.where(torch.eye(5, 2).bool().logical_not(), torch.nan)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "bidirectional": of(pv.bidirectional, FEW, num_data=1),
    "conditional": of(pv.conditional, [0]),
    "conditional_density": of(pv.conditional_density, 0, torch.linspace(-3, 3, 5).double()),
    "cross_check": of(pv.cross_check, num_data=3),
    "dependence": of(pv.dependence, queries.Correlation(200)),
    "elbo": of(pv.elbo, 50),
    "evaluate": of(pv.evaluate, pv.ImportanceSampling(50)),
    "explain": of(queries.explain),
    "Guide.extended": lambda model, _, y, **given: (
        table_of(model).extended(y, **given).mean(torch.cat([Y, y]))
    ),
    "Guide.fit_rows": lambda _model, guide, y, **given: guide.fit_rows(y, **given).mean(y),
    "Guide.parameters_of": lambda _model, guide, y, **given: guide.parameters_of(y, **given),
    "Guide.posterior": lambda _model, guide, y, **given: guide.posterior(y, **given).mean(),
    "impute": lambda model, guide, _, **given: pv.impute(model, None, HOLES, 20, **given),
    "inference_gap": of(pv.inference_gap, num_samples=50),
    "leave_one_out": of(diagnostics.leave_one_out, 200),
    "log_joint": lambda model, _, y, **given: pv.log_joint(
        model, torch.ones(2, 5, 1).double(), y, **given
    ),
    "log_marginal_likelihood": of(pv.log_marginal_likelihood, pv.Quadrature()),
    "log_weights": of(pv.log_weights, num_samples=3),
    "marginal": of(pv.marginal, [1]),
    "out_of_distribution": of(diagnostics.out_of_distribution, torch.cat([Y] * 4), num_samples=50),
    "outliers": of(pv.outliers, 50),
    "posterior_calibration": with_draws(diagnostics.posterior_calibration, 10),
    "posterior_draws": of(pv.posterior_draws, num_samples=200),
    "predictive_check": of(diagnostics.predictive_check, num_samples=50),
    "reconstruct": of(pv.reconstruct),
    "reconstruction_draws": of(queries.reconstruction_draws, 3),
    "similarity": of(queries.similarity),
    "simulation_based_calibration": of(diagnostics.simulation_based_calibration, 50, 9),
    "traverse": of(pv.traverse),
    "two_sample_test": with_draws(diagnostics.two_sample_test),
}


def numbers(part: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """All numbers of a result, by where they stand in it; Pareto k of equal weights is rounding."""
    if isinstance(part, Tensor | float | int):
        yield path, torch.as_tensor(part).double()
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            if field.name == "pareto_k":
                continue
            yield from numbers(getattr(part, field.name), f"{path}.{field.name}")
    elif isinstance(part, Mapping | tuple | list):
        pairs = part.items() if isinstance(part, Mapping) else enumerate(part)
        for key, value in pairs:
            yield from numbers(value, f"{path}.{key}")


def test_every_function_is_here() -> None:
    """All public ones with an argument `given`, of which `*given` of a model are not."""
    found = set()
    for name, function in public().items():
        parameter = inspect.signature(inspect.unwrap(function)).parameters.get("given")
        if parameter is not None and parameter.kind is parameter.KEYWORD_ONLY:
            found.add(name.rpartition(".guide.")[-1] if ".Guide." in name else name.split(".")[-1])
    assert found == FUNCTIONS.keys()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_value_given_is_the_value_written(name: str) -> None:
    """And another value gives another answer."""
    answer = FUNCTIONS[name]
    known, other, written = (
        dict(numbers(answer(model, guide_of(model), Y, given=given)))
        for model, given in [
            (shared, {"mean": VALUE}), (shared, {"mean": OTHER}), (at(VALUE), None),
        ]
    )  # fmt: skip
    torch.testing.assert_close(known, written, rtol=1e-6, atol=1e-6, equal_nan=True)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(other, written, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("mean", [VALUE, OTHER])
def test_closed_forms(mean: Tensor) -> None:
    """What some of them answer, by hand."""
    guide, given = guide_of(shared), {"mean": mean}
    loc, sd = posterior(Y, mean)
    joint, first, second = (log_p(Y, mean, columns) for columns in ([0, 1], [0], [1]))
    check = pv.cross_check(shared, guide, Y, given=given)
    for found, expected in [
        *((result.value, joint) for result in check.results.values()),
        (pv.marginal(shared, guide, Y, [1], given=given).value, second),
        (pv.conditional(shared, guide, Y, [0], [1], given=given).value, joint - second),
        (pv.reconstruct(shared, guide, Y, given=given), torch.stack([loc, mean * loc], dim=-1)),
    ]:
        torch.testing.assert_close(found, expected)
    assert (first - second).abs().min() > 0.01  # the columns differ
    made = queries.reconstruction_draws(shared, guide, Y, 4000, given=given)[..., 0]
    assert_mean(made, loc)
    assert_mean((made - loc).square(), sd**2 + SD**2)
    draws = pv.posterior_draws(shared, guide, Y, given=given)
    z = (draws.posterior_mean.value[:, 0] - loc) / draws.posterior_mean.error[:, 0]
    assert float(z.abs().max()) < -torch.special.ndtri(torch.tensor(FALSE_ALARM / 10))


def test_draws_say_what_they_are_conditional_on() -> None:
    """In the summary and for ArviZ; and a test refuses draws under other conditions."""
    guide, given = guide_of(shared), {"mean": VALUE}
    draws = pv.posterior_draws(shared, guide, Y, num_samples=50, given=given)
    words = "conditional on the global site mean at given values"
    assert draws.given == draws.log_marginal.given == words
    assert draws.summary().endswith(words)
    assert draws.to_inference_data().attrs["given"] == words
    assert pv.posterior_draws(at(VALUE), guide_of(at(VALUE)), Y, num_samples=50).given == ""
    for test in (diagnostics.two_sample_test, diagnostics.posterior_calibration):
        with pytest.raises(ValueError, match=r"at the mean of their posterior: pass the same `giv"):
            test(shared, guide, Y, draws)
        assert len(test(shared, guide, Y, draws, given=given)) == len(Y)


# ---------------------------------------------------------------------- values that do not fit


def bounded(y: Tensor) -> None:
    """Global sites on several supports; the density of a datum is finite outside of them."""
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    share = pyro.sample("share", dist.Uniform(0.0, 1.0))
    parts = pyro.sample("parts", dist.Dirichlet(torch.ones(2)))
    angle = pyro.sample("angle", dist.VonMises(0.0, 1.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(scale * share + parts[0] - parts[1], 1.0))
        pyro.sample("y", dist.Normal(z + angle.cos(), SD), obs=y)


VALID = {"scale": 2.0, "share": 0.25, "parts": [0.75, 0.25], "angle": 4.0}


def tensors(**values: Any) -> dict[str, Tensor]:
    """Valid values, but for some."""
    return {name: torch.tensor(value) for name, value in {**VALID, **values}.items()}


def test_values_on_the_support_are_taken() -> None:
    """Those of the guide, its draws, and an angle beyond half a turn."""
    guide = pv.Guide(bounded, pv.ExactPosterior(), example=Y[:, 0])
    for given in (guide.global_values(), *guide.sample_globals(3), tensors()):
        found = pv.elbo(bounded, guide, Y[:, 0], 2, given=given).value
        torch.testing.assert_close(found, exact(given))


def exact(given: Mapping[str, Tensor]) -> Tensor:
    """Log p of the data."""
    parts = given["parts"]
    mean = given["scale"] * given["share"] + parts[0] - parts[1] + given["angle"].cos()
    return torch.distributions.Normal(mean, math.sqrt(1 + SD**2)).log_prob(Y[:, 0])


@pytest.mark.parametrize(
    ("site", "value"),
    [
        ("scale", -2.0), ("scale", torch.inf), ("share", 1.01), ("share", torch.nan),
        ("parts", [0.75, 0.3]), ("parts", [1.25, -0.25]), ("angle", torch.inf),
    ],
)  # fmt: skip
def test_values_off_the_support_are_refused(site: str, value: Any) -> None:
    """Nothing else would notice: the density given a value leaves the value's own prior out."""
    y = Y[:, 0]
    guide = pv.Guide(bounded, pv.ExactPosterior(), example=y)
    given = tensors(**{site: value})
    for refused in (
        lambda: pv.log_joint(bounded, torch.zeros(1, 5, 1), y, given=given),
        lambda: pv.log_marginal_likelihood(bounded, guide, y, given=given),
        lambda: guide.fit_rows(y, given=given),
    ):
        with pytest.raises(
            ValueError, match=rf"site '{site}' must be .* support, .*; got .*: pass"
        ):
            refused()


def test_whole_numbers_are_numbers() -> None:
    """A value may be an integer tensor, in any order of the names; other types are refused."""
    y, guide = Y[:, 0], pv.Guide(bounded, pv.GlobalParameters(), example=Y[:, 0])
    given = dict(reversed(tensors(scale=2).items()))
    lml = pv.log_marginal_likelihood(bounded, guide, y, pv.ClosedForm(), given=given)
    torch.testing.assert_close(lml.value, exact(given))
    numbers: Any = VALID
    with pytest.raises(TypeError, match=r"torch tensor.*given=guide\.global_values\(\)"):
        pv.elbo(bounded, guide, y, 5, given=numbers)
