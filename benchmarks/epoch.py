"""What does an epoch of `pv.fit` cost, from the shuffle to the record of the history?

The model is a Bernoulli VAE whose decoder and encoder have one hidden layer each, at three sizes
(features-hidden-latents, batch), with fifty batches of data in memory. An epoch shuffles the rows,
gathers batches, and takes a step of Adam on each:

    pv.fit         with its defaults, once it has compiled its steps
    torch          written by hand: no program, no checks, no history
    torch.compile  the same, with the loss and its gradient compiled by `torch.compile`
    NumPyro scan   a compiled loop over the batches of a shuffled copy, if NumPyro is installed
    Pythae         the epoch of its trainer, with the same networks, if Pythae is installed

The peers run in turns between the epochs of one call of `pv.fit`. The benchmark prints median
milliseconds over repeats. It also prints the ratio of each peer's time to that of `pv.fit` in the
same repeat, with its range; above 1, `pv.fit` is faster. All use the same number of threads.

Run:  python benchmarks/epoch.py      (--smoke for a quick look; --threads N)
"""

import argparse
import functools
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import elu
from training_step import SIZES, by_hand, numpyro_svi, programs, report

import pyro_vae as pv

BATCHES, WARMING = 50, 5  # of an epoch; epochs that are not counted
Epochs = dict[str, Callable[[], Any]]


def torch_epoch(
    y: Tensor, size: tuple[int, int, int, int], *, compile: bool = False
) -> Callable[[], None]:
    """Sets up an epoch that is written by hand in torch."""
    step, batch = by_hand(*size[:3], compile=compile), size[3]

    def epoch() -> None:
        for rows in torch.randperm(len(y)).split(batch):
            step(y[rows])

    return epoch


def numpyro_epoch(y: Tensor, size: tuple[int, int, int, int]) -> Callable[[], None]:
    """Sets up an epoch of NumPyro as one compiled loop."""
    import jax
    import jax.numpy as jnp

    _, hidden, latents, batch = size
    svi, start = numpyro_svi(y[:batch], hidden, latents)
    data, state, keys = jnp.asarray(y.numpy()), [start], [jax.random.PRNGKey(1)]

    def shuffled(begun: Any, key: Any) -> Any:
        batches = jax.random.permutation(key, data).reshape(-1, batch, data.shape[1])
        return jax.lax.scan(svi.update, begun, batches)

    compiled = jax.jit(shuffled)

    def epoch() -> None:
        keys[0], key = jax.random.split(keys[0])
        state[0], losses = compiled(state[0], key)
        losses.block_until_ready()

    return epoch


def pythae_epoch(y: Tensor, size: tuple[int, int, int, int], folder: str) -> Callable[[], None]:
    """Sets up an epoch of Pythae's trainer; it writes into the folder."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    features, hidden, latents, batch = size

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(features, hidden), nn.Linear(hidden, 2 * latents)

        def forward(self, y: Tensor) -> Any:
            loc, log_variance = self.head(elu(self.first(y))).chunk(2, dim=-1)
            return ModelOutput(embedding=loc, log_covariance=log_variance)

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.second, self.last = nn.Linear(latents, hidden), nn.Linear(hidden, features)

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.last(elu(self.second(z))).sigmoid())

    config = VAEConfig(input_dim=(features,), latent_dim=latents, reconstruction_loss="bce")
    trainer = BaseTrainer(
        VAE(config, Encoder(), Decoder()),
        BaseDataset(y, torch.ones(len(y))),
        training_config=BaseTrainerConfig(
            output_dir=folder, per_device_train_batch_size=batch, learning_rate=2e-3, no_cuda=True
        ),
    )
    trainer.prepare_training()
    return functools.partial(trainer.train_step, 1)


class Turns(pv.training.Callback):
    """Times the epochs of a run, and runs the peers between them."""

    def __init__(self, peers: Epochs) -> None:
        self.peers = peers
        self.seconds: dict[str, list[float]] = {name: [] for name in ("pv.fit", *peers)}

    def on_start(self, run: pv.training.callbacks.Run) -> None:
        """Starts the clock."""
        self.start = time.perf_counter()

    def on_epoch(self, run: pv.training.callbacks.Run) -> None:
        """Stops the clock, gives the peers their turns, and starts the clock again."""
        self.seconds["pv.fit"].append(time.perf_counter() - self.start)
        for name, epoch in self.peers.items():
            start = time.perf_counter()
            epoch()
            self.seconds[name].append(time.perf_counter() - start)
        self.start = time.perf_counter()


def measured(size: tuple[int, int, int, int], repeats: int, folder: str) -> dict[str, list[float]]:
    """Seconds per epoch of `pv.fit` and of its peers, by repeat."""
    features, hidden, latents, batch = size
    torch.manual_seed(0)
    y = (torch.rand(BATCHES * batch, features) < 0.5).float()
    peers: Epochs = {
        "torch": torch_epoch(y, size),
        "torch.compile": torch_epoch(y, size, compile=True),
    }
    if importlib.util.find_spec("numpyro") is not None:
        peers["NumPyro scan"] = numpyro_epoch(y, size)
    if importlib.util.find_spec("pythae") is not None:
        peers["Pythae"] = pythae_epoch(y, size, folder)
    turns, (model, guide) = Turns(peers), programs(features, hidden, latents)
    fit = pv.fit(
        model, guide, y, num_epochs=WARMING + repeats, batch_size=batch, callbacks=turns,
        compile=True, progress=False,
    )  # fmt: skip
    print(f"  steps are {fit.compiled}", flush=True)
    return {name: times[WARMING:] for name, times in turns.seconds.items()}


def main() -> None:
    """Reads the arguments, measures every size, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="use one small size, as a test")
    parser.add_argument("--threads", type=int, default=1, help="of torch and of NumPyro")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if hasattr(os, "sched_setaffinity"):  # JAX has no setting for threads
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[: arguments.threads])
    sizes = {"8-8-2, 4": (8, 8, 2, 4)} if arguments.smoke else SIZES
    for name, size in sizes.items():
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            report(measured(size, 2 if arguments.smoke else 25, folder), "pv.fit")


if __name__ == "__main__":
    main()
