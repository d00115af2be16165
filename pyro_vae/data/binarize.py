r"""Binarizations: how grey levels in [0, 1] become zeros and ones for a Bernoulli likelihood.

Log p depends on the binarization (by about 2 nats on MNIST), so the binarization is stored with the
data set and reported with every result. A binarization acts twice. Its method `fixed` is applied
once, when the data set is made. The binarization itself is then called on every batch, in training
and in evaluation.

| choice | once | each batch |
| --- | --- | --- |
| `Grey()` | nothing | nothing |
| `Threshold(at)` | 1 above `at`, else 0 | nothing |
| `FixedDraw(seed)` | one draw of Bernoulli(y), kept | nothing |
| `Redrawn()` | nothing: data stay grey | a new draw of Bernoulli(y) |

Missing entries (nan) stay missing.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from ..randomness import generator, stream
from .checks import check_range


class Binarization(ABC):
    """A treatment of grey levels, such as binarizing them once, or anew in each batch.

    The method `fixed` transforms the rows when a data set is made. A call of the object transforms
    a batch.

    Attributes:
        binary: Whether batches hold only 0 and 1. If so, `log p` is the logarithm of a probability,
            not of a density.
    """

    binary: ClassVar[bool] = True

    def fixed(
        self, y: Shaped[Tensor, "rows *datum"], *, part: int = 0
    ) -> Shaped[Tensor, "rows *datum"]:
        """Transforms the rows of a data set once, when the set is made.

        Arguments:
            y: Grey levels in [0, 1], `(rows, *datum)`.
            part: 0 for training rows, 1 for test rows; each part has its own random draws.

        Returns:
            The rows to store, `(rows, *datum)`.

        Raises:
            ValueError: If values are outside [0, 1].
        """
        check_range(y, low=0, high=1, likelihood=repr(self))
        return y

    def __call__(self, y: Shaped[Tensor, "rows *datum"]) -> Shaped[Tensor, "rows *datum"]:
        """Transforms a batch; by default the batch is returned unchanged."""
        return y

    @abstractmethod
    def describe(self) -> str:
        """Describes the binarization in words, for reports of results."""


@dataclass(frozen=True)
class Grey(Binarization):
    """Leaves values unchanged; they may be any real numbers.

    The Bernoulli 'log-likelihood' of grey levels is not a log density, so it cannot be compared
    with results on binarized data.

    Example:
        >>> Grey().fixed(torch.tensor([[0.25, 16.0]]))
        tensor([[ 0.2500, 16.0000]])
    """

    binary: ClassVar[bool] = False

    def fixed(
        self, y: Shaped[Tensor, "rows *datum"], *, part: int = 0
    ) -> Shaped[Tensor, "rows *datum"]:
        return y

    def describe(self) -> str:
        return "not binarized"


@dataclass(frozen=True)
class Threshold(Binarization):
    """Sets values above a threshold to 1, and all other values to 0.

    Arguments:
        at: Threshold, from 0 to below 1.

    Example:
        >>> Threshold().fixed(torch.tensor([[0.25, 0.5, 0.75]]))
        tensor([[0., 0., 1.]])
    """

    at: float | int = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.at < 1:
            raise ValueError(
                f"`at` must be at least 0 and below 1; got {self.at:g}: pass a threshold such as "
                "`at=0.5`, so that grey levels in [0, 1] lie on both sides of it"
            )

    def fixed(
        self, y: Shaped[Tensor, "rows *datum"], *, part: int = 0
    ) -> Shaped[Tensor, "rows *datum"]:
        return _zeros_and_ones(super().fixed(y) > self.at, like=y)

    def describe(self) -> str:
        return f"binarized at a threshold of {self.at:g}"


@dataclass(frozen=True)
class FixedDraw(Binarization):
    """Replaces each grey level y by a draw from Bernoulli(y) once, when the data set is made.

    The draws for a row depend on the seed, the part (training or test) and the row's position. The
    first rows of a data set are therefore binarized in the same way, however many rows are used.

    Arguments:
        seed: Seed of the draw.

    References:
        | On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov & Murray, 2008)
        | https://doi.org/10.1145/1390156.1390266

    Example:
        >>> y = torch.tensor([[0.0, 0.5, 1.0]]).expand(1000, 3)
        >>> drawn = FixedDraw(seed=0).fixed(y)
        >>> drawn.unique(), bool((drawn == FixedDraw(seed=0).fixed(y)).all())
        (tensor([0., 1.]), True)
    """

    seed: int = 0

    def fixed(
        self, y: Shaped[Tensor, "rows *datum"], *, part: int = 0
    ) -> Shaped[Tensor, "rows *datum"]:
        grey = super().fixed(y)
        draws = generator(stream(self.seed, f"binarize.{part}"))
        # Always float32, so that float64 data get the same draw.
        uniform = torch.rand(grey.shape, generator=draws, dtype=torch.float32, device="cpu")
        return _zeros_and_ones(uniform.to(grey.device) < grey, like=grey)

    def describe(self) -> str:
        return f"binarized by a fixed draw (seed {self.seed})"


@dataclass(frozen=True)
class Redrawn(Binarization):
    """Replaces each grey level y by a new draw from Bernoulli(y) in each batch.

    The stored rows stay grey. Each call draws with torch's current generator. Evaluation needs
    binary rows, too: set a seed, and call this object once on the test rows.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Example:
        >>> Redrawn()(torch.tensor([[0.0, 1.0]]))
        tensor([[0., 1.]])
    """

    def __call__(self, y: Shaped[Tensor, "rows *datum"]) -> Shaped[Tensor, "rows *datum"]:
        grey = self.fixed(y)
        drawn = torch.bernoulli(grey.to(_float_dtype(grey)).nan_to_num(nan=0.0))
        return _zeros_and_ones(drawn > 0, like=grey)

    def describe(self) -> str:
        return "binarized anew in each batch"


def _float_dtype(y: Tensor) -> torch.dtype:
    """Returns the tensor's dtype if it is floating-point, and torch's default dtype otherwise."""
    return y.dtype if y.is_floating_point() else torch.get_default_dtype()


def _zeros_and_ones(
    condition: Shaped[Tensor, "rows *datum"], *, like: Shaped[Tensor, "rows *datum"]
) -> Shaped[Tensor, "rows *datum"]:
    """Returns 1 where a condition holds, nan where `like` is nan, and 0 elsewhere."""
    return condition.to(_float_dtype(like)).masked_fill(like.isnan(), torch.nan)
