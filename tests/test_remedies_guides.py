"""What refusals of guides, maps, estimators and data say to write runs, and is right.

As in `test_remedies`, z ~ N(0, 1) and y ~ N(z, 1): log p(y) is known, and so is the posterior. A
row has the words of the refusal, the call that is refused, and the call that it says to make.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta
from torch import Tensor, nn

import pyro_vae as pv
from tests.helpers.remedies import (
    SD,
    Holder,
    Remedy,
    Y,
    equals,
    evidence,
    exact,
    follow,
    global_guide,
    hierarchy,
    of_all_rows,
    positive,
    table,
    trained,
)
from tests.helpers.remedies import location as model

HOLES = torch.tensor([[0.0, math.nan], [1.0, 2.0]])
MASKED = np.ma.masked_array(np.array([0.0, 1.0, 2.0, -4.0], np.float32), mask=False)


def encoder(net: nn.Module) -> Any:
    """A guide with a net, of numbers as rows of one feature."""
    return pv.Guide(model, pv.Encoder(nn.Sequential(nn.Unflatten(-1, (-1, 1)), net)), example=Y)


class Own:
    """A model with answers of its own."""

    def __init__(self, shape: tuple[int, ...] = (4,), posterior: Any = None) -> None:
        self.shape, self.posterior = shape, posterior

    def __call__(self, y: Tensor) -> None:
        """The model."""
        model(y)

    def log_evidence(self, y: Tensor) -> Tensor:
        """Log p(y), in some shape."""
        return torch.distributions.Normal(0.0, 2**0.5).log_prob(y).reshape(self.shape)


class WithPosterior:
    """A model with a posterior of its own."""

    def __init__(self, made: Callable[[Tensor], Any]) -> None:
        self.made = made

    def __call__(self, y: Tensor) -> None:
        """The model."""
        model(y)

    def exact_posterior(self, y: Tensor) -> Any:
        """Of the flat latents."""
        return self.made(y)


def gaussian(y: Tensor) -> Any:
    """The posterior of the flat latent."""
    return dist.MultivariateNormal(y[:, None] / 2, 0.5 * torch.eye(1))


def at_y(q: Callable[[Tensor], Any]) -> Any:
    """A guide with this distribution of z, given the posterior's mean."""

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", q(y / 2))

    return guide


def round_about(y: Tensor) -> None:
    """The same model, in operations that are no polynomials."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z.exp().log(), 1.0), obs=y)


def curved(by: float) -> Any:
    """The same model, with a factor that rises to both sides of 0."""

    def program(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("curved", by * z**2)
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    return program


def spare(y: Tensor) -> None:
    """With three latents more than it needs."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z[..., 0], 1.0), obs=y)


def of_spare(y: Tensor) -> None:
    """Its posterior."""
    with pyro.plate("data", len(y)):
        loc = nn.functional.pad(y[:, None] / 2, (0, 3))
        pyro.sample("z", dist.Normal(loc, torch.tensor([SD, 1, 1, 1])).to_event(1))


def masked(y: Tensor) -> None:
    """A latent that is masked for some data, which depend on it."""
    with pyro.plate("data", len(y)):
        with poutine.mask(mask=y > 0):  # type: ignore[call-overload]
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def sphere(y: Tensor) -> None:
    """A direction that says nothing of y."""
    with pyro.plate("data", len(y)):
        pyro.sample("side", dist.ProjectedNormal(torch.ones(2)))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def projected(y: Tensor) -> None:
    """The same from a normal z, as z / |z|."""
    with pyro.plate("data", len(y)):
        side = pyro.sample("side", dist.Normal(torch.ones(2), 1.0).to_event(1))
        side = side / side.norm(dim=-1, keepdim=True)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z + 0 * side[..., 0], 1.0), obs=y)


def of_positive(size: Any) -> Any:
    """A guide of it."""

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("size", size.expand([len(y)]))
            pyro.sample("z", dist.Normal(y / 2, SD))

    return guide


