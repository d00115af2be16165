"""A data set: training rows, held-out rows, and the units in which results are reported.

Every reported number is in the data's own units. If a loader divides each of the D values of a row
x by s, the stored row is y = x / s. The densities of x and y differ by the Jacobian of the
division:

    log p_x(x) = log p_y(y) - D log s.

`Dataset.log_scale` is `-D log s`: add it to the log density of a stored row. Rows of zeros and ones
have a probability, not a density. A probability has no unit, so `log_scale` is 0 for such rows.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .._arguments import shown
from ..formatting import count_of
from .binarize import Binarization, FixedDraw, Grey, Redrawn
from .kinds import center_and_scale
from .streams import Augmented
from .tables import Columns


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Training rows and held-out rows, with the name, units and binarization of the set.

    Floating-point tensors have the default dtype that torch had when the set was made.

    Arguments:
        name: Name of the set.
        train: Training rows, `(train, *datum)`.
        test: Held-out rows, `(test, *datum)`.
        train_labels: Class of each training row, or None; never shown to a model.
        test_labels: Class of each held-out row, or None.
        feature_names: Names of the columns, or None.
        image_shape: Height and width in pixels if each row is an image (flattened in row-major
            order); otherwise None.
        binarization: How rows are binarized. Call this object on each batch, because some
            binarizations leave the stored rows grey, and draw zeros and ones for each batch.
        log_scale: What to add (in nats) to the log density of a stored row, to get the log density
            in the data's own units.
        center: The number subtracted from each column, if the set was standardized.
        scale: The number that each column was divided by, if the set was standardized.
        columns: The object that converts stored rows, where nan marks a missing entry, back to a
            table; None if the rows do not come from a table.
        digests: A digest of each training row before binarization, to recognize the row in another
            file; None for a named set.

    Example:
        >>> from pyro_vae import data
        >>> data.squares(4, side=2, num_test=2)
        squares: 4 training rows, 2 held out, 4 values each (2 x 2 images), not binarized
    """

    name: str
    train: Float[Tensor, "train *datum"]
    test: Float[Tensor, "test *datum"]
    train_labels: Int64[Tensor, " train"] | None = None
    test_labels: Int64[Tensor, " test"] | None = None
    feature_names: tuple[str, ...] | None = None
    image_shape: tuple[int, int] | None = None
    binarization: Binarization = field(default_factory=Grey)
    log_scale: float = 0.0
    center: Float[Tensor, "*datum"] | None = None
    scale: Float[Tensor, "*datum"] | None = None
    columns: Columns | None = None
    digests: Int64[Tensor, " train"] | None = None

    @property
    def units(self) -> "Columns | Scaling":
        """The object that converts data in their own units to rows for the model, and back."""
        if self.columns is not None:
            return self.columns
        names = self.feature_names
        return Scaling(self.center, self.scale, self.log_scale, names)

    def log_scales(self, y: Float[Tensor, "rows *datum"]) -> Float[Tensor, " rows"]:
        """Returns the `log_scale` of each row, in nats; missing entries contribute nothing."""
        return self.units.log_scales(y)

    def standardized(self) -> "Dataset":
        """Standardizes every column to mean 0 and standard deviation 1 over the training rows.

        Returns:
            A new set. Its `log_scale` includes the Jacobian, so densities stay in the data's own
            units. A constant column is centered but not scaled. A set from a table is returned
            unchanged, because its real columns are standardized already.

        Raises:
            ValueError: If the set is binary, has fewer than two training rows, or has a column
                without an observed entry in these rows.
        """
        if self.columns is not None:
            return self
        if self.binarization.binary or len(self.train) < 2:
            raise ValueError(
                "`standardized` requires at least two training rows, with values that are not "
                f"binary; got {count_of(len(self.train), 'row')} ({self.binarization.describe()}): "
                "load more rows, or load the data with `binarization=pv.data.Grey()`"
            )
        empty = self.train.isnan().all(dim=0)
        if empty.any():
            raise ValueError(
                "every column must have an observed entry in the training rows; got none in column "
                f"{', '.join(map(str, empty.nonzero().tolist()[0]))}, counted from 0: drop such "
                "columns"
            )
        found = center_and_scale(self.train.double().cpu().numpy())
        center, scale = (torch.as_tensor(part, device=self.train.device) for part in found)
        units = Scaling(center, scale, self.log_scale - float(scale.log().sum()))
        return replace(
            self,
            train=units.encode(self.train, dtype=self.train.dtype),
            test=units.encode(self.test, dtype=self.train.dtype),
            log_scale=units.log_scale,
            center=center,
            scale=scale,
        )

    def binarized(self, binarization: Binarization) -> "Dataset":
        """Binarizes the grey levels of the set, which must be in [0, 1].

        Arguments:
            binarization: How to binarize; `Grey()` leaves the set unchanged.

        Returns:
            A new set. Its `log_scale` is 0 if the new set is binary, and is not changed if the set
            stays grey.

        Raises:
            ValueError: If this set was binarized before, or has values outside [0, 1].
        """
        if self.binarization.binary:
            raise ValueError(
                f"the data set '{self.name}' is already {self.binarization.describe()}: load it "
                "with `binarization=pv.data.Grey()` first"
            )
        return replace(
            self,
            train=binarization.fixed(self.train, part=0),
            test=binarization.fixed(self.test, part=1),
            binarization=binarization,
            log_scale=0.0 if binarization.binary else self.log_scale,
        )

    def describe(self) -> str:
        """Returns one line with the set's name, sizes and binarization."""
        picture = "" if self.image_shape is None else " ({} x {} images)".format(*self.image_shape)
        return (
            f"{self.name}: {count_of(len(self.train), 'training row', ',')}, {len(self.test):,} "
            f"held out, {count_of(self.train[0].numel(), 'value', ',')} each{picture}, "
            f"{self.binarization.describe()}"
            + ("" if self.columns is None else f" ({self.columns})")
        )

    def __repr__(self) -> str:
        return self.describe()


