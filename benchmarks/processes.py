"""How much faster do two processes train, evaluate and compute gaps than one?

A Bernoulli VAE with 784 columns, one hidden layer of 400 units and 10 latents gives log p(y) and
inference gaps, and is trained, as the how-to page on several processes shows: each process has its
share of the rows, and one thread. One and two processes take turns. Every repeat starts new
processes with torchrun, on this machine.

The benchmark prints the seconds of an epoch, of the log p(y) and of the gaps. It also prints the
parallel efficiency, which is 1 if two processes take half the time of one: the time of one process,
divided by twice the time of two. Each process needs a core of its own. Log p(y) and the ELBO must
be those of one process, up to rounding; otherwise the run fails.

Run:  python benchmarks/processes.py      (--smoke for a quick look)
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass

import torch

import pyro_vae as pv

FEATURES, HIDDEN, LATENTS = 784, 400, 10
TOLERANCE = 1e-5  # relative: sums in another order
PARTS = ("epoch", "log p(y)", "gaps")
_WORKER = "PROCESSES_WORKER"


@dataclass(frozen=True)
class Sizes:
    """Sizes of the data and of the run."""

    rows: int
    batch: int
    epochs: int
    evaluated: int
    draws: int
    gaps: int
    repeats: int
    compile: bool


FULL = Sizes(20_480, 1024, 6, 1000, 1000, 100, 3, compile=True)
SMOKE = Sizes(64, 32, 2, 10, 50, 4, 1, compile=False)


class Clock(pv.training.Callback):
    """Notes when epochs end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_epoch(self, run: pv.training.callbacks.Run) -> None:
        """Notes the time."""
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Median time of an epoch; the first ones compile."""
        gaps = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return statistics.median(gaps[len(gaps) // 2 :])


def work(sizes: Sizes) -> None:
    """Does the work of one process; the first process prints seconds and results."""
    torch.distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")  # an untrained guide is a bad one: known here
    everything = (torch.rand(sizes.rows, FEATURES) < 0.3).float()
    decoder = pv.nets.MLPDecoder(LATENTS, FEATURES, (HIDDEN,))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=LATENTS)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(FEATURES, (HIDDEN,))))

    seconds, results = [], []
    start = time.perf_counter()
    some = pv.distributed.share(everything[: sizes.evaluated])
    method = pv.ImportanceSampling(sizes.draws)
    evidence = pv.log_marginal_likelihood(model, guide, some, method, seed=1, progress=False)
    results.append(pv.distributed.gather(evidence).value.mean().item())
    seconds.append(time.perf_counter() - start)

    start = time.perf_counter()
    few = pv.distributed.share(everything[: sizes.gaps])
    gap = pv.inference_gap(model, guide, few, seed=2, progress=False)
    results.append(pv.distributed.gather(gap).elbo.value.mean().item())
    seconds.append(time.perf_counter() - start)

    clock, y = Clock(), pv.distributed.share(everything)
    pv.fit(
        model, guide, y, num_epochs=sizes.epochs, batch_size=sizes.batch, seed=0, patience=None,
        callbacks=clock, compile=sizes.compile, progress=False,
    )  # fmt: skip
    seconds = [clock.seconds, *seconds]
    if pv.distributed.rank() == 0:
        print(json.dumps({"seconds": seconds, "results": results}), flush=True)
    torch.distributed.barrier()  # a peer that leaves first may end this process by a signal
    torch.distributed.destroy_process_group()


def run(processes: int, *, smoke: bool) -> dict[str, list[float]]:
    """Starts the processes; returns what the first one printed."""
    command = [
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={processes}", __file__, *(["--smoke"] if smoke else []),
    ]  # fmt: skip
    environment = {**os.environ, _WORKER: "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def spread(values: list[float]) -> str:
    """Formats median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Lets one and two processes take turns, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, as a test")
    smoke = parser.parse_args().smoke
    sizes = SMOKE if smoke else FULL
    if _WORKER in os.environ:
        work(sizes)
        return
    runs = [[run(number, smoke=smoke) for number in (1, 2)] for _ in range(sizes.repeats)]
    print(f"{'seconds':10s} {'one process':>22s} {'two processes':>22s} {'efficiency':>22s}")
    for index, name in enumerate(PARTS):
        times = [[each["seconds"][index] for each in pair] for pair in runs]
        columns = [*map(list, zip(*times, strict=True)), [one / (2 * two) for one, two in times]]
        print(f"{name:10s} {' '.join(f'{spread(column):>22s}' for column in columns)}")
    for pair in runs:
        one, two = (torch.tensor(each["results"]) for each in pair)
        if not torch.allclose(one, two, rtol=TOLERANCE):
            raise SystemExit(f"two processes give other results: {two.tolist()}, {one.tolist()}")
    print("log p(y) and ELBO of two processes are those of one, up to rounding")


if __name__ == "__main__":
    main()
