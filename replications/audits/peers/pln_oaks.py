"""Fits a Poisson log-normal PCA to the oaks of pyPLNmodels, and writes what it holds."""

import sys

import numpy as np
import torch
from pyPLNmodels import PlnPCA, load_oaks

torch.manual_seed(0)
oaks = load_oaks()
model = PlnPCA.from_formula("endog ~ 1", oaks, rank=5).fit(verbose=False)
np.savez(
    sys.argv[1],
    counts=model.endog.detach().cpu(),
    offsets=model.offsets.detach().cpu(),
    marginal_mean=(model.exog @ model.coef).detach().cpu(),
    components=model.components.detach().cpu(),
    mean=model.latent_mean.detach().cpu(),
    scale=model._latent_sqrt_variance.detach().abs().cpu(),
    elbo=float(model.elbo),
    final=float(model.compute_elbo()),
)
