"""What refusals of families, maps and rows say to write runs, and is right.

As in `test_remedies_guides`: the words of a refusal, the call that is refused, and the call that
it says to make; log p(y) is known.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import guides, nets
from pyro_vae.guides.experts import ProductOfExperts
from pyro_vae.guides.reparameterization import even_noise, reparameterize
from pyro_vae.programs.copies import Copies
from tests.helpers.remedies import (
    SD,
    Holder,
    Remedy,
    Y,
    column,
    equals,
    evidence,
    follow,
    has_unit_mass,
    of_all_rows,
)
from tests.helpers.remedies import location as model

Flow = pv.NormalizingFlow
MANY = pv.ImportanceSampling(4000)


def spare(y: Tensor) -> None:
    """With three latents more than it needs."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z[..., 0], 1.0), obs=y)


def of(family: Any, program: Any = model) -> Any:
    """Log p by draws of an untrained guide of this family, about the prior."""
    return evidence(program, pv.Guide(program, pv.GlobalParameters(), family, example=Y), MANY)


def fitted(family: Any = None, program: Any = model) -> Any:
    """Log p by a guide of free parameters."""
    family = family or pv.DiagonalNormal()
    guide = pv.Guide(program, pv.LocalParameters(4), family, example=Y)
    return evidence(program, guide.fit_rows(Y))


def by_map(made: Any, family: Any = None, program: Any = model) -> Any:
    """Log p by a map."""
    guide = pv.Guide(program, made, family or pv.DiagonalNormal(), example=Y)
    return evidence(program, guide, MANY)


def compared(**candidates: Any) -> Any:
    """Log p of the last of these guides."""
    table = pv.compare(
        model, candidates, Y, Y, train_model=False, num_epochs=1, progress=False,
        evaluation=pv.ImportanceSampling(20),
    )  # fmt: skip
    return list(table.results.values())[-1].gap.log_marginal


def net(outputs: int = 2) -> nn.Module:
    """An encoder's network, at zero: its guide is the prior."""
    layer = nn.Linear(1, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Unflatten(-1, (-1, 1)), layer)


# Families.


def draws_have_mean_one() -> None:
    """Asserts it of Exp(1)."""
    draws = dist.Gamma(torch.ones(2), 1.0).rsample((100_000,))
    assert ((draws.mean(0) - 1).abs() < 5 * 100_000**-0.5).all()


def are_centred(noise: Tensor) -> None:
    """Asserts that points come in pairs around 0."""
    equals(noise.mean(0), torch.zeros_like(noise[0]))


