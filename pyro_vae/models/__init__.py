"""Generative models: Pyro programs that can also generate."""

from .priors import Prior as Prior
from .priors import StandardNormal as StandardNormal
from .vae import VAE as VAE

__all__ = ["VAE", "Prior", "StandardNormal"]
