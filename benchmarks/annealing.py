"""What does a marginal likelihood by annealing cost, and what do simpler methods give in that time?

The model is factor analysis with 10 latents, 30 features and noise 0.25, whose log p(y) is known.
Four methods that use nothing but the program run on the same data, in turns within each repeat:

    annealing, HMC     AnnealedImportanceSampling from the prior, with its defaults; the time
                       includes the pilot run, and compiling if that pays
    eager              the same, never compiled
    annealing, walk    annealing by a random walk (Metropolis), steps tuned in a pilot of its own
    prior              importance sampling from the prior

The last two get at least as much time as the first took, which sets their number of temperatures or
draws. The benchmark prints seconds per datum, the root mean square error over data in nats, and the
ratio of this error to that of the first method, each as median (range) over repeats.

Run:  python benchmarks/annealing.py      (--smoke for a quick look)
"""

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.evidence import log_weights
from pyro_vae.evidence.annealing import AnnealedImportanceSampling
from pyro_vae.evidence.weights import conditioned
from pyro_vae.programs import Prior
from pyro_vae.stats import log_mean_exp

LATENTS, FEATURES, NOISE, CHAINS = 10, 30, 0.25, 16
DRAWS = 2000  # from the prior, at a time
Answer = Callable[[Tensor, Tensor, float], Tensor]  # loadings, data, seconds -> log p(y)


def model_of(loadings: Tensor) -> Callable[[Tensor], None]:
    """The program."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z @ loadings.T, NOISE).to_event(1), obs=y)

    return model


def prior_of(y: Tensor) -> None:
    """The prior as a guide."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1))


def hmc(temperatures: int, *, compile: bool | None) -> Answer:
    """Annealing by Hamiltonian transitions, with the library's default trajectories."""
    method = AnnealedImportanceSampling(CHAINS, temperatures, compile=compile)

    def answer(loadings: Tensor, y: Tensor, seconds: float) -> Tensor:
        model = model_of(loadings)
        with conditioned(model, prior_of, y, 0) as inference:
            return method(inference, seed=0, progress=False).value

    return answer


def walk(loadings: Tensor, y: Tensor, seconds: float) -> Tensor:
    """Anneals by random-walk Metropolis for `seconds`, on a grid that is dense at the start."""
    with conditioned(model_of(loadings), prior_of, y, 0) as (program, _, batch):
        prior = Prior(program, batch)

        def run(count: int, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
            """Log weights, and the step sizes, which are tuned during the run if none are given."""
            z, _ = prior.draw(CHAINS)
            base, ratio = program.log_densities(z, *batch)
            weights, size, used = torch.zeros(CHAINS, len(y)), torch.zeros(len(y)), []
            places = torch.linspace(0, 1, count + 1) ** 4
            for index, (before, place) in enumerate(pairwise(places)):
                weights += (place - before) * ratio
                if sizes is not None:
                    size = sizes[index * len(sizes) // count]
                there = z + size.exp()[:, None] * torch.randn_like(z)
                new_base, new_ratio = program.log_densities(there, *batch)
                gain = new_base - base + place * (new_ratio - ratio)
                taken = torch.rand_like(gain).log() < gain
                z = torch.where(taken[..., None], there, z)
                base = torch.where(taken, new_base, base)
                ratio = torch.where(taken, new_ratio, ratio)
                used.append(size)
                size = size + 0.3 * (gain.exp().clamp(max=1).mean(dim=0) - 0.234)
            return weights, torch.stack(used)

        start = time.perf_counter()
        _, sizes = run(100, None)
        # temperatures that fit into the time
        rest = seconds / ((time.perf_counter() - start) / 100)
        _, sizes = run(max(100, int(rest / 5)), None)
        weights, _ = run(max(100, int(rest * 4 / 5)), sizes)
    return log_mean_exp(weights)


def importance(loadings: Tensor, y: Tensor, seconds: float) -> Tensor:
    """Importance sampling from the prior, until `seconds` have passed."""
    parts: list[Tensor] = []
    model, start = model_of(loadings), time.perf_counter()
    while not parts or time.perf_counter() - start < seconds:
        draws = log_weights(model, prior_of, y, num_samples=DRAWS, seed=len(parts))
        parts.append(log_mean_exp(draws))
    return log_mean_exp(torch.stack(parts))


def exact(loadings: Tensor, y: Tensor) -> Tensor:
    """The exact log p(y) of each datum."""
    covariance = loadings @ loadings.T + NOISE**2 * torch.eye(FEATURES)
    marginal = dist.MultivariateNormal(torch.zeros(FEATURES), covariance)
    log_p: Tensor = marginal.log_prob(y)
    return log_p


def spread(values: list[float]) -> str:
    """The median, and the range."""
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def main() -> None:
    """Reads the arguments, measures, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="few temperatures, one repeat")
    parser.add_argument("--temperatures", type=int, default=2000, help="of annealing by HMC")
    parser.add_argument("--data", type=int, default=20, help="data, annealed at the same time")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of the whole")
    options = parser.parse_args()
    temperatures, repeats = options.temperatures, options.repeats
    num_data = options.data
    if options.smoke:
        temperatures, repeats, num_data = 20, 1, 4
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    names: dict[str, Answer] = {
        "annealing, HMC": hmc(temperatures, compile=None),
        "eager": hmc(temperatures, compile=False),
        "annealing, walk": walk,
        "prior": importance,
    }
    times: dict[str, list[float]] = {name: [] for name in names}
    errors: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        torch.manual_seed(repeat)
        loadings, seconds = torch.randn(FEATURES, LATENTS), 0.0
        y = torch.randn(num_data, LATENTS) @ loadings.T + NOISE * torch.randn(num_data, FEATURES)
        for name, answer in names.items():
            start = time.perf_counter()
            off = answer(loadings, y, seconds) - exact(loadings, y)
            times[name].append((time.perf_counter() - start) / num_data)
            seconds = seconds or time.perf_counter() - start
            errors[name].append(float(off.square().mean().sqrt()))
    first = errors["annealing, HMC"]
    print(f"{'':<16} {'seconds per datum':>24} {'error, nats':>24} {'times the first':>24}")
    for name in names:
        ratios = [mine / its for mine, its in zip(errors[name], first, strict=True)]
        print(
            f"{name:<16} {spread(times[name]):>24} {spread(errors[name]):>24} {spread(ratios):>24}"
        )


if __name__ == "__main__":
    main()
