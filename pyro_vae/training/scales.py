"""The scale of the data: networks adapt to it, or the user is advised to standardize the data."""

import torch

from .. import distributed
from .._types import Batch, ProgramLike
from ..data import RowReader
from ..guides import Guide
from ..guides.entry import guides_in
from ..models.base import Decoded
from .rows import spread_rows

_LARGE = 100.0  # root mean square of a column; beyond it, a warning says to standardize
_STANDARDIZE = "standardize the data, as in y = (y - y.mean(0)) / y.std(0)"
_LOGARITHMS = (
    "pass logarithms of counts to the encoder with pv.nets.ColumnInputs(net, [0] * columns, "
    "counts=range(columns)) and a net for 2 * columns inputs"
)
_SOME_ROWS = 1000  # rows from which the scale of a column is estimated


class Scales:
    """Adapts new networks to the scale of the data; advises the user if a network cannot adapt.

    Arguments:
        model: The model; `None` if it is not trained.
        guide: The guide.
        reader: The data.
    """

    def __init__(self, model: ProgramLike | None, guide: ProgramLike, reader: RowReader) -> None:
        self.reader = reader
        decoded = [model] if isinstance(model, Decoded) else []
        inside = guides_in(guide)
        parts: list[Guide | Decoded] = [*inside, *decoded]
        rows = _some_rows(reader)
        for part in parts:
            part.start_from(*rows)
        unknown = not inside or (model is not None and not decoded)
        self.needs_unit_scale = unknown or any(part.needs_unit_scale for part in parts)

    def advice(self) -> str:
        """Advice to standardize a column of large scale; empty if networks adapt to any scale."""
        if not self.needs_unit_scale:
            return ""
        few = min(_SOME_ROWS, len(self.reader))
        y = self.reader.read(torch.arange(few, device="cpu"))[0]
        flat = y.double().reshape(len(y), -1).nan_to_num(0.0, 0.0, 0.0)
        scale, column = flat.square().mean(dim=0).sqrt().max(dim=0)
        if not float(scale) > _LARGE:
            return ""
        sd, mean = torch.std_mean(flat[:, column], correction=0)
        counts = bool((flat == flat.round()).logical_and(flat >= 0).all())
        return (
            f"Column {int(column)} of the data has a scale of {float(scale):.3g} (mean "
            f"{float(mean):.3g}, sd {float(sd):.3g}), but networks and step sizes expect about 1: "
            f"{_LOGARITHMS if counts else _STANDARDIZE}, or use pv.data.Columns, which gives "
            "answers in the data's own units"
        )


def _some_rows(reader: RowReader) -> Batch:
    """Returns up to 1,000 rows, spread over all data; all processes get the same rows."""
    most = max(1, _SOME_ROWS // distributed.size())
    with distributed.fail_together():
        own = reader.read(spread_rows(len(reader), most))
    if distributed.size() == 1:
        return own
    columns = zip(*distributed.everyones(tuple(part.cpu() for part in own)), strict=True)
    return tuple(torch.cat(parts).to(mine) for parts, mine in zip(columns, own, strict=True))
