"""Priors: they integrate to one, their draws follow them, and every guide trains under them."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from scipy import stats
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.models import FlowPrior, MixtureOfNormals, Prior, StandardNormal, VampPrior
from pyro_vae.registry import arguments_of
from tests.helpers.models import assert_compares, assert_works_under_every_guide
from tests.helpers.statistics import FALSE_ALARM

float64 = pytest.mark.usefixtures("float64")


def encoder() -> pv.Encoder:
    """For data of three features."""
    return pv.Encoder(pv.nets.MLPEncoder(3, (6,)))


def vamp(_: int) -> VampPrior:
    """Four pseudo-inputs."""
    return VampPrior(encoder(), torch.randn(4, 3), pv.DiagonalNormal())


def vamp_full(_: int) -> VampPrior:
    """With correlations."""
    return VampPrior(encoder(), (4, 3), pv.FullRankNormal())


def flow(latents: int) -> FlowPrior:
    """Splines: with one latent each by itself."""
    if latents == 1:
        return FlowPrior(1, pv.ElementwiseSpline(hidden=(8,)))
    return FlowPrior(latents, pv.SplineAutoregressive(hidden=(8,)), num_transforms=3)


PRIORS: dict[str, Callable[[int], Prior]] = {
    "standard": lambda _: StandardNormal(),
    "mixture": lambda latents: MixtureOfNormals(3, latents),
    "vamp": vamp,
    "vamp-full": vamp_full,
    "spline": flow,
}
TWO: dict[str, Callable[[int], Prior]] = {
    **PRIORS,
    "affine": lambda latents: FlowPrior(latents, pv.AffineAutoregressive(hidden=(8,))),
    "coupling": lambda latents: FlowPrior(latents, pv.AffineCoupling(hidden=(8,)), 4),
}
every = pytest.mark.parametrize("name", TWO)


def made(name: str, latents: int) -> tuple[Prior, Tensor]:
    """A prior in no particular place, set up for so many latents, and zeros."""
    zero = torch.zeros(latents)
    prior = TWO[name](latents)
    prior.setup(zero)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return prior, zero


def lattice(latents: int, half_width: float = 10.0) -> tuple[Tensor, float]:
    """Points of an even lattice and the volume of each."""
    side = torch.linspace(-half_width, half_width, 10_001 if latents == 1 else 401)
    step = float(side[1] - side[0])
    points = torch.cartesian_prod(*[side] * latents).reshape(-1, latents)
    return points, step**latents


# ---------------------------------------------------------------------- densities


@float64
@every
@pytest.mark.parametrize("latents", [1, 2])
def test_it_integrates_to_one(name: str, latents: int) -> None:
    """On a lattice; of splines, whose density has kinks, to 1e-3."""
    if latents == 1 and name not in PRIORS:
        pytest.skip("these layers bend one latent given another")
    prior, zero = made(name, latents)
    points, volume = lattice(latents)
    with torch.no_grad():
        total = float(prior(zero).log_prob(points).exp().sum() * volume)
    tolerance = 1e-3 if name == "spline" else 1e-6
    assert abs(total - 1) < tolerance
    assert abs(1.01 * total - 1) > tolerance  # a density that is 1% too high is caught


@float64
@every
@pytest.mark.parametrize("latents", [1, 2])
def test_draws_follow_the_density(name: str, latents: int) -> None:
    """Of the first latent, against the distribution function of the lattice (Kolmogorov)."""
    if latents == 1 and name not in PRIORS:
        pytest.skip("these layers bend one latent given another")
    prior, zero = made(name, latents)
    points, _ = lattice(latents)
    with torch.no_grad():
        density = prior(zero).log_prob(points).exp()
        draws = prior(zero).expand([20_000]).sample()
    side = points.view(*[round(len(points) ** (1 / latents))] * latents, latents)
    last = density.view(side.shape[:-1])
    marginal = last if latents == 1 else last.sum(dim=0)  # of the last latent
    grid = torch.linspace(-10, 10, len(marginal))
    middles = (marginal.cumsum(0) - marginal / 2) / marginal.sum()
    uniform = torch.as_tensor(np.interp(draws[:, -1].numpy(), grid.numpy(), middles.numpy()))
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > FALSE_ALARM
    assert stats.kstest(uniform.numpy() ** 1.1, "uniform").pvalue < FALSE_ALARM  # the wrong twin
    assert draws.shape == (20_000, latents)


@float64
@every
def test_shapes_of_the_distribution(name: str) -> None:
    """Draws and densities under plates, and of one point for many."""
    prior, zero = made(name, 2)
    distribution = prior(zero)
    assert distribution.event_shape == (2,)
    assert distribution.batch_shape == ()
    many = distribution.expand([5])
    assert many.batch_shape == (5,)
    assert many.sample((7,)).shape == (7, 5, 2)
    assert many.log_prob(torch.zeros(7, 5, 2)).shape == (7, 5)
    assert many.log_prob(torch.zeros(2)).shape == (5,)


@float64
def test_a_flow_starts_as_the_normal() -> None:
    """Near N(0, I), so that it trains as a VAE does at first."""
    for make in (flow, TWO["affine"], TWO["coupling"]):
        prior, z = make(2), torch.randn(50, 2)
        expected = StandardNormal()(torch.zeros(2)).log_prob(z)
        assert (prior(torch.zeros(2)).log_prob(z) - expected).abs().max() < 0.1


# ---------------------------------------------------------------------- in a model


def model_with(prior: Prior, latents: int = 2) -> pv.models.VAE:
    """A small VAE."""
    likelihood = pv.likelihoods.Gaussian(1.0)
    return pv.models.VAE(nn.Linear(latents, 3), likelihood, latents, prior)


@float64
@every
def test_a_grid_and_importance_sampling_agree(name: str) -> None:
    """The evidence by a grid over z is that of many weighted draws, in standard errors."""
    prior, _ = made(name, 2)
    model, y = model_with(prior), 0.5 * torch.randn(6, 3)
    wide = pv.GlobalParameters()
    guide = pv.Guide(model, wide)
    with torch.no_grad():
        wide.value[2:] = 0.7  # twice as wide as a standard normal: no weight is large
    points, volume = lattice(2)
    with torch.no_grad():
        log_prior = prior(torch.zeros(2)).log_prob(points)
        log_likelihood = torch.stack([model.conditional(points).log_prob(row) for row in y])
        exact = (log_prior + log_likelihood).logsumexp(dim=-1) + math.log(volume)
    found = pv.log_marginal_likelihood(model, guide, y, pv.ImportanceSampling(20_000))
    z = (found.value - exact) / (found.error + 1e-4)  # what a lattice leaves of a kink
    limit = stats.norm.isf(FALSE_ALARM / 2 / len(y))
    assert z.abs().max() < limit
    assert ((found.value + 0.2 - exact) / (found.error + 1e-4)).abs().max() > limit  # too high


@pytest.mark.filterwarnings("ignore")
@every
def test_every_guide(name: str) -> None:
    """A VAE with the prior trains, prior and all, and evaluates under every guide."""
    net = pv.nets.MLPEncoder
    assert_works_under_every_guide(
        model_with(TWO[name](2)),
        (torch.randn(6, 3),),
        lambda: net(3, (4,)),
        families=(pv.FullRankNormal(),),
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_comparison() -> None:
    """Guides side by side under a learned prior."""
    net = pv.nets.MLPEncoder
    assert_compares(model_with(MixtureOfNormals(3, 2)), (torch.randn(6, 3),), lambda: net(3, (4,)))


@pytest.mark.slow
@float64
def test_a_better_prior_is_worth_it() -> None:
    """Latents in two clusters: the mixture finds them, and log p rises above a normal's."""
    side = torch.where(torch.arange(100) % 2 == 0, -3.0, 3.0)
    y = torch.stack([side, -side, side], dim=1) + torch.randn(100, 3)
    points, volume = lattice(1)
    scores = []
    for prior in (StandardNormal(), MixtureOfNormals(2, 1)):
        model = model_with(prior, latents=1)
        guide = pv.Guide(model, pv.Encoder(nn.Linear(3, 2)))
        pv.fit(
            model, guide, y, num_epochs=200, batch_size=100, progress=False,
            optimizer=lambda values: torch.optim.Adam(values, lr=0.05),
        )  # fmt: skip
        with torch.no_grad():
            log_joint = model.conditional(points).log_prob(y[:, None]) + model.prior().log_prob(
                points
            )
            scores.append(float(log_joint.logsumexp(dim=-1).mean()) + math.log(volume))
    assert scores[1] > scores[0] + 0.2


