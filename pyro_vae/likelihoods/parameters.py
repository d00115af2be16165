r"""Numbers that shape a likelihood: learned, :math:`f + e^{s}`, or a half of the output."""

import math

import torch
from torch import Tensor, nn

from .special import soft_limit

LOG_LIMIT = 12.0  # from e^-12 to e^12, one in 160,000 to 160,000, an exponential; then slower


class Learned(nn.Module):
    r"""A positive number that is a parameter of the model, :math:`f + e^{s}`.

    Arguments:
        shape: `()` for one for all features, or the shape of a datum for one a feature.
        initial: Where it starts.
        floor: Its lower bound, which it never reaches.

    Raises:
        ValueError: If not `0 <= floor < initial`, and both finite.
    """

    outputs = 0

    def __init__(
        self, shape: tuple[int, ...] | int = (), *, initial: float = 1.0, floor: float = 0.0
    ) -> None:
        super().__init__()
        if not 0 <= floor < initial < math.inf:
            raise ValueError(
                f"a {type(self).__name__} starts above its floor, 0 <= floor < initial, and "
                f"finite; got floor {floor} and initial {initial}"
            )
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.initial, self.floor = initial, floor
        self.raw = nn.Parameter(torch.full(self.shape, math.log(initial - floor)))

    def forward(self) -> Tensor:
        """The number, or one a feature."""
        return self.floor + soft_limit(self.raw, LOG_LIMIT).exp()


def halves(output: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """The two numbers of every feature.

    Arguments:
        output: What a decoder gave, `(batch, 2 * features, ...)`.
        what: Who needs two, for the message.

    Raises:
        ValueError: If the output cannot be halved.
    """
    if output.shape[1] % 2:
        raise ValueError(
            f"{what} needs two numbers a feature, so an even first axis of the datum; the decoder "
            f"gave {tuple(output.shape)}: make it with outputs=2"
        )
    first, second = output.chunk(2, dim=1)
    return first, second
