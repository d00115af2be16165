"""Does evaluation up to a million rows stay linear in time, and close to the bare arithmetic?

`pv.log_marginal_likelihood` of a small Gaussian VAE (20 columns, 4 latents) runs with ten draws per
row on one thread. It is compared with the bare arithmetic on the same rows: the encoder, torch's
own normals, the decoder, the densities and the logarithm of the mean, in pieces of two thousand
rows. The bare arithmetic has no checks and no verdicts, and its draws depend on the position of a
row.

For each number of rows the benchmark prints seconds, microseconds per row, the ratio to the bare
arithmetic, the ratio of the library's time to linear growth, and the largest anonymous memory. The
library compiles the densities if that saves time; the time to compile is included.

Run:  python benchmarks/many_rows.py      (--smoke for a quick look)
"""

import argparse
import math
import time
import warnings

import torch
from scale import Peak
from torch import Tensor

import pyro_vae as pv

FEATURES, LATENTS, HIDDEN, DRAWS = 20, 4, 32, 10
ROWS = (10_000, 100_000, 1_000_000)


def programs() -> tuple[pv.models.VAE, pv.Guide]:
    """The model and its encoder."""
    decoder = pv.nets.MLPDecoder(LATENTS, FEATURES, (HIDDEN,))
    model = pv.models.VAE(decoder, pv.likelihoods.Gaussian(), latent_dim=LATENTS)
    return model, pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(FEATURES, (HIDDEN,))))


@torch.no_grad()
def bare(model: pv.models.VAE, guide: pv.Guide, y: Tensor) -> Tensor:
    """Computes an importance-weighted estimate with unit noise, and nothing else."""
    found = []
    for piece in y.split(2000):
        loc, log_scale = guide.map((piece,), None).chunk(2, dim=-1)
        noise = torch.randn(DRAWS, len(piece), LATENTS)
        z = loc + log_scale.exp() * noise
        mean = model.decoder(z.flatten(0, 1)).view(DRAWS, len(piece), FEATURES)
        fit = (piece - mean).square().sum(dim=-1)
        log_weights = (noise.square() - z.square()).sum(-1) / 2 + log_scale.sum(-1) - fit / 2
        found.append(log_weights.double().logsumexp(dim=0) - math.log(DRAWS))
    return torch.cat(found)


def main() -> None:
    """Prints a line for each number of rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="use few rows, as a test")
    numbers = (1000, 2000) if parser.parse_args().smoke else ROWS
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, guide = programs()
    method, first = pv.ImportanceSampling(DRAWS), 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pv.log_marginal_likelihood(model, guide, torch.randn(100, FEATURES), method)  # imports
    for rows in numbers:
        y = torch.randn(rows, FEATURES)
        start = time.perf_counter()
        bare(model, guide, y)
        least = time.perf_counter() - start
        memory = Peak()
        with warnings.catch_warnings(), memory.watched():
            warnings.simplefilter("ignore")  # warnings about an untrained guide are expected
            start = time.perf_counter()
            pv.log_marginal_likelihood(model, guide, y, method, progress=False)
            taken = time.perf_counter() - start
        first = first or taken / rows
        print(
            f"{rows:9,} rows {taken:8.2f} s {1e6 * taken / rows:6.1f} us per row  "
            f"{taken / least:5.2f} times the arithmetic  {taken / rows / first:5.2f} of linear  "
            f"{memory.most:6.0f} MiB",
            flush=True,
        )
    print("expected at a million: at most 3 times the arithmetic, at most 1.1 of linear")


if __name__ == "__main__":
    main()
