"""Does a training step with parameters for every datum cost more if there are more data?

The same model (64 features, 8 latents, a small decoder) is trained on batches of 256 rows, with
free parameters for every datum, for data sets of growing size N, under two guides:

    LocalParameters    rows of a table, with an optimizer that updates only the rows of the batch
    AutoNormal         Pyro's automatic guide with create_plates, all N rows under Adam

Both take batches of the same data from memory, and train the decoder with Adam. Sizes and guides
alternate between repeats, so that a change in the machine's speed affects all of them. The time of
a step is the median over the steps of a repeat, and its ratio is to the smallest N in the same
repeat. The benchmark prints medians over repeats, with ranges in parentheses.

Run:  python benchmarks/local_parameters.py      (--smoke for a quick look)
"""

import argparse
import statistics
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.programs.modes import local_parameters

FEATURES, LATENTS, BATCH = 64, 8, 256
Step = Callable[[], float]


class Model(pyro.nn.PyroModule):
    """A decoder with one hidden layer and Gaussian noise; can be told the positions of rows."""

    def __init__(self, num_data: int) -> None:
        super().__init__()
        self.num_data = num_data
        self.decoder = nn.Sequential(nn.Linear(LATENTS, 64), nn.Tanh(), nn.Linear(64, FEATURES))

    def forward(self, y: Tensor, rows: Tensor | None = None) -> None:
        """The program; with `rows` its plate subsamples, as AutoNormal needs."""
        plate = (
            pyro.plate("data", len(y))
            if rows is None
            else pyro.plate("data", self.num_data, subsample=rows)
        )
        with plate:
            z = pyro.sample("z", dist.Normal(y.new_zeros(LATENTS), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=y)


def ours(y: Tensor) -> Step:
    """Sets up a step as `pv.fit` takes it, on newly drawn rows."""
    model = Model(len(y))
    guide = pv.Guide(model, pv.LocalParameters(len(y)), example=y[:2])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    objective = Trace_ELBO()

    def step() -> float:
        rows = torch.randint(len(y), (BATCH,))
        start = time.perf_counter()
        with pv.minibatch(rows, len(y)), local_parameters(model, guide):
            loss = objective.differentiable_loss(model, guide, y[rows])
        optimizer.zero_grad()
        (loss / len(y)).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def autonormal(y: Tensor) -> Step:
    """Sets up a step of Pyro's SVI with its automatic guide."""
    model = Model(len(y))

    def plates(part: Tensor, rows: Tensor) -> pyro.plate:
        return pyro.plate("data", len(y), subsample=rows)

    guide = AutoNormal(model, create_plates=plates)
    svi = SVI(model, guide, Adam({"lr": 1e-3}), Trace_ELBO())

    def step() -> float:
        rows = torch.randint(len(y), (BATCH,))
        start = time.perf_counter()
        svi.step(y[rows], rows)
        return time.perf_counter() - start

    return step


def timed(step: Step, num_steps: int) -> float:
    """The median time of a step in milliseconds, after three warm-up steps."""
    for _ in range(3):
        step()
    return 1e3 * statistics.median(step() for _ in range(num_steps))


def measure(
    make: Callable[[Tensor], Step], sizes: list[int], num_steps: list[int], repeats: int
) -> list[list[float]]:
    """Milliseconds per step, by repeat and size."""
    table = []
    for repeat in range(repeats):
        row = []
        for size, steps in zip(sizes, num_steps, strict=True):
            pyro.clear_param_store()
            torch.manual_seed(repeat)
            row.append(timed(make(torch.randn(size, FEATURES)), steps))
        table.append(row)
    pyro.clear_param_store()
    return table


def spread(values: list[float], digits: int) -> str:
    """The median, and the range."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def report(name: str, sizes: list[int], table: list[list[float]]) -> None:
    """Prints a line for every size."""
    for index, size in enumerate(sizes):
        times = [row[index] for row in table]
        ratios = [row[index] / row[0] for row in table]
        print(f"{name:<16} {size:>9,} {spread(times, 2):>24} {spread(ratios, 2):>20}", flush=True)


def main() -> None:
    """Reads the arguments, measures both, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="small sizes and few steps")
    parser.add_argument("--steps", type=int, default=100, help="steps per size and repeat")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of the whole")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [1_000, 2_000] if options.smoke else [1_000, 10_000, 100_000, 1_000_000]
    steps, repeats = (5, 2) if options.smoke else (options.steps, options.repeats)
    print(f"{'guide':<16} {'N':>9} {'ms per step':>24} {'times N = 1,000':>20}", flush=True)
    report("LocalParameters", sizes, measure(ours, sizes, [steps] * len(sizes), repeats))
    # A step of AutoNormal at a million rows takes about a second: five of them say enough.
    few = [steps if size < 100_000 else 5 for size in sizes]
    report("AutoNormal", sizes, measure(autonormal, sizes, few, min(repeats, 2)))


if __name__ == "__main__":
    main()
