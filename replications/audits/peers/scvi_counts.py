"""Fits scvi-tools' VAE to digits as counts, and writes it with the log-likelihoods it reports."""

import sys

import anndata
import numpy as np
import scvi
import torch
from sklearn.datasets import load_digits

CELLS, REPEATS = 200, 6
torch.set_num_threads(1)
scvi.settings.seed = 0
counts = load_digits().data.astype("float32")
counts = anndata.AnnData(counts[:, counts.sum(axis=0) > 0])
scvi.model.SCVI.setup_anndata(counts)
model = scvi.model.SCVI(counts, n_latent=5, n_hidden=32, gene_likelihood="nb")
model.train(max_epochs=40, accelerator="cpu", train_size=1.0, enable_progress_bar=False)
few = counts[:CELLS].copy()
mean, variance = model.get_latent_representation(few, return_dist=True)


def reported(draws: int, **how: object) -> list[np.ndarray]:
    """What it says, with other draws each time."""
    values = []
    for seed in range(REPEATS):
        torch.manual_seed(seed)
        values.append(np.asarray(model.get_marginal_ll(few, n_mc_samples=draws, **how)))
    return values


np.savez(
    sys.argv[1],
    counts=few.X,
    mean=mean,
    scale=np.sqrt(variance),
    theta=model.module.px_r.detach().exp(),
    cells=reported(1_000, return_mean=False),
    means=reported(1_000, return_mean=True),
    by_thirty=reported(100, return_mean=False, n_mc_samples_per_pass=30),
    **{f"decoder.{name}": part for name, part in model.module.decoder.state_dict().items()},
)
