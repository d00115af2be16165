"""The posterior of a program whose local latent sites are all discrete and summed out."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .._types import Batch
from ..programs import Program


@dataclass(frozen=True)
class NoLatents:
    """Empty draws with density one: no latents are left.

    Arguments:
        empty: `(batch, 0)`, in the dtype and on the device of the program.
    """

    empty: Float[Tensor, "batch 0"]

    @classmethod
    def of(cls, program: Program, batch: Batch) -> "NoLatents":
        """Makes the empty posterior of a batch."""
        return cls(torch.zeros(len(batch[0]), 0, dtype=program.dtype, device=batch[0].device))

    def __len__(self) -> int:
        """Number of data."""
        return len(self.empty)

    def rows(self, rows: slice | Tensor) -> "NoLatents":
        """The posterior of some of the data."""
        return replace(self, empty=self.empty[rows])

    def draw(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Draws `(particles, batch, 0)` and their log densities, zero."""
        z = self.empty.expand(num_particles, *self.empty.shape)
        return z, self.log_prob(z)

    def is_keyed(self) -> bool:
        """Whether each datum can draw from its own key; trivially, since nothing is drawn."""
        return True

    def draw_keyed(
        self, keys: Int64[Tensor, " batch"], num_particles: int, *, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Empty draws, whatever the keys."""
        return self.draw(num_particles)

    def log_prob(self, z: Float[Tensor, "particles batch 0"]) -> Tensor:
        """Zero."""
        return torch.zeros(z.shape[:2], dtype=z.dtype, device=z.device)

    def mean(self) -> Float[Tensor, "batch 0"]:
        """An empty mean."""
        return self.empty
