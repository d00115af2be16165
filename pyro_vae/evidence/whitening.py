"""Whitened latents: coordinates in which draws have mean 0, variance 1 and no correlations."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# Ridge relative to a latent's variance, in case all draws lie on a plane. Even in the narrow
# directions of strongly correlated latents, the variance is far above the ridge.
_RIDGE = 1e-10
_FLOOR = 1e-19  # least variance, in case all draws of a latent are equal; its root fits float32


class Whitening(NamedTuple):
    r"""The map :math:`z = \mu + R u` from whitened latents u to latents z, for each datum.

    Arguments:
        loc: :math:`\mu`.
        root: :math:`R`, a lower triangular matrix.
    """

    loc: Float[Tensor, "batch latents"]
    root: Float[Tensor, "batch latents latents"]

    @staticmethod
    def of(
        z: Float[Tensor, "particles batch latents"],
        shares: Float[Tensor, "particles batch"] | None = None,
    ) -> "Whitening":
        """Computes the mean of draws and the root of their covariance, in the dtype of the draws.

        Arguments:
            z: The draws.
            shares: Weights of the draws, which add up to 1 for each datum; by default all equal.
        """
        draws = z.double()
        weights = draws.new_full((len(z), 1), 1 / len(z)) if shares is None else shares
        loc = (weights.unsqueeze(-1) * draws).sum(dim=0)
        away = draws - loc
        covariance = torch.einsum("kbi,kbj->bij", weights.unsqueeze(-1) * away, away)
        return Whitening(loc.to(z.dtype), root_of(covariance).to(z.dtype))

    def rows(self, rows: Tensor) -> "Whitening":
        """Returns the map for a subset of the data."""
        return Whitening(self.loc[rows], self.root[rows])

    def colored(self, u: Float[Tensor, "particles batch latents"]) -> Tensor:
        """Maps whitened latents u to latents z."""
        return self.loc + torch.einsum("kbl,bjl->kbj", u, self.root)

    def white(self, z: Float[Tensor, "particles batch latents"]) -> Tensor:
        """Maps latents z to whitened latents u."""
        away = (z - self.loc).permute(1, 2, 0)
        solved: Tensor = torch.linalg.solve_triangular(self.root, away, upper=False)
        return solved.permute(2, 0, 1)


def root_of(covariance: Float[Tensor, "*batch latents latents"]) -> Tensor:
    """Returns the Cholesky factor of a covariance, after adding a small ridge to its diagonal."""
    ridge = _RIDGE * covariance.diagonal(dim1=-2, dim2=-1) + _FLOOR
    return torch.linalg.cholesky(covariance + ridge.diag_embed())
