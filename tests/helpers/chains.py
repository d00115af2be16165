"""Chains whose weights are wrong on purpose."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evidence.hamiltonian import Path, at, transition


def adapting(path: Path, z: Tensor, places: Tensor, noise: Any) -> Tensor:
    """Weights of chains whose steps react to their own last acceptance: wrong."""
    point, log_weights = at(path, z), torch.zeros(z.shape[:2])
    step = torch.full_like(z[..., :1], 0.5)
    for before, place in pairwise(places[:-1]):
        log_weights += (place - before) * point.log_ratio
        moved = transition(path, point, place, step, next(noise), 1)
        accepted = (moved.point.z != point.z).any(dim=-1)[..., None]
        point, step = moved.point, step * torch.where(accepted, 3.0, 0.2)
    return log_weights + (places[-1] - places[-2]) * point.log_ratio