# ---------------------------------------------------------------------- a shared encoder


def shared() -> tuple[pv.models.VAE, pv.Guide, pv.Encoder]:
    """A model whose prior is made of its guide's own posteriors."""
    mine = encoder()
    prior = VampPrior(mine, torch.randn(4, 3), pv.DiagonalNormal())
    model = model_with(prior)
    return model, pv.Guide(model, mine, pv.DiagonalNormal()), mine


def test_the_encoder_is_one() -> None:
    """The guide keeps the layer that the prior put on top; a pseudo-input is a datum to it."""
    model, guide, mine = shared()
    prior: Any = model.latent_prior
    assert guide.map is prior.encoder is mine
    y = prior.pseudo_inputs.detach()
    posteriors = guide.posterior(y)
    components = prior(torch.zeros(2)).components
    torch.testing.assert_close(posteriors.mean(), components.mean)


def test_it_trains_in_both_roles() -> None:
    """The weights move, and prior and guide still agree; so under Pyro's own SVI."""
    model, guide, mine = shared()
    before, y = copy.deepcopy(mine.state_dict()), torch.randn(20, 3)
    pv.fit(model, guide, y, num_epochs=2, batch_size=10, progress=False)
    for name, value in mine.state_dict().items():
        assert not torch.equal(value, before[name]), name
    prior: Any = model.latent_prior
    assert guide.map is prior.encoder
    components = prior(torch.zeros(2)).components
    inputs = prior.pseudo_inputs.detach()
    torch.testing.assert_close(guide.mean(inputs), components.mean.detach())
    bound = pv.elbo(model, guide, y, 200).elbo
    exact = pv.log_marginal_likelihood(model, guide, y, pv.Quadrature()).value
    assert (bound.value - exact < 5 * bound.error).all()


