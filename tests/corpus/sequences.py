"""Time steps, hidden Markov chains, capture and recapture."""

# Programs as their authors write them, of which Pyro declares no types.
# mypy: disable-error-code="call-overload,untyped-decorator"

import itertools

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from tests.corpus.case import (
    Case,
    bernoulli,
    integral,
    line,
    multivariate_normal,
    normal,
    program,
)

ROWS, STEPS = 4, 3


def walk_truth(y: Tensor, lengths: Tensor, decay: float, noise: float) -> Tensor:
    """Observed series of a Gaussian autoregression, up to their lengths."""
    weights = torch.eye(STEPS).double()
    for late, early in itertools.product(range(STEPS), repeat=2):
        weights[late, early] = decay ** (late - early) if late >= early else 0.0
    covariance = weights @ weights.T + noise**2 * torch.eye(STEPS).double()
    values = [
        multivariate_normal(series[:n], covariance[:n, :n])
        for series, n in zip(y, lengths.tolist(), strict=True)
    ]
    return torch.stack(values)


def reader() -> nn.Module:
    """From what is left of a series and the state before: a mean and a log scale."""
    return nn.Linear(2, 2)


@program
def deep_markov() -> Case:
    """Deep Markov model: masks on latents and data mark where each series ends."""
    y, lengths = torch.randn(ROWS, STEPS, 1), torch.tensor([3, 2, 3, 1])
    mask, net = (torch.arange(STEPS) < lengths.unsqueeze(-1)).float(), reader()

    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("z_minibatch", len(x)):
            z = x.new_zeros(1)
            for t in pyro.markov(range(STEPS)):
                with poutine.scale(None, 0.5):
                    step = dist.Normal(0.8 * z, x.new_ones(1)).mask(mask[:, t : t + 1])
                    z = pyro.sample(f"z_{t + 1}", step.to_event(1))
                given = dist.Normal(z, 0.6).mask(mask[:, t : t + 1]).to_event(1)
                pyro.sample(f"obs_x_{t + 1}", given, obs=x[:, t, :])

    def guide(x: Tensor, mask: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("z_minibatch", len(x)):
            z = x.new_zeros(len(x), 1)
            for t in pyro.markov(range(STEPS)):
                loc, log_scale = net(torch.cat([z, x[:, t]], -1)).chunk(2, -1)
                with poutine.scale(None, 0.5):
                    step = dist.Normal(loc, log_scale.exp()).mask(mask[:, t : t + 1])
                    z = pyro.sample(f"z_{t + 1}", step.to_event(1))

    def unmasked() -> Case:
        def model(x: Tensor, mask: Tensor) -> None:
            with pyro.plate("z_minibatch", len(x)):
                z = x.new_zeros(1)
                for t in pyro.markov(range(STEPS)):
                    z = pyro.sample(f"z_{t + 1}", dist.Normal(0.8 * z, 1.0).to_event(1))
                    given = dist.Normal(z, 0.6).mask(mask[:, t : t + 1]).to_event(1)
                    pyro.sample(f"obs_x_{t + 1}", given, obs=x[:, t, :])

        def guide(x: Tensor, mask: Tensor) -> None:
            with pyro.plate("z_minibatch", len(x)):
                z = x.new_zeros(len(x), 1)
                for t in pyro.markov(range(STEPS)):
                    loc, log_scale = net(torch.cat([z, x[:, t]], -1)).chunk(2, -1)
                    z = pyro.sample(f"z_{t + 1}", dist.Normal(loc, log_scale.exp()).to_event(1))

        return Case(model, guide, (y, mask), truth)

    truth = walk_truth(y.squeeze(-1), lengths, 0.8, 0.6)
    return Case(model, guide, (y, mask), truth, remedies={"z_2": unmasked, "z_1": unmasked})


@program
def deep_markov_full() -> Case:
    """Deep Markov model of series of equal length; poutine.scale anneals the latents."""
    y, net = torch.randn(ROWS, STEPS), reader()

    def model(x: Tensor) -> None:
        with pyro.plate("series", len(x)):
            z = torch.zeros(())
            for t in pyro.markov(range(STEPS)):
                with poutine.scale(scale=0.2):
                    z = pyro.sample(f"z_{t}", dist.Normal(0.8 * z, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, 0.6), obs=x[:, t])

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("series", len(x)):
            z = x.new_zeros(len(x))
            for t in pyro.markov(range(STEPS)):
                loc, log_scale = net(torch.stack([z, x[:, t]], -1)).unbind(-1)
                with poutine.scale(scale=0.2):
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, log_scale.exp()))

    return Case(model, guide, (y,), walk_truth(y, torch.full((ROWS,), STEPS), 0.8, 0.6))


