"""What does a training step cost, with the program written in Pyro?

The model is a Bernoulli VAE whose decoder and encoder have one hidden layer each, at three sizes
(features-hidden-latents, batch). A step of Adam on a batch in memory is taken by

    torch         written by hand: no probabilistic program, one optimizer step
    torch.compile the same, with the loss and its gradient compiled by `torch.compile`
    Pyro SVI      the program under Trace_ELBO and Pyro's Adam
    eager         `pv.fit` with compile=False
    compiled      `pv.fit` with compile=True, once it is compiled
    NumPyro jit   `svi.update` compiled, one call per step
    NumPyro scan  many steps in one compiled loop

The last two run only if NumPyro is installed. All take turns within each repeat, so that a change
in the machine's speed affects all of them. The time of a repeat is the median over its steps, and
for the scan the mean. The benchmark prints median milliseconds over repeats, and ratios to
`compiled` in the same repeat, with their range. Compiling takes up to a minute per size, which is
printed as well.

Run:  python benchmarks/training_step.py      (--smoke for a quick look)
"""

import argparse
import functools
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, elu

import pyro_vae as pv
from pyro_vae.compiling import CompiledSteps
from pyro_vae.programs.modes import capturing, local_parameters

SIZES = {
    "64-64-2, 64": (64, 64, 2, 64),
    "784-400-10, 256": (784, 400, 10, 256),
    "784-200-50, 100": (784, 200, 50, 100),
}
Steps = Callable[[int], float]  # takes so many steps; seconds per step


def timed(step: Callable[[], Any]) -> Steps:
    """Returns a function that takes steps one by one and gives their median time."""

    def run(number: int) -> float:
        seconds = []
        for _ in range(number):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    return run


def programs(features: int, hidden: int, latents: int) -> tuple[pv.models.VAE, pv.Guide]:
    """The model and the guide of all contestants that run Pyro."""
    decoder = pv.nets.MLPDecoder(latents, features, (hidden,))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=latents)
    return model, pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(features, (hidden,))))


