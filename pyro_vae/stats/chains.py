"""Diagnostics of MCMC chains, computed by ArviZ: the rank-normalized R-hat and the bulk ESS."""

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..formatting import count_of


def rank_r_hat(draws: Float[Tensor, "chains draws *batch"]) -> Float64[Tensor, "*batch"]:
    r"""Returns the rank-normalized split :math:`\hat R`, which is 1 if the chains agree.

    Arguments:
        draws: The draws, `(chains, draws, *batch)`: at least 2 chains of at least 4 draws.

    Returns:
        `(*batch,)`, no unit. By chance, even 4 chains of 400 independent draws give about 1.01.

    Raises:
        ValueError: If there are fewer than 2 chains, or fewer than 4 draws per chain.

    References:
        | Rank-Normalization, Folding, and Localization: An Improved R-hat (Vehtari et al., 2021)
        | https://arxiv.org/abs/1903.08008

    Example:
        >>> apart = torch.tensor([0.0, 3.0]) * torch.arange(4.0)[:, None, None]
        >>> (rank_r_hat(torch.randn(4, 200, 2) + apart) > 1.1).tolist()
        [False, True]
    """
    return _by_column(draws, "rhat", "rank")


def bulk_ess(draws: Float[Tensor, "chains draws *batch"]) -> Float64[Tensor, "*batch"]:
    """Returns the effective number of draws for estimating a mean, from rank-normalized draws.

    The arguments and exceptions are those of :func:`rank_r_hat`.

    Example:
        >>> 150 < float(bulk_ess(torch.randn(4, 100))) < 800
        True
    """
    return _by_column(draws, "ess", "bulk")


def _by_column(draws: Tensor, name: str, method: str) -> Tensor:
    chains, length, *batch = draws.shape
    if chains < 2 or length < 4:
        raise ValueError(
            "`draws` must have at least 2 chains of at least 4 draws; got "
            f"{count_of(chains, 'chain')} of {count_of(length, 'draw')} (shape "
            f"{tuple(draws.shape)}, chains first): run more or longer chains"
        )
    columns = draws.detach().double().cpu().reshape(chains, length, -1).numpy()
    diagnostic = _diagnostic(name, method)
    values = [diagnostic(columns[..., place]) for place in range(columns.shape[-1])]
    return torch.from_numpy(np.array(values, dtype=np.float64)).reshape(batch).to(draws.device)


@cache  # read from disk once, and needed for every block of data
def arviz_generation() -> int:
    """Returns ArviZ's major version, 0 or 1."""
    return int(version("arviz").split(".")[0])


def _diagnostic(name: str, method: str) -> Callable[[Any], float]:
    """Returns ArviZ's diagnostic called `name`, a function of an array `(chains, draws)`.

    ArviZ 0.x and 1.x have this function in different modules.
    """
    if arviz_generation() >= 1:
        modern = getattr(import_module("arviz_stats.base").array_stats, name)
        return lambda column: float(modern(column, method=method, chain_axis=0, draw_axis=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0.23 warns of 1.x on import; this code works with both
        classic = getattr(import_module("arviz"), name)
    return lambda column: float(classic(column, method=method))