@program
def lengths() -> Case:
    """Time series of different lengths: the data after the end of a series are masked."""
    y, sizes, net = torch.randn(ROWS, STEPS), torch.tensor([3, 1, 2, 3]), reader()

    def model(y: Tensor, sizes: Tensor) -> None:
        with pyro.plate("series", len(y)):
            z = torch.zeros(())
            for t in range(STEPS):
                z = pyro.sample(f"z_{t}", dist.Normal(0.5 * z, 1.0))
                with poutine.mask(mask=t < sizes):
                    pyro.sample(f"y_{t}", dist.Normal(z, 0.7), obs=y[:, t])

    def guide(y: Tensor, sizes: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("series", len(y)):
            z = y.new_zeros(len(y))
            for t in range(STEPS):
                known = y[:, t] * (t < sizes)
                loc, log_scale = net(torch.stack([z, known], -1)).unbind(-1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, log_scale.exp()))

    return Case(model, guide, (y, sizes), walk_truth(y, sizes, 0.5, 0.7))


TRANSITION = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
EMISSION = torch.tensor([-1.0, 1.5])


def forward_algorithm(emitted: Tensor, transition: Tensor) -> Tensor:
    """Log p of series, from `emitted`, `(..., batch, steps, states)`; state 0 comes before."""
    log_transition = transition.log()
    alpha = log_transition[..., 0, :] + emitted[..., 0, :]
    for t in range(1, emitted.shape[-2]):
        alpha = (alpha.unsqueeze(-1) + log_transition).logsumexp(-2) + emitted[..., t, :]
    return alpha.logsumexp(-1)


@program
def hmm() -> Case:
    """Hidden Markov model with discrete states only; each datum is a series."""
    y = torch.randn(ROWS, STEPS)

    @config_enumerate
    def model(y: Tensor) -> None:
        locs = pyro.param("locs", EMISSION)
        with pyro.plate("series", len(y), dim=-1):
            x = torch.tensor(0)
            for t in pyro.markov(range(STEPS)):
                x = pyro.sample(f"x_{t}", dist.Categorical(TRANSITION[x]))
                pyro.sample(f"y_{t}", dist.Normal(locs[x], 0.8), obs=y[:, t])

    def guide(y: Tensor) -> None:
        pass

    emitted = normal(y.double().unsqueeze(-1), EMISSION.double(), 0.8)
    return Case(model, guide, (y,), forward_algorithm(emitted, TRANSITION.double()), discrete=True)


@program
def mixed_effect_hmm() -> Case:
    """Mixed-effect hidden Markov model: a latent effect per individual in the transitions."""
    y, net = torch.randn(ROWS, STEPS), nn.Linear(STEPS, 2)

    @config_enumerate
    def model(y: Tensor) -> None:
        with pyro.plate("individual", len(y), dim=-1):
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
            stay = torch.stack([effect, -effect], -1).sigmoid()
            x = torch.tensor(0)
            for t in pyro.markov(range(STEPS)):
                chance = Vindex(stay)[..., x]
                x = pyro.sample(f"x_{t}", dist.Bernoulli(chance)).long()
                pyro.sample(f"y_{t}", dist.Normal(Vindex(EMISSION)[x], 0.8), obs=y[:, t])

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("individual", len(y), dim=-1):
            loc, log_scale = net(y).unbind(-1)
            pyro.sample("effect", dist.Normal(loc, log_scale.exp()))

    z = line(-9, 9, 401)
    one = torch.cat([z, -z], -1).sigmoid()  # from state i to state 1
    transition = torch.stack([1 - one, one], -1).unsqueeze(1)
    emitted = normal(y.double().unsqueeze(-1), EMISSION.double(), 0.8)
    truth = integral(normal(z) + forward_algorithm(emitted, transition), z)
    return Case(model, guide, (y,), truth, discrete=True)