class AsModule(nn.Module):
    """A family with a parameter, of which nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def num_parameters(self, latent_dim: int) -> int:
        """Of a normal."""
        return 2 * latent_dim

    def initial(self, loc: Tensor, scale: float = 1.0) -> Tensor:
        """Of a normal."""
        return torch.cat([loc, torch.full_like(loc, scale).log()])

    def forward(self, parameters: Tensor) -> Any:
        """A shifted normal."""
        loc, log_scale = parameters.chunk(2, dim=-1)
        return dist.Normal(loc + self.shift, log_scale.exp()).to_event(1)


class AsFamily(guides.TrainableFamily):
    """The same, derived as the refusal says."""

    num_parameters = AsModule.num_parameters
    initial = AsModule.initial
    forward = AsModule.forward

    def setup(self, latent_dim: int) -> None:
        """Its parameter."""
        self.latent_dim, self.shift = latent_dim, nn.Parameter(torch.zeros(()))


class NoClosest:
    """A family of which no member is known to be closest to a Gaussian."""

    num_parameters = AsModule.num_parameters
    initial = AsModule.initial

    def __call__(self, parameters: Tensor) -> Any:
        """A normal."""
        return pv.DiagonalNormal()(parameters)


def flow(latent_dim: int = 0) -> Any:
    """A flow, set up for so many latents."""
    made = Flow(pv.ElementwiseSpline())
    if latent_dim:
        made.setup(latent_dim)
    return made


def experts(family: Any) -> Any:
    """A product of experts for a table of one column."""
    columns = nets.ColumnInputs(nn.Linear(2, 2), [0])
    return pv.Guide(column, ProductOfExperts(columns, 1), family, example=Y[:, None])


FAMILIES = {
    "few hidden units": Remedy(
        r"pass `hidden=\(4,\)` or wider",
        lambda: of(Flow(pv.AffineAutoregressive(hidden=(3,))), spare),
        lambda: of(Flow(pv.AffineAutoregressive(hidden=(4,))), spare),
    ),
    "a coupling of one": Remedy(
        r"use NormalizingFlow\(ElementwiseSpline\(\)\) or DiagonalNormal\(\)",
        lambda: of(Flow(pv.AffineCoupling())),
        lambda: of(Flow(pv.ElementwiseSpline())),
    ),
    "no hidden layer": Remedy(
        "at least one layer, and every layer at least one unit",
        lambda: Flow(pv.AffineCoupling(hidden=())),
        lambda: of(Flow(pv.AffineCoupling(hidden=(1,))), spare),
    ),
    "bins": Remedy(
        "between 2 and 500, and `bound` must be positive",
        lambda: pv.ElementwiseSpline(bins=1),
        lambda: of(Flow(pv.ElementwiseSpline(bins=2))),
    ),
    "no context": Remedy(
        "pass `context=1`",
        lambda: Flow(context=0),
        lambda: of(Flow(context=1), spare),
    ),
    "set up twice": Remedy(
        "create a new NormalizingFlow", lambda: flow(1).setup(1), lambda: of(flow(1))
    ),
    "a flow without networks": Remedy(
        r"or call setup\(latent_dim\) once",
        lambda: flow()(torch.zeros(1, 10)),
        lambda: has_unit_mass(flow(1)(torch.zeros(1, 10))),
    ),
    "a flow in a guide": Remedy(
        r"pass it to pv.Guide, which sets it up",
        lambda: flow().mean(torch.zeros(1, 10)),
        lambda: of(flow()),
    ),
    "parameters of a flow": Remedy(
        "must have 12 entries per datum",
        lambda: flow(2)(torch.zeros(1, 3)),
        lambda: has_unit_mass(flow(2)(torch.zeros(1, 12))),
    ),
    "parameters of a normal": Remedy(
        r"with num_parameters\(latent_dim\)",
        lambda: pv.FullRankNormal()(torch.zeros(1, 3)),
        lambda: has_unit_mass(
            pv.FullRankNormal()(torch.zeros(1, pv.FullRankNormal().num_parameters(2)))
        ),
    ),
    "no rank": Remedy(
        r"for a family without correlations use DiagonalNormal\(\)",
        lambda: pv.LowRankNormal(0),
        lambda: fitted(pv.DiagonalNormal()),
    ),
    "a family that is a module": Remedy(
        r"derive the class from pv.guides.TrainableFamily, .* setup\(latent_dim\)",
        lambda: of(AsModule()),
        lambda: of(AsFamily()),
    ),
    "experts of a family": Remedy(
        r"use pv.DiagonalNormal\(\) or pv.FullRankNormal\(\)",
        lambda: experts(NoClosest()),
        lambda: evidence(column, experts(pv.FullRankNormal()), MANY, Y[:, None]),
    ),
    "no transformation of normals": Remedy(
        "draw from this distribution with rsample",
        lambda: reparameterize(dist.Gamma(torch.ones(2), 1.0), torch.zeros(1, 2)),
        draws_have_mean_one,
    ),
    "no noise": Remedy(
        "must be at least 1; got 0", lambda: even_noise(0, 2), lambda: are_centred(even_noise(1, 2))
    ),
}


# Maps and rows.


def vamp(family: Any) -> None:
    """A guide whose encoder makes the prior, too: asserts that its means are those of the net."""
    layer = nn.Linear(1, 4)
    encoder = pv.Encoder(layer)
    prior = pv.models.VampPrior(encoder, torch.zeros(2, 1), pv.DiagonalNormal())
    vae = pv.models.VAE(nn.Linear(2, 1), pv.likelihoods.Gaussian(), 2, prior)
    equals(pv.Guide(vae, encoder, family).mean(Y[:, None]), layer(Y[:, None])[:, :2])


def refined_of_another_family(family: Any) -> Any:
    """A map that was set up for a diagonal family, refined."""
    encoder = pv.Encoder(net(8))
    pv.Guide(spare, encoder, pv.DiagonalNormal(), example=Y)
    guide = pv.Guide(spare, pv.Refined(encoder, steps=2), family, example=Y)
    return evidence(spare, guide)


def local() -> Any:
    """A table of four rows."""
    return pv.Guide(model, pv.LocalParameters(4), example=Y)


def in_minibatch(rows: list[int], num_data: int, data: Tensor) -> None:
    """Asserts that the means of some rows are those of the same rows among all of them."""
    guide = local().fit_rows(Y)
    with pv.minibatch(torch.tensor(rows, dtype=torch.int64), num_data):
        found = guide.mean(data)
    equals(found, guide.mean(Y)[rows])


def two(x: Tensor, y: Tensor) -> None:
    """With a covariate that does nothing."""
    model(y)


def of_two(made: nn.Module) -> Any:
    """A guide of it with a net."""
    return pv.Guide(two, pv.Encoder(made), example=(Y[:, None], Y))


def evidence_of_two(made: nn.Module) -> Any:
    """Log p by that guide."""
    return evidence(two, of_two(made), MANY, (Y[:, None], Y))


class Zero(nn.Module):
    """A net that reads so many numbers, and gives the prior."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Zeros."""
        return 0 * self.layer(x)


def explosive(y: Tensor) -> None:
    """Its density is nan for negative data."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("nan", (0 * z * y.sqrt()))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def mended(y: Tensor) -> None:
    """The same without it."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("nan", (0 * z * y.abs().sqrt()))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def trained_table(program: Any) -> Any:
    """Log p after an epoch of a table."""
    guide = pv.Guide(program, pv.LocalParameters(4), example=Y)
    with pyro.validation_enabled(is_validate=False):
        guide.train()
        loss = -Trace_ELBO().differentiable_loss(program, guide, Y)
        loss.backward()
    return evidence(program, guide.fit_rows(Y))


