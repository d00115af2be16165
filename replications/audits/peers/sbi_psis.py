"""Asks sbi for the k-hat of Gaussians that are too narrow, and writes it with the log densities."""

import sys

import numpy as np
import torch
from sbi.samplers.importance.importance_sampling import exponentiate_weights, gpdfit
from sbi.samplers.vi.vi_quality_control import psis_diagnostics
from torch.distributions import Independent, Normal

VARIANCES, DRAWS, REPEATS = (0.9, 0.7, 0.5, 0.3, 0.1), 10_000, 20


def standard_normal(z: torch.Tensor) -> torch.Tensor:
    """Log density of the target, in two dimensions."""
    return Normal(0.0, 1.0).log_prob(z).sum(dim=-1)


def of_excess(log_weights: torch.Tensor) -> float:
    """Its own fit to the excess of the largest weights over the next smaller weight."""
    weights = exponentiate_weights(log_weights).sort().values
    count = int(min(len(weights) / 5, 3 * len(weights) ** 0.5))
    return float(gpdfit(weights[-count:] - weights[-count - 1])[0])


torch.set_num_threads(1)
reported, excess, joint, guide = [], [], [], []
for repeat in range(REPEATS):
    for variance in VARIANCES:
        q = Independent(Normal(torch.zeros(2), variance**0.5 * torch.ones(2)), 1)
        torch.manual_seed(repeat)
        reported.append(float(psis_diagnostics(standard_normal, q, N=DRAWS)))
        torch.manual_seed(repeat)
        z = q.sample((DRAWS,))  # the same draws
        joint.append(standard_normal(z))
        guide.append(q.log_prob(z))
        excess.append(of_excess(joint[-1] - guide[-1]))
shape = (REPEATS, len(VARIANCES))
np.savez(
    sys.argv[1],
    variances=VARIANCES,
    reported=np.reshape(reported, shape),
    excess=np.reshape(excess, shape),
    joint=torch.stack(joint).reshape(*shape, DRAWS),
    guide=torch.stack(guide).reshape(*shape, DRAWS),
)