def chance_of(seen: list[float]) -> float:
    """Of a history after its first capture: alive until some step, seen or not till then."""
    later = seen[seen.index(1.0) + 1 :]
    total = 0.0
    for alive in range(len(later) + 1):
        if any(later[alive:]):
            continue
        lives = 0.8**alive * (0.2 if alive < len(later) else 1.0)
        for mark in later[:alive]:
            lives *= 0.4 if mark else 0.6
        total += lives
    return total


@program
def capture_recapture() -> Case:
    """Capture-recapture: masked discrete states; survival and capture rates are global."""
    history = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]]).float()
    given = {"phi": torch.tensor(0.8), "rho": torch.tensor(0.4)}

    @config_enumerate
    def model(history: Tensor) -> None:
        phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
        rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
        with pyro.plate("animals", len(history), dim=-1):
            z = torch.ones(len(history))
            first = torch.zeros(len(history)).bool()
            for t in pyro.markov(range(STEPS)):
                with poutine.mask(mask=first):
                    alive = first.float() * phi * z + (1 - first.float())
                    z = pyro.sample(f"z_{t}", dist.Bernoulli(alive))
                    pyro.sample(f"y_{t}", dist.Bernoulli(rho * z), obs=history[:, t])
                first = first | history[:, t].bool()

    def guide(history: Tensor) -> None:
        a = pyro.param("a", torch.tensor([0.8, 0.4]), constraint=dist.constraints.unit_interval)
        pyro.sample("phi", dist.Beta(20 * a[0], 20 * (1 - a[0])))
        pyro.sample("rho", dist.Beta(20 * a[1], 20 * (1 - a[1])))

    truth = torch.tensor([chance_of(seen) for seen in history.tolist()], dtype=torch.float64).log()

    def unmasked() -> Case:
        @config_enumerate
        def model(history: Tensor) -> None:
            phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
            rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
            with pyro.plate("animals", len(history), dim=-1):
                z, first = torch.ones(len(history)), torch.zeros(len(history))
                for t in pyro.markov(range(STEPS)):
                    z = pyro.sample(f"z_{t}", dist.Bernoulli(first * phi * z + (1 - first)))
                    with poutine.mask(mask=first.bool()):
                        pyro.sample(f"y_{t}", dist.Bernoulli(rho * z), obs=history[:, t])
                    first = torch.maximum(first, history[:, t])

        return Case(model, guide, (history,), truth, given, discrete=True)

    return Case(
        model, guide, (history,), truth, given, remedies={"masked": unmasked}, discrete=True
    )


@program
def gaussian_mixture() -> Case:
    """Gaussian mixture: the local latent is discrete; weights, means and scale are global."""
    y = torch.tensor([-1.5, 0.2, 1.0, 2.5])
    given = {
        "weights": torch.tensor([0.4, 0.6]),
        "locs": torch.tensor([-1.0, 1.5]),
        "scale": torch.tensor(0.7),
    }

    @config_enumerate
    def model(y: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            assignment = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=y)

    def guide(y: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-1.0, 1.5]))
        pyro.sample("weights", dist.Dirichlet(torch.tensor([40.0, 60.0])))
        pyro.sample("scale", dist.LogNormal(-0.36, 0.1))
        with pyro.plate("components", 2):
            pyro.sample("locs", dist.Normal(loc, 0.1))

    parts = normal(y.double().unsqueeze(-1), given["locs"].double(), 0.7)
    truth = (given["weights"].double().log() + parts).logsumexp(-1)
    return Case(model, guide, (y,), truth, given, discrete=True)


@program
def fixed_mixture() -> Case:
    """A finite mixture with fixed components: no continuous latents and no global ones."""
    y = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    weights, logits = torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 0.5], [1.0, 2.0]])

    @config_enumerate
    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            kind = pyro.sample("kind", dist.Categorical(weights))
            pyro.sample("y", dist.Bernoulli(logits=logits[kind]).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        pass

    parts = bernoulli(y.double().unsqueeze(1), logits.double()).sum(-1)
    return Case(model, guide, (y,), (weights.double().log() + parts).logsumexp(-1), discrete=True)
