r"""Embeddings and reconstructions of data.

The embedding of a datum is either the mean :math:`m_n` of its posterior, which is deterministic, or
a set of draws from the posterior. The draws show the guide's uncertainty. A datum can be
reconstructed in three ways: as the decoded mean, :math:`\mathbb{E}[y \mid z = m_n]`; as the average
over the posterior, :math:`\mathbb{E}_q \mathbb{E}[y \mid z]`, which is the expected value of a
second measurement of the same object; or as draws, with the noise of p(y | z).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from .._types import Data, ProgramLike
from ..evidence.estimates import posterior_means
from ..evidence.weights import conditioned, draw_rows
from ..programs.pieces import take_rows
from ..randomness import row_keys, seeded
from .forward import decoded, drawn


def encode(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    num_samples: int | None = None,
    *,
    seed: int = 0,
) -> Tensor:
    r"""Returns the mean of every datum's posterior, or draws from this posterior.

    .. math:: m_n = \mathbb{E}_q [z_n] \qquad\text{or}\qquad z_n \sim q(z \mid y_n)

    Use the mean to cluster, classify or plot; only draws show how uncertain each embedding is.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them.
        num_samples: Draws per datum; `None` returns the mean.
        seed: Seed of the draws; a datum's draws depend only on the seed and the datum.

    Returns:
        Flat unconstrained latents: `(batch, latents)` for the mean, `(samples, batch, latents)` for
        draws. The mean is exact if the guide's family has a mean in closed form.

    Raises:
        ValueError: If data, model and guide do not fit together, or `num_samples` is 0.

    Example:
        >>> from pyro_vae import GlobalParameters, Guide, likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(2, 3), likelihoods.Gaussian(), latent_dim=2)
        >>> guide, y = Guide(model, GlobalParameters()), torch.zeros(4, 3)
        >>> encode(model, guide, y).shape, encode(model, guide, y, num_samples=9).shape
        (torch.Size([4, 2]), torch.Size([9, 4, 2]))
    """
    if num_samples is None:
        return posterior_means(model, guide, data, seed=seed)
    with conditioned(model, guide, data, seed) as (_, posterior, batch):
        return draw_rows(posterior, 0, row_keys(seed, "latents", *batch), num_samples)[0]


def reconstruct(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    *,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Float[Tensor, "batch *datum"]:
    r"""Decodes the embedding of every datum, :math:`\mathbb{E}[y \mid z = m_n]`.

    The result is sharper than an average of :func:`reconstruction_draws`, because the uncertainty
    of z is ignored. Missing entries (nan) are filled in from the other entries of their row.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them.
        given: Values of the global latent sites, by name.
        seed: Seed, for guides whose mean is estimated from draws.

    Returns:
        Values with the shape and the unit of the data; exact if the posterior's mean is exact.

    Raises:
        ValueError: If data, model and guide do not fit together, or p(y | z) has no mean.

    Example:
        >>> from pyro_vae import GlobalParameters, Guide, likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(2, 3), likelihoods.Gaussian(), latent_dim=2)
        >>> reconstruct(model, Guide(model, GlobalParameters()), torch.zeros(4, 3)).shape
        torch.Size([4, 3])
    """
    with conditioned(model, guide, data, seed, given) as (program, posterior, batch):
        return decoded(program, posterior.mean().unsqueeze(0), batch)[0]


def reconstruction_draws(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    num_samples: int = 1,
    *,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Tensor:
    r"""Draws :math:`z \sim q(z \mid y_n)`, then :math:`y \sim p(y \mid z)`, for every datum.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them.
        num_samples: Draws per datum.
        given: Values of the global latent sites, by name.
        seed: Seed of the draws.

    Returns:
        `(samples, batch, *datum)`, in the unit of the data.

    Raises:
        ValueError: If data, model and guide do not fit together, or `num_samples` is 0.

    Example:
        >>> from pyro_vae import GlobalParameters, Guide, likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(2, 3), likelihoods.Bernoulli(), latent_dim=2)
        >>> guide = Guide(model, GlobalParameters())
        >>> reconstruction_draws(model, guide, torch.zeros(4, 3), 7).shape
        torch.Size([7, 4, 3])
    """
    with conditioned(model, guide, data, seed, given) as (program, posterior, batch):
        z, _ = draw_rows(posterior, 0, row_keys(seed, "latents", *batch), num_samples)
        draws = []
        for row, key in enumerate(row_keys(seed, "data", *batch).tolist()):
            seeded(key)  # a separate random stream for each datum
            one = slice(row, row + 1)
            draws.append(drawn(program, z[:, one], take_rows(batch, one)))
    return torch.cat(draws, dim=1)