def looped(y: Tensor) -> None:
    """A loop over data."""
    for n in map(int, pyro.plate("data", len(y))):
        z = pyro.sample(f"z_{n}", dist.Normal(0.0, 1.0))
        pyro.sample(f"y_{n}", dist.Normal(z, 1.0), obs=y[n])


def bowed(y: Tensor) -> None:
    """One latent is a function of the auxiliary site and one is not."""
    with pyro.plate("data", len(y)):
        noise = pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(y / 2 + SD * noise, log_density=0.3466 * torch.ones(len(y))))
        pyro.sample("size", dist.HalfNormal(torch.ones(len(y))))


def auxiliary(y: Tensor) -> None:
    """Its density at a point is an integral."""
    with pyro.plate("data", len(y)):
        noise = pyro.sample("noise", dist.Normal(0.0, 0.5), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(y / 2 + noise, 0.5))


def by_place(y: Tensor) -> None:
    """Q depends on the place of a row in the batch."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y / 2 + 0.1 * torch.arange(len(y)), SD))


def same_model() -> Any:
    """A guide of another model."""
    return pv.Guide(spare, pv.GlobalParameters(), example=Y)


def encoder_with(num_features: int) -> Any:
    """An encoder whose net says that it gives other features than it does."""
    net = nn.Sequential(nn.Unflatten(-1, (-1, 1)), nn.Linear(1, 5))
    net.num_features = num_features  # type: ignore[assignment]
    return pv.Guide(model, pv.Encoder(net), example=Y).mean(Y)


def scores(given: Any) -> Any:
    """Log p, as outliers are scored by it."""
    return pv.outliers(hierarchy, None, Y, 9, given=given, progress=False).log_p


def of_holes(net: nn.Module) -> Any:
    """A guide of a model with missing entries."""
    vae = pv.models.VAE(nn.Linear(1, 2), pv.likelihoods.Gaussian(), latent_dim=1)
    return pv.Guide(vae, pv.Encoder(net))


def like_filled(net: nn.Module) -> None:
    """Asserts that a hole is a 0 whose indicator is 0."""
    mean = of_holes(pv.nets.MissingIndicator(net)).mean(HOLES)
    equals(mean, net(torch.tensor([[0.0, 0, 1, 0], [1, 2, 1, 1]]))[:, :1])


def wide(y: torch.Tensor) -> None:
    """The noise has a scale that all data share; with a scale of 1 it is the model."""
    scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, scale), obs=y)


def at_scale(scale: float | None) -> None:
    """A bound given a scale; by default it is that of the guide, and that of a draw."""
    guide = pv.Guide(wide, pv.ExactPosterior(), example=Y)
    if scale is not None:
        pv.elbo(wide, guide, Y, 5, given={"scale": torch.tensor(scale)})
    for given in (guide.global_values(), guide.sample_globals(1)[0]):
        found = pv.elbo(wide, guide, Y, 5, given=given).value
        equals(found, dist.Normal(0.0, (1 + given["scale"] ** 2) ** 0.5).log_prob(Y).double())


def draws_tested(*, same: bool) -> None:
    """Draws of the posterior given a mean, against the guide given it or another."""
    guide, given = global_guide(hierarchy), {"loc": torch.zeros(())}
    draws = pv.posterior_draws(hierarchy, guide, Y, num_samples=50, given=given)
    at = given if same else None
    result = pv.diagnostics.two_sample_test(hierarchy, guide, Y, draws, given=at)
    assert len(result) == len(Y)


def conditional(guide: Any) -> Any:
    """Log p given the shared mean, in units of what it is with a mean of 0."""
    given = {"loc": torch.zeros_like(guide.global_values()["loc"])}
    assert given["loc"].shape == guide.global_values()["loc"].shape
    return pv.log_marginal_likelihood(hierarchy, guide, Y, pv.ClosedForm(), given=given)


NET, SPLINE = nn.Linear, pv.ElementwiseSpline
REMEDIES = {
    # Estimators.
    "own evidence": Remedy(
        r"tensor of shape \(4,\)",
        lambda: evidence(Own((4, 1)), exact, pv.ClosedForm()),
        lambda: evidence(Own(), exact, pv.ClosedForm()),
    ),
    "no closed form": Remedy(
        r"takes 'exp' of a latent|use pv.Quadrature\(\)",
        lambda: evidence(round_about, exact, pv.ClosedForm()),
        lambda: evidence(round_about, exact, pv.Quadrature()),
    ),
    "four latents": Remedy(
        r"use pv.ImportanceSampling\(\)",
        lambda: evidence(spare, of_spare, pv.Quadrature()),
        lambda: evidence(spare, of_spare, pv.ImportanceSampling(200)),
    ),
    "no series": Remedy(
        r"use pv.Tightest\(\) or pv.ImportanceSampling\(\)",
        lambda: evidence(model, exact, pv.ParticleFilter()),
        lambda: evidence(model, exact, pv.Tightest()),
    ),
    "no maximum": Remedy(
        r"has no maximum .* check the pyro.factor terms",
        lambda: pv.Guide(curved(1.2), pv.ExactPosterior(), example=Y).mean(Y),
        lambda: evidence(curved(0.0), pv.Guide(curved(0.0), pv.ExactPosterior(), example=Y)),
    ),
    # Answers of models.
    "another posterior": Remedy(
        "must return a MultivariateNormal",
        lambda: pv.Guide(
            WithPosterior(lambda y: dist.Normal(y / 2, SD)), pv.ExactPosterior(), example=Y
        ).mean(Y),
        lambda: evidence(
            WithPosterior(gaussian),
            pv.Guide(WithPosterior(gaussian), pv.ExactPosterior(), example=Y),
        ),
    ),
    "another shape": Remedy(
        r"must have batch shape \(4,\) and event shape \(1,\)",
        lambda: pv.Guide(
            WithPosterior(lambda y: gaussian(y[:2])), pv.ExactPosterior(), example=Y
        ).mean(Y),
        lambda: evidence(
            WithPosterior(gaussian),
            pv.Guide(WithPosterior(gaussian), pv.ExactPosterior(), example=Y),
        ),
    ),
    "no exact posterior": Remedy(
        r"Use pv.Encoder\(net\) or pv.LocalParameters\(num_data\)",
        lambda: pv.Guide(positive, pv.ExactPosterior(), example=Y).mean(Y),
        lambda: evidence(
            positive,
            pv.Guide(positive, pv.LocalParameters(4), example=Y).fit_rows(Y),
            pv.Tightest(),
        ),
    ),
    "exact flow": Remedy(
        r"use pv.DiagonalNormal\(\) or pv.FullRankNormal\(\), or pv.Encoder\(net\)",
        lambda: pv.Guide(model, pv.ExactPosterior(), pv.NormalizingFlow(SPLINE()), example=Y),
        lambda: evidence(
            model, pv.Guide(model, pv.ExactPosterior(), pv.DiagonalNormal(), example=Y)
        ),
    ),
    "full-rank ascent": Remedy(
        r"use pv.ExactPosterior\(\) with this family",
        lambda: pv.Guide(model, pv.CoordinateAscent(), pv.FullRankNormal(), example=Y),
        lambda: evidence(
            model, pv.Guide(model, pv.ExactPosterior(), pv.FullRankNormal(), example=Y)
        ),
    ),
    # Sites of a guide.
    "functions of some": Remedy(
        "draw none of these sites from dist.Delta",
        lambda: evidence(positive, bowed),
        lambda: evidence(positive, of_positive(dist.HalfNormal(torch.tensor(1.0)))),
    ),
    "masked latent": Remedy(
        "leave latent sites unmasked",
        lambda: evidence(masked, exact),
        lambda: evidence(model, exact),
    ),
    "hidden draws": Remedy(
        r"differs between two calls .*infer={'is_auxiliary': True}\), without poutine.block",
        lambda: evidence(model, poutine.block(auxiliary, hide=["noise"])),
        lambda: evidence(model, auxiliary, pv.ImportanceSampling(2000)),
    ),
    "outside the support": Remedy(
        "a distribution with that support",
        lambda: evidence(positive, of_positive(dist.Normal(torch.tensor(1.0), 1.0))),
        lambda: evidence(positive, of_positive(dist.LogNormal(torch.tensor(-0.5), 1.0))),
    ),
    "a value of another shape": Remedy(
        r"use the same `dim` of pyro.plate and the same \.to_event",
        lambda: evidence(model, at_y(lambda loc: dist.Normal(loc[:, None], SD).to_event(1))),
        lambda: evidence(model, at_y(lambda loc: dist.Normal(loc, SD))),
    ),
    "a lattice": Remedy(
        "sample the site from a continuous distribution, such as dist.Normal",
        lambda: evidence(model, at_y(lambda loc: dist.Poisson(loc.exp()))),
        lambda: evidence(model, at_y(lambda loc: dist.Normal(loc, SD))),
    ),
    "a sphere": Remedy(
        r"sample a normal z and use z / \|z\|",
        lambda: global_guide(sphere),
        lambda: evidence(projected, global_guide(projected), pv.ImportanceSampling(20_000)),
    ),
    "no density at a point": Remedy(
        "sample each site of the model without an auxiliary site",
        lambda: pv.compare(
            model, {"aux": auxiliary}, Y, Y, train_model=False, num_epochs=1, progress=False
        ),
        lambda: evidence(model, exact),
    ),
    # Guides that are tied to rows.
    "place in the batch": Remedy(
        r"pv.Guide\(model, pv.LocalParameters\(num_data\)\), whose method fit_rows",
        lambda: evidence(model, by_place),
        lambda: evidence(model, table().fit_rows(Y)),
    ),
    "other rows": Remedy(
        r"whose method fit_rows\(y\) fits parameters to new rows",
        lambda: evidence(model, of_all_rows, data=Y[:2]),
        lambda: evidence(model, table().fit_rows(Y)),
    ),
    "a table inside": Remedy(
        r"use guide.fit_rows\(y\) for new data",
        lambda: evidence(model, Holder(), data=Y[:2]),
        lambda: evidence(model, Holder().inner.fit_rows(Y)),
    ),
    "AutoDelta": Remedy(
        r"use AutoNormal, AutoDiagonalNormal, or pv.Guide",
        lambda: evidence(model, AutoDelta(model)),
        lambda: evidence(model, table().fit_rows(Y)),
    ),
    "a map in place of a guide": Remedy(
        r"pv.Guide\(model, LocalParameters\(...\)\)",
        lambda: evidence(model, pv.LocalParameters(4)),
        lambda: evidence(model, table().fit_rows(Y)),
    ),
    "another model's": Remedy(
        r"build a guide for this model with pv.Guide\(model, ...\)",
        lambda: evidence(model, same_model()),
        lambda: evidence(model, table().fit_rows(Y)),
    ),
    # Maps.
    "features that are not": Remedy(
        "remove the attribute num_features",
        lambda: encoder_with(num_features=7),
        lambda: evidence(model, encoder(NET(1, 2)), pv.Tightest()),
    ),
    "holes": Remedy(
        r"use pv.nets.MissingIndicator\(net\) with a net that takes twice as many inputs",
        lambda: of_holes(nn.Linear(2, 2)).mean(HOLES),
        lambda: like_filled(nn.Linear(4, 2)),
    ),
    "another width": Remedy(
        "change the net's first layer",
        lambda: encoder(NET(3, 2)).mean(Y),
        lambda: evidence(model, encoder(NET(1, 2)), pv.Tightest()),
    ),
    "other data of a table": Remedy(
        "fit_rows",
        lambda: evidence(model, trained(table()), data=Y + 1),
        lambda: evidence(model, trained(table()).fit_rows(Y)),
    ),
    "a guide's map again": Remedy(
        "create another object of this class, or copy this object with copy.deepcopy",
        lambda: [pv.Guide(model, map_, example=Y) for map_ in [pv.LocalParameters(4)] * 2],
        lambda: evidence(model, table().fit_rows(Y)),
    ),
    "rows for an encoder": Remedy(
        "call this guide with the new data directly",
        lambda: encoder(NET(1, 2)).extended(Y),
        lambda: evidence(model, encoder(NET(1, 2)), pv.Tightest()),
    ),
    "rows for a refined table": Remedy(
        r"got a guide with Refined: fit a guide to the new data with guide.fit_rows\(y\)",
        lambda: pv.Guide(model, pv.Refined(pv.LocalParameters(2)), example=Y).extended(Y),
        lambda: evidence(
            model, pv.Guide(model, pv.Refined(pv.LocalParameters(2)), example=Y).fit_rows(Y)
        ),
    ),
    # Values that all data share.
    "unknown values": Remedy(
        r"pass `given=guide.global_values\(\)`",
        lambda: pv.elbo(hierarchy, global_guide(hierarchy), Y, given={"mean": torch.zeros(())}),
        lambda: conditional(global_guide(hierarchy)),
    ),
    "several values": Remedy(
        "pass a single value of this shape, such as one draw",
        lambda: pv.elbo(hierarchy, global_guide(hierarchy), Y, given={"loc": torch.zeros(3)}),
        lambda: conditional(global_guide(hierarchy)),
    ),
    "values off the support": Remedy(
        r"pass `given=guide.global_values\(\)`, or one of the draws of guide.sample_globals\(\)",
        lambda: at_scale(-1.0),
        lambda: at_scale(None),
    ),
    "draws given other values": Remedy(
        "pass the same `given` to pv.posterior_draws and to the test",
        lambda: draws_tested(same=False),
        lambda: draws_tested(same=True),
    ),
    # Loops.
    "a loop over data": Remedy(
        r"with pyro.plate\('data', len\(y\)\)",
        lambda: evidence(looped, exact),
        lambda: evidence(model, exact),
    ),
    # Data.
    "a list": Remedy(
        r"torch.tensor\(y\)",
        lambda: evidence(model, exact, data=Y.tolist()),
        lambda: evidence(model, exact, data=torch.tensor(Y.tolist())),
    ),
    "a masked array": Remedy(
        r"y.filled\(np.nan\)",
        lambda: evidence(model, exact, data=MASKED),
        lambda: evidence(model, exact, data=MASKED.filled(np.nan)),
    ),
    "data in another precision": Remedy(
        r"must have the dtype of the data, torch\.float64; .* guide\.to\(torch\.float64\)",
        lambda: evidence(model, encoder(nn.Linear(1, 2)), data=Y.double()),
        lambda: evidence(
            model,
            encoder(nn.Linear(1, 2)).to(torch.float64),
            pv.ImportanceSampling(20_000, proposal=pv.Fitted()),
            data=Y.double(),
        ),
    ),
    "shared sites without a guide": Remedy(
        r"no guide provides their values: pass `given=\{'name': value\}`",
        lambda: scores(None),
        lambda: scores({"loc": torch.zeros(())}),
    ),
    "objects": Remedy(
        r"y.astype\(float\)",
        lambda: evidence(model, exact, data=Y.numpy().astype(object)),
        lambda: evidence(model, exact, data=Y.numpy().astype(object).astype(float)),
    ),
    "sparse": Remedy(
        r"y.to_dense\(\)",
        lambda: evidence(model, exact, data=Y.to_sparse()),
        lambda: evidence(model, exact, data=Y.to_sparse().to_dense()),
    ),
    "no rows": Remedy(
        "at least one row|no rows",
        lambda: evidence(model, exact, data=Y[:0]),
        lambda: evidence(model, exact),
    ),
}


CHECKED_FIRST = pytest.mark.without_type_checks("passes a list, which the check refuses first")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[CHECKED_FIRST] * (name == "a list")) for name in REMEDIES],
)
@pytest.mark.filterwarnings("ignore")
def test_what_a_refusal_says_to_call_is_right(name: str) -> None:
    """The call is refused in these words; the other one gives log p(y) within its error."""
    follow(REMEDIES[name])