@dataclass(frozen=True, eq=False)
class Scaling:
    """Converts data other than tables, such as images, to rows for the model, and back.

    Arguments:
        center: The number subtracted from each entry, or None.
        scale: The number that each centered entry is divided by, or None.
        log_scale: What to add (in nats) to the log density of a converted row, to get the log
            density in the data's own units.
        feature_names: Names of the entries, or None.
    """

    center: Float[Tensor, "*datum"] | None = None
    scale: Float[Tensor, "*datum"] | None = None
    log_scale: float = 0.0
    feature_names: tuple[str, ...] | None = None

    @property
    def named(self) -> bool:
        """Whether the entries of a datum have names."""
        return self.feature_names is not None

    def encode(
        self, data: Any, *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "rows *datum"]:
        """Converts data in their own units to rows for the model.

        Raises:
            TypeError: If the data are not an array of numbers.
            ValueError: If the training rows were scaled, and a datum does not have their shape.
        """
        try:
            place = data.device if isinstance(data, Tensor) else "cpu"
            y = torch.as_tensor(data, dtype=torch.float64, device=place)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                "this model was trained on arrays without column names, so data must be an array "
                f"of numbers in their own units, one row per datum; got {shown(data)}: pass such "
                "an array, or leave out the data to use the rows that were held out"
            ) from error
        if self.center is not None and self.scale is not None:
            if y.shape[1:] != self.center.shape:  # it may be broadcast all the same
                shape = tuple(self.center.shape)
                fits = y[:1].numel() == self.center.numel()
                raise ValueError(
                    f"each row of the data must have the shape {shape} of the training rows; got "
                    f"data of shape {tuple(y.shape)}: "
                    + (f"pass y.reshape{(-1, *shape)}" if fits else "pass rows of this shape")
                )
            y = (y - self.center) / self.scale
        return y.to(dtype or torch.get_default_dtype())

    def decode(self, y: Float[Tensor, "rows *datum"]) -> Float[Tensor, "rows *datum"]:
        """Converts rows of the model to the data's own units."""
        if self.center is None or self.scale is None:
            return y
        return y * self.scale.to(y) + self.center.to(y)

    def log_scales(self, y: Float[Tensor, "rows *datum"]) -> Float[Tensor, " rows"]:
        """Returns `log_scale`, in nats, repeated for each row."""
        return y.new_full((len(y),), self.log_scale)

    def to_json(self) -> dict[str, Any]:
        """Returns the arguments as lists, strings and numbers, for :meth:`from_json` to read."""
        names = None if self.feature_names is None else list(self.feature_names)
        center, scale = (
            None if part is None else part.tolist() for part in (self.center, self.scale)
        )
        return {"center": center, "scale": scale, "log_scale": self.log_scale, "names": names}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Scaling":
        """Restores the object that :meth:`to_json` described.

        Raises:
            ValueError: If a centre is not finite, or a scale is not a finite number above 0.
        """
        center, scale = (
            None
            if saved[key] is None
            else torch.tensor(saved[key], dtype=torch.float64, device="cpu")
            for key in ("center", "scale")
        )
        finite = all(part is None or bool(part.isfinite().all()) for part in (center, scale))
        if not finite or (scale is not None and not bool((scale > 0).all())):
            raise ValueError(
                "centres must be finite, and scales finite and above 0; got other numbers: pass "
                "the result of Scaling.to_json()"
            )
        names = None if saved["names"] is None else tuple(saved["names"])
        return cls(center, scale, saved["log_scale"], names)


def parts_of(dataset: Dataset) -> tuple[Tensor | Augmented, Float[Tensor, "test *datum"]]:
    """Returns the training rows and the held-out rows.

    If training binarizes each batch anew, the held-out rows returned are binarized once.
    """
    train, binarization = dataset.train, dataset.binarization
    redrawn = Augmented(train, binarization) if isinstance(binarization, Redrawn) else train
    return redrawn, binarized_once(dataset.test, binarization, part=1)


def binarized_once(
    y: Float[Tensor, "rows *datum"], binarization: Binarization, *, part: int
) -> Float[Tensor, "rows *datum"]:
    """Binarizes stored rows for evaluation, if each batch of training is binarized anew."""
    return FixedDraw().fixed(y, part=part) if isinstance(binarization, Redrawn) else y


def trained_on(
    rows: Int64[Tensor, " rows"], digests: Int64[Tensor, " train"]
) -> Bool[Tensor, " rows"]:
    """Tells which rows a model was trained on, by comparing digests.

    If a row occurs k times among the training rows, its first k occurrences in `rows` count as
    trained on. Any later occurrences may have been held out.

    Arguments:
        rows: Digests of rows.
        digests: Digests of the training rows.

    Example:
        >>> trained_on(torch.tensor([4, 7, 4, 4]), torch.tensor([4, 4, 9]))
        tensor([ True, False,  True, False])
    """
    left = Counter(digests.tolist())
    found = []
    for digest in rows.tolist():
        found.append(left[digest] > 0)
        left[digest] -= 1
    return torch.tensor(found, dtype=torch.bool, device="cpu")
