"""Losses of Pyro under a `Guide`: vectorized particles, each as if it were alone; Jacobians."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import pyro_vae as pv

PARTICLES = 3
Y = torch.linspace(-2.0, 2.0, 12, dtype=torch.float64).reshape(4, 3)

pytestmark = pytest.mark.usefixtures("float64", "user_param_store")


def two_sites(y: Tensor) -> None:
    """A real and a positive latent."""
    with pyro.plate("data", len(y), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
        loc = z.sum(-1, keepdim=True).expand(*z.shape[:-1], 3)
        pyro.sample("y", dist.Normal(loc, scale.unsqueeze(-1)).to_event(1), obs=y)


def plate_on_the_right(y: Tensor) -> None:
    """A latent per datum and one per entry."""
    with pyro.plate("data", len(y), dim=-2):
        gain = pyro.sample("gain", dist.Gamma(4.0, 4.0))
        with pyro.plate("entries", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(gain, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def plate_on_the_left(y: Tensor) -> None:
    """The entries are a plate left of the data; a latent is a simplex."""
    with pyro.plate("data", len(y), dim=-1):
        gain = pyro.sample("gain", dist.Gamma(4.0, 4.0))
        with pyro.plate("entries", 3, dim=-2):
            share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
            pyro.sample("y", dist.Normal(gain * share[..., 0], 1.0), obs=y.T)


def with_shared_sites(y: Tensor) -> None:
    """Shared sites: a number, one of a plate, and a simplex; the local latent is one vector."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("entries", 3, dim=-1):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("data", len(y), dim=-2):
        a = pyro.sample("a", dist.Normal(loc, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", 3, dim=-1):
            mean = a * shares[..., 0] + b * shares[..., 1]
            pyro.sample("y", dist.Normal(mean, scale), obs=y)


MODELS = {
    model.__name__: (model, nesting)
    for model, nesting in (
        (two_sites, 1),
        (plate_on_the_right, 2),
        (plate_on_the_left, 2),
        (with_shared_sites, 2),
    )
}


class Net(nn.Sequential):
    """An encoder."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.Tanh())


MAPS: dict[str, Callable[[], pv.InferenceMap]] = {
    "encoder": lambda: pv.Encoder(Net()),
    "table": lambda: pv.LocalParameters(len(Y)),
    "global": pv.GlobalParameters,
}


def log_probs(trace: Any) -> dict[str, Tensor]:
    """Log densities of the sites of a trace."""
    trace.compute_log_prob()
    nodes = trace.nodes.items()
    return {name: node["log_prob"] for name, node in nodes if "log_prob" in node}


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("name", MODELS)
def test_each_particle_is_one_alone(name: str, map: str, left: int) -> None:
    """Site by site, in guide and model; also in a plate further left than it has to be."""
    model, nesting = MODELS[name]
    guide = pv.Guide(model, MAPS[map](), pv.FullRankNormal(), example=Y, plate="data")

    def traced(*draws: dict[str, Any]) -> list[dict[str, Any]]:
        program = poutine.condition(guide, *draws) if draws else guide
        sampled = poutine.trace(program).get_trace(Y)
        values = {
            key: sampled.nodes[key]["value"] for key in ("_latent", "_global") if key in sampled
        }
        replayed = poutine.trace(poutine.replay(model, trace=sampled)).get_trace(Y)
        return [values, log_probs(sampled), log_probs(replayed)]

    with pyro.plate("particles", PARTICLES, dim=-1 - nesting - left):
        values, *together = traced()
    own = {key: value.shape for key, value in traced()[0].items()}
    assert "_latent" in own
    for particle in range(PARTICLES):
        _, *alone = traced({key: values[key][particle].reshape(own[key]) for key in values})
        for one, many in zip(alone, together, strict=True):
            for site, log_prob in one.items():
                here = many[site]
                here = here[particle] if here.dim() > nesting + left else here
                torch.testing.assert_close(here.sum(), log_prob.sum())


@pytest.mark.parametrize("name", MODELS)
def test_mean_field_losses_have_the_jacobians(name: str) -> None:
    """Pyro's mean-field loss is the other one at the same draws, if no term has a closed form."""
    model, _ = MODELS[name]
    guide = pv.Guide(model, pv.GlobalParameters(), example=Y, plate="data")

    def loss(objective: Any) -> float:
        pyro.set_rng_seed(3)
        return objective.loss(model, guide, Y)

    assert loss(TraceMeanField_ELBO()) == pytest.approx(loss(Trace_ELBO()), rel=1e-12)


def with_a_label(y: Tensor) -> None:
    """A label that is summed out, beside two latents."""
    with pyro.plate("data", len(y), dim=-1):
        label = pyro.sample("label", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.Gamma(4.0, 4.0))
        pyro.sample("y", dist.Normal(z + label, scale), obs=y[:, 0])


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO])
def test_they_train(objective: Any) -> None:
    """Through `fit`, also beside discrete sites, which Pyro enumerates left of the particles."""
    model = with_a_label if objective is TraceEnum_ELBO else two_sites
    guide = pv.Guide(model, pv.LocalParameters(len(Y)), example=Y)
    start = pv.elbo(model, guide, Y, 400).mean.value
    options = {"num_particles": PARTICLES, "vectorize_particles": True, "max_plate_nesting": 1}
    loss = objective(**options)
    optimizer = lambda tensors: torch.optim.Adam(tensors, lr=0.05)  # noqa: E731 (one line)
    pv.fit(model, guide, Y, num_epochs=40, objective=loss, optimizer=optimizer, progress=False)
    assert pv.elbo(model, guide, Y, 400).mean.value > start + 0.05