def by_hand(
    features: int, hidden: int, latents: int, *, compile: bool = False
) -> Callable[[Tensor], None]:
    """Sets up a function that takes a step on a batch, in torch without a program."""
    layers = [(features, hidden), (hidden, 2 * latents), (latents, hidden), (hidden, features)]
    first, head, second, last = (nn.Linear(*size) for size in layers)
    parameters = [p for layer in (first, head, second, last) for p in layer.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2e-3, fused=True)

    def loss(y: Tensor) -> Tensor:
        loc, log_scale = head(elu(first(y))).chunk(2, dim=-1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        logits = last(elu(second(z)))
        fit = binary_cross_entropy_with_logits(logits, y, reduction="sum")
        rate = (z.square() - (z - loc).div(log_scale.exp()).square() - 2 * log_scale).sum() / 2
        return fit + rate

    minimized = torch.compile(loss) if compile else loss

    def step(y: Tensor) -> None:
        optimizer.zero_grad()
        minimized(y).backward()
        optimizer.step()

    return step


def with_svi(y: Tensor, hidden: int, latents: int) -> Steps:
    """Sets up the steps of Pyro's own SVI."""
    model, guide = programs(y.shape[1], hidden, latents)
    svi = SVI(model, guide, Adam({"lr": 2e-3}), Trace_ELBO())
    return timed(lambda: svi.step(y))


def ours(y: Tensor, hidden: int, latents: int, *, compile: bool) -> Steps:
    """Sets up the steps that `pv.fit` takes, eager or compiled."""
    model, guide = programs(y.shape[1], hidden, latents)
    elbo = Trace_ELBO()
    tensors: list[Tensor] = [*model.parameters(), *guide.parameters()]
    optimizer = torch.optim.Adam(tensors, lr=2e-3)

    def loss(*batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.arange(len(y), device="meta" if capturing() else "cpu")  # as `pv.fit` does
        with local_parameters(model, guide), pv.minibatch(rows, len(y), plate="data"):
            total = elbo.differentiable_loss(model, guide, *batch) / len(y)
        return total, -total, total

    def eager() -> None:
        optimizer.zero_grad()
        loss(y)[0].backward()
        optimizer.step()

    if not compile:
        return timed(eager)
    steps = CompiledSteps(loss, tensors, optimizer, compile=True)
    start = time.perf_counter()
    with steps.counted():
        eager()
    if steps.step((y,), steps_left=1) is None:
        raise RuntimeError(f"the step could not be compiled: {steps.reason}")
    print(f"  compiled in {time.perf_counter() - start:.0f} s", flush=True)
    return timed(lambda: steps.step((y,), steps_left=1))


def numpyro_programs(features: int, hidden: int, latents: int) -> tuple[Any, Any]:
    """The same model and guide in NumPyro."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def layer(name: str, fan_in: int, fan_out: int) -> Any:
        weight = numpyro.param(
            f"{name}_weight",
            lambda key: jax.random.normal(key, (fan_in, fan_out)) / fan_in**0.5,
        )
        bias = numpyro.param(f"{name}_bias", jnp.zeros(fan_out))
        return lambda x: x @ weight + bias

    def model(batch: Any) -> None:
        second, last = layer("second", latents, hidden), layer("last", hidden, features)
        with numpyro.plate("data", len(batch)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(latents), 1.0).to_event(1))
            logits = last(jax.nn.elu(second(z)))
            numpyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=batch)

    def guide(batch: Any) -> None:
        first, head = layer("first", features, hidden), layer("head", hidden, 2 * latents)
        loc, log_scale = jnp.split(head(jax.nn.elu(first(batch))), 2, axis=-1)
        with numpyro.plate("data", len(batch)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    return model, guide


def numpyro_svi(y: Tensor, hidden: int, latents: int) -> tuple[Any, Any]:
    """NumPyro's SVI for a batch, and its first state."""
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro.infer import SVI as NumPyroSVI
    from numpyro.infer import Trace_ELBO as NumPyroELBO

    programs = numpyro_programs(y.shape[1], hidden, latents)
    svi = NumPyroSVI(*programs, numpyro.optim.Adam(2e-3), NumPyroELBO())
    return svi, svi.init(jax.random.PRNGKey(0), jnp.asarray(y.numpy()))


def numpyro_steps(y: Tensor, hidden: int, latents: int) -> dict[str, Steps]:
    """Sets up a compiled update of NumPyro, and a compiled loop over updates."""
    import jax
    import jax.numpy as jnp

    data, (svi, start) = jnp.asarray(y.numpy()), numpyro_svi(y, hidden, latents)
    state, update = [start], jax.jit(svi.update)

    def step() -> None:
        state[0], loss = update(state[0], data)
        loss.block_until_ready()

    @functools.cache
    def loop(number: int) -> Any:
        def many(start: Any, batch: Any) -> Any:
            return jax.lax.scan(lambda s, _: svi.update(s, batch), start, length=number)

        compiled = jax.jit(many)
        compiled(state[0], data)[1].block_until_ready()
        return compiled

    def scan(number: int) -> float:
        run = loop(number)
        start = time.perf_counter()
        run(state[0], data)[1].block_until_ready()
        return (time.perf_counter() - start) / number

    return {"NumPyro jit": timed(step), "NumPyro scan": scan}


def peers(size: tuple[int, int, int, int]) -> dict[str, Steps]:
    """Sets up all ways to take a step, for one size."""
    features, hidden, latents, batch = size
    torch.manual_seed(0)
    y = (torch.rand(batch, features) < 0.5).float()
    found = {
        "torch": timed(functools.partial(by_hand(features, hidden, latents), y)),
        "torch.compile": timed(
            functools.partial(by_hand(features, hidden, latents, compile=True), y)
        ),
        "Pyro SVI": with_svi(y, hidden, latents),
        "eager": ours(y, hidden, latents, compile=False),
        "compiled": ours(y, hidden, latents, compile=True),
    }
    if importlib.util.find_spec("numpyro") is not None:
        found |= numpyro_steps(y, hidden, latents)
    return found


def measured(size: tuple[int, int, int, int], repeats: int, steps: int) -> dict[str, list[float]]:
    """Seconds per step of every peer, by repeat; peers take turns."""
    found = peers(size)
    for run in found.values():  # what is set up at first use
        run(steps)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(repeats):
        for name, run in found.items():
            seconds[name].append(run(steps))
    pyro.clear_param_store()
    return seconds


def report(seconds: dict[str, list[float]], ours: str) -> None:
    """Prints milliseconds, and ratios of runs from the same repeat."""
    for peer, own in seconds.items():
        ratios = sorted(a / b for a, b in zip(own, seconds[ours], strict=True))
        print(
            f"  {peer:13} {1e3 * statistics.median(own):8.3f} ms   "
            f"{statistics.median(ratios):6.2f} times {ours} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )


def main() -> None:
    """Reads the arguments, measures every size, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="use one small size, as a test")
    parser.add_argument(
        "--threads", type=int, default=2, help="of torch; NumPyro takes what it has"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    repeats, steps = (2, 5) if arguments.smoke else (7, 50)
    sizes = {"8-8-2, 4": (8, 8, 2, 4)} if arguments.smoke else SIZES
    for name, size in sizes.items():
        print(name, flush=True)
        report(measured(size, repeats, steps), "compiled")


if __name__ == "__main__":
    main()