@pytest.mark.usefixtures("user_param_store")
def test_pyros_own_loop() -> None:
    """SVI counts a shared weight once: one step of Adam, whatever it is called."""
    model, guide, mine = shared()
    weight: Tensor = mine.net.layers[0].weight  # type: ignore[index, union-attr]
    before = weight.detach().clone()
    svi = SVI(model, guide, ClippedAdam({"lr": 0.01}), Trace_ELBO())
    y = torch.randn(20, 3)
    with pv.minibatch(torch.arange(20), 20):
        svi.step(y)
    moved = (weight.detach() - before).abs()
    assert 0 < float(moved.max()) < 0.0101  # the first step of Adam is at most its step size


def test_saved_and_loaded(tmp_path: Path) -> None:
    """A shared encoder comes back into objects of the same make, as one."""
    model, guide, _ = shared()
    y = torch.randn(5, 3)
    pv.fit(model, guide, y, num_epochs=1, progress=False)
    pv.save(tmp_path / "saved", model=model, guide=guide)
    other, other_guide, _ = shared()
    pv.load(tmp_path / "saved", model=other, guide=other_guide)
    expected = pv.log_weights(model, guide, y, num_samples=3)
    assert torch.equal(pv.log_weights(other, other_guide, y, num_samples=3), expected)
    prior: Any = other.latent_prior
    assert prior.encoder is other_guide.map


def test_another_family_is_refused() -> None:
    """The head has as many outputs as the prior's family needs."""
    mine = encoder()
    model = model_with(VampPrior(mine, (4, 3), pv.DiagonalNormal()))
    with pytest.raises(
        ValueError,
        match=r"already gives 4 parameters .* needs 5 parameters: create another Encoder",
    ):
        pv.Guide(model, mine, pv.FullRankNormal())


# ---------------------------------------------------------------------- what is refused

REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no component": (
        lambda: MixtureOfNormals(0, 2),
        ValueError,
        "`components` must be .* at least 1; got 0",
    ),
    "other latents": (
        lambda: model_with(MixtureOfNormals(2, 3)),
        ValueError,
        r"is for 3 latents, but the model has 2",
    ),
    "flow of other latents": (
        lambda: model_with(FlowPrior(3, pv.AffineCoupling())),
        ValueError,
        r"is for 3 latents, but the model has 2",
    ),
    "no kind of layer": (
        lambda: FlowPrior(2, nn.Linear(2, 2)),
        TypeError,
        "must describe the layers",
    ),
    "no layer": (
        lambda: FlowPrior(2, pv.AffineCoupling(), 0),
        ValueError,
        "`num_transforms` of FlowPrior must",
    ),
    "one latent": (lambda: FlowPrior(1, pv.AffineCoupling()), ValueError, "at least 2"),
    "a bare net": (
        lambda: VampPrior(nn.Linear(3, 4), (4, 3), pv.DiagonalNormal()),
        TypeError,
        "wrap the net in pv.Encoder",
    ),
    "a family with nets": (
        lambda: VampPrior(encoder(), (4, 3), pv.NormalizingFlow()),
        TypeError,
        "without parameters of its own",
    ),
    "nan": (
        lambda: VampPrior(encoder(), torch.full((4, 3), torch.nan), pv.DiagonalNormal()),
        ValueError,
        r"must be finite rows of data, .*got shape \(4, 3\) with 12",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    """With what was expected and what to do."""
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        make()


def test_arguments_make_the_same() -> None:
    """The arguments that each was made with."""
    for name, make in TWO.items():
        prior = make(2)
        again = type(prior)(**arguments_of(prior))
        assert [p.shape for p in again.parameters()] == [p.shape for p in prior.parameters()], name