DECODED = pv.likelihoods.Gaussian(pv.likelihoods.DecodedSigma())
OF_ROWS: dict[str, Callable[[], Any]] = {
    "sigma is decoded": lambda: pv.models.VAE(
        pv.nets.MLPDecoder(2, 3, (5,), outputs=2), DECODED, latent_dim=2
    ),
    "categories": lambda: pv.models.VAE(
        pv.nets.MLPDecoder(2, 3, (5,), outputs=4), pv.likelihoods.Categorical(4), latent_dim=2
    ),
    "covariates": lambda: pv.models.ConditionalVAE(
        pv.nets.Concatenated(pv.nets.MLPDecoder(3, 3, (5,))),
        pv.likelihoods.Gaussian(),
        latent_dim=2,
        covariates=1,
    ),
    "batch norm": lambda: pv.models.VAE(
        nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3)), pv.likelihoods.Gaussian(), latent_dim=2
    ),
    "images": lambda: pv.models.VAE(
        pv.nets.ConvDecoder(2, (1, 4, 4), (2,)), pv.likelihoods.Gaussian(), latent_dim=2
    ),
    "layers": lambda: pv.models.HierarchicalVAE(
        pv.nets.MLPDecoder(1, 3, (5,)),
        pv.likelihoods.Gaussian(),
        latent_dim=1,
        layers=[pv.nets.MLPDecoder(1, 2, (4,))],
    ),
    "states": lambda: pv.models.SequentialVAE(
        nn.Linear(1, 2), pv.nets.MLPDecoder(1, 1), pv.likelihoods.Gaussian(), latent_dim=1, length=2
    ),
}


@pytest.mark.parametrize("name", OF_ROWS)
def test_decoders_and_likelihoods_of_rows(name: str) -> None:
    """Particles in a dimension of their own are rows for them: each as if it were alone."""
    model = OF_ROWS[name]().eval()
    shape = {"images": (4, 1, 4, 4), "states": (4, 2, 1)}.get(name, (4, 3))
    y = torch.arange(4.0).repeat(16)[: torch.Size(shape).numel()].view(shape)
    data: tuple[Tensor, ...] = (y,)
    if name == "covariates":
        data += (torch.linspace(-1.0, 1.0, 4)[:, None],)
    flat = torch.randn(PARTICLES, 4, 2)
    sites = {"layers": ("z_2", "z_1"), "states": ("z_1", "z_2")}.get(name, ("z",))
    z = dict(zip(sites, flat.split(2 // len(sites), dim=-1), strict=True))

    def densities(values: dict[str, Tensor]) -> list[Tensor]:
        program = poutine.condition(model, values)
        nodes: Any = poutine.trace(program).get_trace(*data).nodes
        return [nodes[site]["fn"].log_prob(nodes[site]["value"]) for site in (*sites, "y")]

    with pyro.plate("particles", PARTICLES, dim=-2):
        together = densities(z)
    for k in range(PARTICLES):
        alone = densities({site: value[k] for site, value in z.items()})
        for both, one in zip(together, alone, strict=True):
            torch.testing.assert_close(both.expand(PARTICLES, 4)[k], one)


def test_a_vae_of_the_library_trains_by_vectorized_particles() -> None:
    """As Pyro's users ask for them, with the networks of this package."""
    model = pv.models.VAE(pv.nets.MLPDecoder(1, 3, (5,)), pv.likelihoods.Gaussian(), latent_dim=1)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(3, hidden=(5,))))
    start = pv.elbo(model, guide, Y, 400).mean.value
    loss = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True)
    optimizer = lambda tensors: torch.optim.Adam(tensors, lr=0.02)  # noqa: E731 (one line)
    pv.fit(model, guide, Y, num_epochs=40, objective=loss, optimizer=optimizer, progress=False)
    assert pv.elbo(model, guide, Y, 400).mean.value > start + 0.05