def tied_automatic(data: Tensor) -> Any:
    """Log p by an AutoNormal of four rows."""
    guide = AutoNormal(model, init_scale=SD)
    pv.fit(model, guide, Y, num_epochs=1, batch_size=4, progress=False)
    return evidence(model, guide, data=data)


class Fixed:
    """Holds a tensor that training is to move."""

    __slots__ = ("scale",)

    def __init__(self) -> None:
        self.scale = torch.ones((), requires_grad=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Fixed":
        """None."""
        return self


FIXED = Fixed()


def reaching(y: Tensor) -> None:
    """A guide that reaches a tensor through an object."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y / 2, SD * FIXED.scale))


def named(y: Tensor) -> None:
    """The same by name."""
    scale = pyro.param("scale", torch.ones(()))
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y / 2, SD * scale))


MAPS = {
    "an encoder of another family": Remedy(
        "create another Encoder, or use the same family as before",
        lambda: vamp(pv.FullRankNormal()),
        lambda: vamp(pv.DiagonalNormal()),
    ),
    "a refined map of another family": Remedy(
        "use the same family for both",
        lambda: refined_of_another_family(pv.FullRankNormal()),
        lambda: refined_of_another_family(pv.DiagonalNormal()),
    ),
    "ascent in a family without closed forms": Remedy(
        r"use pv.Encoder\(net\) with this family",
        lambda: by_map(pv.CoordinateAscent(), pv.LowRankNormal()),
        lambda: by_map(pv.Encoder(net(4)), pv.LowRankNormal()),
    ),
    "no steps": Remedy(
        "for no steps, use the inner map",
        lambda: pv.Refined(pv.Encoder(net()), steps=0),
        lambda: by_map(pv.Encoder(net())),
    ),
    "a call with other rows": Remedy(
        r"pass data\[rows\]",
        lambda: in_minibatch([0, 2], 4, Y),
        lambda: in_minibatch([0, 2], 4, Y[[0, 2]]),
    ),
    "a row that is not": Remedy(
        "pass `num_data=6` or more",
        lambda: in_minibatch([5], 7, Y[:1]),
        lambda: in_minibatch([3], 4, Y[:1]),
    ),
    "an empty minibatch": Remedy(
        "at least one row", lambda: in_minibatch([], 4, Y[:0]), lambda: in_minibatch([0], 4, Y[:1])
    ),
    "rows outside": Remedy(
        "between 0 and 3 for num_data=4",
        lambda: in_minibatch([4], 4, Y[:1]),
        lambda: in_minibatch([3], 4, Y[:1]),
    ),
    "a net of one tensor": Remedy(
        r"pv.Encoder\(pv.nets.Concatenated\(net\)\), where `net` has 2 inputs",
        lambda: of_two(Zero(1)).mean((Y[:, None], Y)),
        lambda: evidence_of_two(nets.Concatenated(Zero(2))),
    ),
    "no gradient": Remedy(
        "check the program's log density of this row's data",
        lambda: trained_table(explosive),
        lambda: trained_table(mended),
    ),
    "nan in a fit": Remedy(
        "check the program's log density of these data",
        lambda: pv.Guide(explosive, pv.LocalParameters(4), example=Y).fit_rows(Y),
        lambda: fitted(program=mended),
    ),
    "other rows of AutoNormal": Remedy(
        r"tied to 4 .* the batch has 2 rows: .*pv.Guide\(model, pv.LocalParameters\(num_data\)\)",
        lambda: tied_automatic(Y[:2]),
        fitted,
    ),
    "AutoNormal compared": Remedy(
        r"AutoNormal has free parameters for each .*pv.Guide\(model, pv.LocalParameters",
        lambda: compared(auto=AutoNormal(model)),
        lambda: compared(local=pv.LocalParameters(4)),
    ),
    "rows compared": Remedy(
        r"q of site 'z' in the guide is tied to the training rows, .*pv.LocalParameters",
        lambda: compared(rows=of_all_rows),
        lambda: compared(local=local()),
    ),
    "a table inside compared": Remedy(
        "pass the inner pv.Guide itself",
        lambda: compared(holder=Holder()),
        lambda: compared(holder=Holder().inner),
    ),
    "tensors of an object": Remedy(
        "register these tensors with pyro.param",
        lambda: Copies((Y,)).of_program(reaching),
        lambda: evidence(model, Copies((Y,)).of_program(named)),
    ),
}


REMEDIES = {**FAMILIES, **MAPS}


@pytest.mark.parametrize("name", REMEDIES)
@pytest.mark.filterwarnings("ignore")
def test_what_a_refusal_says_to_write_is_right(name: str) -> None:
    """The call is refused in these words; the other one gives log p(y) within its error."""
    follow(REMEDIES[name])
