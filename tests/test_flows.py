"""Flows in a guide, what they can learn that no normal can, and what is refused."""

import functools
from collections.abc import Callable

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.distributions import Normal

import pyro_vae as pv
from pyro_vae.guides.families import Family, FullRankNormal, LowRankNormal
from pyro_vae.guides.flows import (
    AffineAutoregressive,
    AffineCoupling,
    ElementwiseSpline,
    FlowTransform,
    NormalizingFlow,
    SplineAutoregressive,
)
from tests.helpers.cases import CASES

float64 = pytest.mark.usefixtures("float64")
assert_exact = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


@float64
@pytest.mark.parametrize("name", ["factor-analysis", "outer-data"])
def test_flows_in_a_guide(name: str) -> None:
    """As the guide of a program with one vector, and of one with plates inside a datum."""
    case, batch = CASES[name], CASES[name].data()
    family = NormalizingFlow(AffineAutoregressive((8,)), context=3)
    guide = pv.Guide(case.program, pv.GlobalParameters(), family, example=batch)
    Trace_ELBO().differentiable_loss(case.program, guide, *batch).backward()
    assert all(weight.grad is not None for weight in guide.parameters())
    nets = [key for key in guide.state_dict() if key.startswith("family.")]
    assert len(nets) == len(family.state_dict())
    assert guide.sample(batch, 2).shape == (2, len(batch[0]), case.latents)
    pyro.clear_param_store()


def banana(z: Tensor) -> Tensor:
    """A density whose second latent follows the square of the first: log p, normalized."""
    first = Normal(0.0, 1.0).log_prob(z[..., 0])
    return first + Normal(z[..., 0] ** 2 - 1, 0.5).log_prob(z[..., 1])


def divergence(family: Family, parameters: Tensor, steps: int) -> Tensor:
    """Terms of KL(q || banana) after fitting, `(draws,)`, in nats."""
    parameters = parameters.clone().requires_grad_()
    nets = list(family.parameters()) if isinstance(family, nn.Module) else []
    optimizer = torch.optim.Adam([parameters, *nets], lr=0.01)
    for step in range(steps + 1):
        q = family(parameters)
        z = q.rsample(torch.Size((256 if step < steps else 20_000,)))
        terms = (q.log_prob(z) - banana(z))[:, 0]
        optimizer.zero_grad()
        terms.mean().backward()
        optimizer.step()
    return terms.detach()


@pytest.mark.slow
def test_a_flow_learns_what_no_normal_can() -> None:
    """A banana: a normal stays half a nat away, and the flow comes near."""
    family: Family = NormalizingFlow(AffineAutoregressive((32,)), context=2)
    family.setup(2)  # type: ignore[attr-defined]
    best_normal = divergence(
        FullRankNormal(), FullRankNormal().initial(torch.zeros(2)).unsqueeze(0), 800
    )
    bent = divergence(family, family.initial(torch.zeros(2)).unsqueeze(0), 800)
    assert bent.mean() < 0.1
    assert best_normal.mean() > 0.4


def test_a_flow_has_to_be_set_up_once() -> None:
    """Before it there are no nets, and a second time they would be lost."""
    family = NormalizingFlow()
    with pytest.raises(ValueError, match=r"no networks yet.*pv.Guide"):
        family(torch.zeros(1, 12))
    with pytest.raises(ValueError, match="no networks yet"):
        family.mean(torch.zeros(1, 12))
    family.setup(2)
    with pytest.raises(ValueError, match=r"already set up for 2 latent"):
        family.setup(2)


@pytest.mark.parametrize(
    "transform", [AffineAutoregressive(), SplineAutoregressive(), AffineCoupling()]
)
def test_one_latent_has_no_others(transform: FlowTransform) -> None:
    """The error names the transform that works; and a refused setup leaves nothing behind."""
    family = NormalizingFlow(transform)
    with pytest.raises(ValueError, match=r"at least 2 latents; got 1: use .*ElementwiseSpline"):
        family.setup(1)
    family.setup(2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRankNormal(0), "at least 1; got 0"),
        (lambda: NormalizingFlow(num_transforms=0), "num_transforms=0"),
        (lambda: NormalizingFlow(context=0), "context=0"),
        (lambda: AffineAutoregressive(()), r"hidden=\(\)"),
        (lambda: AffineCoupling((0,)), r"AffineCoupling .* hidden=\(0,\)"),
        (lambda: ElementwiseSpline(bins=1), "bins=1"),
        (lambda: SplineAutoregressive(bound=-1.0), "bound=-1.0"),
        (lambda: NormalizingFlow(AffineAutoregressive((3,))).setup(5), r"pass `hidden=\(5,\)`"),
    ],
)
def test_what_cannot_be_made_is_refused(make: Callable[[], object], message: str) -> None:
    """With the value that came."""
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("bound", [1.0, 4.0])
def test_splines_end_at_their_bound(bound: float) -> None:
    """Beyond it the map is the identity, and the density that of the normal; within, another."""
    family = NormalizingFlow(ElementwiseSpline(bound=bound))
    family.setup(1)
    with torch.no_grad():
        for weight in family.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    q = family(family.initial(torch.tensor([0.5]), scale=2.0))
    outside = torch.tensor([-1.5, -1.01, 1.01, 1.5])[:, None] * bound
    inside = torch.linspace(-0.9, 0.9, 7)[:, None] * bound
    off = [
        q.log_prob(0.5 + 2 * e).detach() - Normal(0.5, 2.0).log_prob(0.5 + 2 * e)[:, 0]
        for e in (outside, inside)
    ]
    assert float(off[0].abs().max()) < 1e-5
    assert float(off[1].abs().max()) > 1e-2
