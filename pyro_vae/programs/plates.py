"""The plate over data: which rows of the data set it holds, and how many.

A program may open its plate on the whole data set and let Pyro choose a mini-batch,
`pyro.plate("data", N, subsample_size=B)` with `pyro.subsample`. A density per datum needs the
opposite: the program is called with some rows, and the plate must hold exactly those rows. A plate
draws its rows and fixes its size before any handler can intervene. So :func:`whole_plate` replaces
Pyro's function for these two steps.

A user's own training loop states with :func:`minibatch` which rows a batch holds. The plate's index
then picks those rows from a table of the whole data set, and all rows from a tensor of the batch.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import pyro.distributions as dist
import torch
from jaxtyping import Int
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor

from ..formatting import count_of
from .masks import base_of
from .modes import Replaced, capturing, setting

_TensorT = TypeVar("_TensorT", bound=Tensor)


class Subsampling(NamedTuple):
    """The plate size and subsample size that a program requests; `None` means the batch size."""

    size: int | None
    subsample_size: int | None


@dataclass
class Minibatch:
    """Which rows of a data set a batch holds.

    Arguments:
        rows: Positions of the batch's rows in the data set.
        num_data: Number of rows of the data set.
        plate: Name of the plate over data; `None` if the name is not known.
    """

    rows: Tensor
    num_data: int
    plate: str | None = None

    def repeated(self, size: int) -> "Minibatch | None":
        """Repeats the minibatch to `size` rows; `None` if its length does not divide `size`."""
        times, rest = divmod(size, len(self.rows))
        return None if rest else Minibatch(self.rows.repeat(times), self.num_data, self.plate)


@dataclass
class _Whole:
    """Says which plates hold the rows of a batch.

    Arguments:
        rows: Number of rows of the batch; `None` if plates are left unchanged.
        plate: Name of the plate that holds the rows. If it is `None`, every plate that subsamples
            or has no fixed size holds them.
        minibatch: Inside a block of :func:`minibatch`, the minibatch of this block. If the block
            names no plate, a :class:`pyro_vae.Guide` adds the name of the plate to the minibatch.
        requested: The subsamples that these plates request, by name of the plate.
    """

    rows: int | None
    plate: str | None
    minibatch: Minibatch | None = None
    requested: dict[str, Subsampling] = field(default_factory=dict)

    @property
    def name(self) -> str | None:
        """Name of the plate over data; `None` if the name is not known."""
        return self.plate if self.minibatch is None else self.minibatch.plate

    @property
    def size(self) -> int | None:
        """Number of rows in the plate over data.

        Inside :func:`minibatch` this is the size of the data set, otherwise the size of the batch.
        """
        return self.rows if self.minibatch is None else self.minibatch.num_data


_WHOLE: ContextVar[_Whole | None] = ContextVar("pyro_vae_whole_plate", default=None)
_MINIBATCH: ContextVar[Minibatch | None] = ContextVar("pyro_vae_minibatch", default=None)
_subsample = SubsampleMessenger._subsample


class PlateIndex(Tensor):
    """The index of the plate over data; the rows that it picks depend on the indexed tensor.

    From a tensor of the batch, the index picks every row. From a table of the whole data set, the
    index picks the batch's rows. A tensor of another length is refused, because the entry for a
    datum would depend on the datum's position in the batch. Slices and reshaped copies of the index
    behave in the same way. In operations other than indexing, the entries are row numbers of the
    data set, or positions in the batch if the row numbers are unknown.
    """

    positions: Tensor
    plate: str
    batch: Minibatch | None
    num_rows: int
    is_decided: bool  # if false, a tensor with as many rows as batch and data set is ambiguous

    @classmethod
    def of(cls, whole: _Whole, plate: str) -> "PlateIndex":
        """Builds the index of a plate; `whole` says which rows the plate holds."""
        current, size = whole.minibatch or _MINIBATCH.get(), whole.rows or 0
        batch = None if current is None else current.repeated(size)
        positions = torch.arange(size, device="cpu")
        made = _as(cls, positions.clone() if batch is None else batch.rows.clone())
        made.plate, made.batch, made.num_rows = plate, batch, size
        made.positions, made.is_decided = positions, whole.minibatch is None
        return made

    def changed(self, entries: Tensor, positions: Tensor) -> "PlateIndex":
        """Builds an index for the same plate with other `entries` and `positions`."""
        made = _as(type(self), entries)
        vars(made).update(vars(self), positions=positions)
        return made

    def __iter__(self) -> Iterator[Tensor]:  # for a plate that is a loop
        if not self._is_in_order:
            raise ValueError(
                f"plate '{self.plate}' must not be a loop in this minibatch: the loop variable is "
                "a single number, but it would have to be both a datum's position in the batch and "
                "its row in the data set, which differ here. Write "
                f"`with pyro.plate('{self.plate}', ...) as i`; this index picks the right rows "
                "from tensors of the batch and from tables of the whole data set"
            )
        return iter(self.positions)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one of torch's operations with the rows that the index picks.

        A slice or a reshaped copy of an index is an index again.
        """
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 (it has no public name)
            if func in _FORMS:
                return func(*args, **kwargs)
            if func in _SHAPES and isinstance(args[0], cls):
                return _shaped(func, args, kwargs)
            if func in _NUMBERS:
                args[0].require_order()
            elif func in (Tensor.__getitem__, Tensor.__setitem__):
                args = (args[0], _key(*args[:2]), *args[2:])
            elif func in _BY_AXIS:
                args, kwargs = _along(*args, **kwargs)
            elif func in (Tensor.take, torch.take):
                args = (args[0].flatten(), args[1].picked(args[0].flatten(), 0))
            elif func is torch.nn.functional.embedding:
                args = (args[0].picked(args[1], 0), *args[1:])
            return func(*map(_plain, args), **{name: _plain(v) for name, v in kwargs.items()})

    def picked(self, table: Tensor, axis: int) -> Tensor:
        """Returns the numbers of the rows that the index picks along one axis of `table`."""
        size, batch = table.shape[axis], self.batch
        is_table = batch is not None and size == batch.num_data
        if size == self.num_rows and not (is_table and self._may_be_table(table)):
            return self.positions.to(table.device)
        if is_table:
            return _as(Tensor, self).to(table.device)
        raise ValueError(
            f"the index of plate '{self.plate}' picks from a tensor with "
            f"{count_of(size, 'entry')}, but the batch has {count_of(self.num_rows, 'row')}, so "
            "the entry for a datum would depend on the datum's position in the batch: pass the "
            "entries as a further tensor of the data, or pass torch.arange(len(y)) as a tensor "
            "`row` of the data, and write table[row]"
        )

    def require_order(self) -> None:
        """Refuses to convert the index to numbers unless the batch has rows 0, 1, 2, ... in order.

        Otherwise positions in the batch differ from rows of the data set, and numbers would be
        ambiguous.
        """
        if not self._is_in_order:
            raise ValueError(
                f"the index i of plate '{self.plate}' cannot be converted to plain numbers, "
                "because positions in the batch differ from rows of the data set: index tensors "
                "with i, as in torch.as_tensor(table)[i] and y[i]"
            )

    @property
    def _is_in_order(self) -> bool:
        """Whether positions in the batch equal rows of the data set; true without a minibatch."""
        return self.batch is None or _in_order(self.batch.rows)

    def _may_be_table(self, tensor: Tensor) -> bool:
        """Whether the rows of `tensor` are taken to be in the order of the data set.

        The question arises if tensor, batch and data set have the same number of rows. If batch
        and data set have the same order, both answers mean the same, and the result is False.
        Otherwise a tensor that requires a gradient is taken for a table of parameters in the data
        set's order. Any other tensor is taken to have the batch's order if `is_decided` is true,
        and is refused as ambiguous if not.
        """
        batch = self.batch
        if batch is None or (not batch.rows.is_meta and _in_order(batch.rows)):
            return False
        if not (tensor.requires_grad or self.is_decided):
            raise ValueError(
                f"the tensor that the index of plate '{self.plate}' picks from must have a known "
                "order; got a tensor with as many rows as the batch and as the data set, which may "
                "be in the order of either: keep the data in order, and pass "
                "`rows=torch.arange(num_data)`"
            )
        return tensor.requires_grad


def _functions(*names: str) -> set[Any]:
    """Finds the functions with the given names among torch's functions and tensors' methods."""
    return {
        getattr(place, name) for name in names for place in (Tensor, torch) if hasattr(place, name)
    }


_FORMS = {
    Tensor.__len__, Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point,
    *(getattr(Tensor, name).__get__ for name in ("shape", "device", "dtype", "ndim", "is_meta")),
}  # fmt: skip
_SHAPES = {
    *_functions("clone", "detach", "flatten", "reshape", "squeeze", "unsqueeze", "unbind", "split"),
    *_functions("chunk", "flip", "t", "ravel", "broadcast_to", "tile"),
    Tensor.__getitem__, Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.long, Tensor.int, Tensor.type,
    Tensor.view, Tensor.expand, Tensor.expand_as, Tensor.contiguous, Tensor.repeat,
    Tensor.__deepcopy__, Tensor.type_as,
}  # fmt: skip
_NUMBERS = {
    Tensor.tolist, Tensor.numpy, Tensor.item, Tensor.__array__, Tensor.__int__, Tensor.__index__,
}  # fmt: skip
_BY_AXIS = _functions(
    "index_select", "gather", "scatter", "scatter_", "scatter_add", "scatter_add_", "index_add",
    "index_add_", "index_copy", "index_copy_", "index_fill", "index_fill_",
)  # fmt: skip


def _as(cls: type[_TensorT], tensor: Tensor) -> _TensorT:
    """Converts a tensor to a subclass of `Tensor`, with the same entries.

    Torch 2.4 refuses `as_subclass` inside a mode that counts operations.
    """
    try:
        return tensor.as_subclass(cls)
    except RuntimeError:
        return Tensor._make_subclass(cls, tensor)  # noqa: SLF001 (it has no public name)


def _shaped(func: Any, args: Any, kwargs: Any) -> Any:
    """Applies an operation such as `flip` to a plate's index: to its entries and its positions."""
    index = args[0]
    entries, positions = (
        func(of, *map(_plain, args[1:]), **kwargs) for of in (_as(Tensor, index), index.positions)
    )
    if isinstance(entries, Tensor):
        return index.changed(entries, positions)
    return tuple(map(index.changed, entries, positions))


def _plain(value: Any) -> Any:
    """Replaces plates' indices by plain tensors, in a value or in a list or tuple of values."""
    if isinstance(value, PlateIndex):
        return _as(Tensor, value)
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def _key(table: Tensor, key: Any) -> Any:
    """Returns `key` for `table[key]`, with plain row numbers in place of a plate's index."""
    keys = key if isinstance(key, tuple) else (key,)
    used = [_axes(part) for part in keys]
    made = []
    for place, part in enumerate(keys):
        hidden = any(before is ... for before in keys[:place])
        axis = table.dim() - sum(used[place:]) if hidden else sum(used[:place])
        made.append(part.picked(table, axis) if isinstance(part, PlateIndex) else part)
    return tuple(made)


def _axes(part: Any) -> int:
    """Number of tensor axes that one part of an indexing key covers."""
    if part is None or part is ... or isinstance(part, bool):
        return 0
    return part.dim() if isinstance(part, Tensor) and part.dtype == torch.bool else 1


def _along(
    input: Any, dim: int, index: Any, *rest: Any, **more: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns an operation's arguments, with row numbers in place of a plate's index.

    The operation picks entries along one axis, `dim`, of its first argument.
    """
    picked = index.picked(input, dim) if isinstance(index, PlateIndex) else index
    return (_plain(input), dim, picked, *rest), more


def _in_order(rows: Tensor) -> bool:
    """Whether the rows are 0, 1, 2, ..."""
    return torch.equal(rows, torch.arange(len(rows), device=rows.device, dtype=rows.dtype))


@contextmanager
def whole_plate(rows: int | None, plate: str | None) -> Iterator[dict[str, Subsampling]]:
    """Makes a plate hold all `rows` rows, regardless of the subsample that the plate requests.

    Arguments:
        rows: Number of rows that the program is called with. If `None`, plates are left unchanged,
            and only the subsamples that they request are recorded.
        plate: Name of the plate; `None` for every plate that subsamples or has no fixed size.

    Returns:
        A dictionary with the subsample that each of these plates requested, by plate name. The
        dictionary is filled while the block runs.
    """
    whole = _Whole(rows, plate)
    with setting(_WHOLE, whole), _REPLACED_SUBSAMPLE:
        yield whole.requested


def _subsample_or_whole(
    name: str,
    size: int | None = None,
    subsample_size: int | None = None,
    subsample: Any = None,
    use_cuda: bool | None = None,  # noqa: FBT001  (Pyro's signature)
    device: Any = None,
) -> tuple[int, int, Any]:
    """Pyro's `_subsample`, except that the plate over data holds all rows of the batch.

    Returns the plate's size, its number of rows, and its index.
    """
    whole = _WHOLE.get()
    requested = subsample_size if subsample is None else len(subsample)
    fixed = requested is None and size is not None
    if whole is None or (fixed if whole.name is None else name != whole.name):
        found = _subsample(name, size, subsample_size, subsample, use_cuda, device)
        return found if whole is None or whole.name is not None else _unnamed(whole, name, *found)
    if requested is not None and size is not None:
        whole.requested[name] = Subsampling(size, requested)
    if whole.rows is None:
        return _subsample(name, size, subsample_size, subsample, use_cuda, device)
    _, rows, _ = _subsample(name, whole.rows, None, None, use_cuda, device)
    return whole.size or rows, rows, PlateIndex.of(whole, name)


_REPLACED_SUBSAMPLE = Replaced(SubsampleMessenger, "_subsample", staticmethod(_subsample_or_whole))


def _unnamed(whole: _Whole, name: str, size: int, rows: int, index: Any) -> tuple[int, int, Any]:
    """Gives a plate of fixed size a :class:`PlateIndex` if it counts as the plate over data.

    If a minibatch names no plate, every plate with the size of the batch counts as the plate over
    data. Returns the plate's size, its number of rows, and its index.
    """
    batch = whole.minibatch
    if batch is None:
        return size, rows, index
    if size == batch.num_data != len(batch.rows):
        raise ValueError(
            f"plate '{name}' has {count_of(size, 'entry')}, as many as the data set, but the batch "
            f"has {count_of(len(batch.rows), 'row')}: if this is the plate over data, pass its "
            f"name, as in pv.minibatch(rows, num_data={size}, plate='{name}')"
        )
    return size, rows, PlateIndex.of(whole, name) if size == len(batch.rows) else index


def current_minibatch() -> Minibatch | None:
    """The minibatch of the innermost block of :func:`minibatch`; `None` outside such blocks."""
    return _MINIBATCH.get()


class _MinibatchMessenger(Messenger):
    """Scales sites in the plate over data by N / B, for B of the N rows of the data set.

    If the name of this plate is known, the plate itself does the scaling, and also picks the rows
    of parameters. The minibatch can give the name; otherwise a :class:`pyro_vae.Guide` gives it
    when it is called. Without a name, the plate over data is the plate that has the size of the
    batch. A parameter with entries for the rows of this plate is then refused if the batch is only
    a part of the data.

    Some of Pyro's automatic guides draw the latents of all rows from one vector outside the plate.
    The entries of this vector belong to positions in the batch. So such a guide is refused if the
    batch is only a part of the data.
    """

    def __init__(self, batch: Minibatch) -> None:
        super().__init__()
        self.batch, self.rows = batch, len(batch.rows)
        self.is_part = self.rows < batch.num_data or not (
            batch.rows.is_meta or _in_order(batch.rows)
        )
        self.drawn: dict[str, Tensor] = {}  # auxiliary draws outside the plate over data
        self.draws_inside = False

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        super().__exit__(kind, error, traceback)
        if error is None or not (self.drawn and self.is_part):
            return
        # Pyro's error if the vector has another number of rows; a message of pyro_vae may have
        # replaced it, and then has it as its cause.
        messages = str(error), str(error.__cause__)
        if any(message.startswith("Shape mismatch inside plate") for message in messages):
            raise ValueError(self._refusal(next(iter(self.drawn)))) from error

    def _is_data(self, frame: CondIndepStackFrame) -> bool:
        """Whether a frame's plate is the plate over data; its size decides if no name is known."""
        if self.batch.plate is not None:
            return bool(frame.name == self.batch.plate)
        return bool(frame.size == self.rows)

    def _frame(self, msg: Any) -> CondIndepStackFrame | None:
        """The plate over data that encloses a site, or `None` if the site is in no such plate."""
        return next(filter(self._is_data, msg["cond_indep_stack"]), None)

    def _pyro_sample(self, msg: Any) -> None:
        """Scales a site in the plate over data.

        An inner plate may have as many entries as the batch, so a site may be in several plates
        that are taken for the plate over data. The site is scaled only once.
        """
        frames = [frame for frame in msg["cond_indep_stack"] if self._is_data(frame)]
        if frames and all(frame.full_size in (None, frame.size) for frame in frames):
            msg["scale"] = msg["scale"] * self.batch.num_data / self.rows

    def _pyro_post_sample(self, msg: Any) -> None:
        """Refuses latents inside the plate if they are parts of a vector drawn outside it."""
        frame, is_auxiliary = self._frame(msg), msg["infer"].get("is_auxiliary", False)
        if not self.is_part or not (is_auxiliary or self.drawn):
            return
        if frame is None and is_auxiliary:
            if torch.is_grad_enabled() and not msg["value"].requires_grad:
                msg["value"] = msg["value"].detach().requires_grad_()
            self.drawn[msg["name"]] = msg["value"]
        elif is_auxiliary:
            self.draws_inside = True
        elif frame is not None and isinstance(base_of(msg["fn"]), dist.Delta):
            axis = frame.dim - msg["fn"].event_dim
            if msg["value"].dim() < -axis:  # one value for all rows
                return
            rows = msg["value"].movedim(axis, 0)
            for name, vector in self.drawn.items():
                if _are_parts(rows, vector, alone=not self.draws_inside):
                    raise ValueError(self._refusal(name))

    def _refusal(self, name: str) -> str:
        """Message that refuses a guide that draws all rows' latents as the vector called `name`."""
        plate, size = self.batch.plate or "data", self.batch.num_data
        return (
            f"this guide draws the latents of all rows as one vector, '{name}', so each step must "
            f"use all rows in order; got {self.rows} of {count_of(size, 'row')}. For minibatches, "
            f"take another guide: pv.Guide(model, pv.LocalParameters({size}), example=y), or "
            f"AutoNormal(model) with every step inside `with pv.minibatch(rows, {size}, "
            f"plate='{plate}'):`"
        )

    def _pyro_post_param(self, msg: Any) -> None:
        """Refuses a parameter with an entry per datum, if the plate over data is not named."""
        frame, event_dim = self._frame(msg), msg["kwargs"].get("event_dim")
        if frame is None or event_dim is None:
            return
        size, num_data = _size(msg["value"], frame.dim - event_dim), self.batch.num_data
        is_whole = size == num_data and frame.full_size in (None, frame.size)
        if (size == self.rows or is_whole) and size > 1 and self.rows < num_data:
            raise ValueError(
                f"parameter '{msg['name']}' has {count_of(size, 'entry')} along plate "
                f"'{frame.name}', which holds {self.rows} of the "
                f"{count_of(self.batch.num_data, 'row')} of the data set, but every row of the "
                "data set needs an entry: name this plate before the parameter is created, as in "
                f"pv.minibatch(rows, num_data={self.batch.num_data}, plate='{frame.name}')"
            )

    def _pyro_post_subsample(self, msg: Any) -> None:
        """Skips `pyro.subsample` for a tensor that already holds only the batch's rows."""
        frame, event_dim = self._frame(msg), msg["kwargs"].get("event_dim")
        if frame is None or event_dim is None:
            return
        if _size(msg["value"], frame.dim - event_dim) == self.rows:
            msg["kwargs"] = {**msg["kwargs"], "event_dim": None}


def _are_parts(rows: Tensor, vector: Tensor, *, alone: bool) -> bool:
    """Whether the first and the last row were computed from different entries of a vector.

    False if `rows` or `vector` requires no gradient. A single row cannot be compared with another
    row: the result is then `alone` if the row depends on the vector, and False otherwise.
    """
    if not (rows.requires_grad and vector.requires_grad):
        return False
    one, other = (
        torch.autograd.grad(rows[n].sum(), vector, retain_graph=True, allow_unused=True)[0]
        for n in (0, -1)
    )
    if one is None or other is None or len(rows) == 1:
        return alone and one is not None
    return not torch.equal(one != 0, other != 0)


def _size(value: Tensor, axis: int) -> int:
    """Number of entries along `axis` (counted from the right); 1 if there is no such axis."""
    return value.shape[axis] if value.dim() >= -axis else 1


@contextmanager
def minibatch(
    rows: Int[Tensor, " batch"], num_data: int, *, plate: str | None = None
) -> Iterator[Minibatch]:
    r"""States which rows of the data set a batch holds, for training in your own loop.

    Inside the block a guide with :class:`LocalParameters` uses the parameters of these rows. Every
    site in the plate over data is scaled by :math:`N / B`, where B is the number of rows. So the
    loss of one step is minus an estimate of the ELBO of the whole data set, in nats:

    .. math:: \widehat{\mathrm{ELBO}} = \frac{N}{B} \sum_{b=1}^{B} \mathrm{ELBO}(y_{n_b})

    Sites outside the plate are not scaled. A plate that would choose a subsample holds the rows of
    the batch instead. The index of the plate picks these rows from a table of the whole data set,
    as in `loc[i]`, and all rows from a tensor of the batch, as in `y[i]`. Parameters with an
    `event_dim`, such as those of `AutoNormal`, need `plate=`.

    Arguments:
        rows: Positions of the batch's rows in the data set, as integers `(batch,)`.
        num_data: Number of rows of the data set, :math:`N`.
        plate: Name of the plate over data. By default a :class:`pyro_vae.Guide` names the plate;
            with any other guide, the plate with as many entries as `rows` is taken.

    Raises:
        ValueError: If `rows` is empty or a row lies outside `0 .. num_data - 1`. Inside the block:
            if it is ambiguous which plate is the plate over data, or which rows its index picks.

    References:
        | Stochastic Variational Inference (Hoffman et al., 2013)
        | https://arxiv.org/abs/1206.7051

    Example:
        >>> import torch
        >>> with minibatch(torch.tensor([3, 5]), num_data=10) as batch:
        ...     batch.num_data / len(batch.rows)
        5.0
    """
    _check_rows(rows, num_data)
    current = Minibatch(rows, num_data, plate)
    whole = _Whole(len(rows), plate, current)
    with (
        setting(_MINIBATCH, current),
        _MinibatchMessenger(current),
        setting(_WHOLE, whole),
        _REPLACED_SUBSAMPLE,
    ):
        yield current


def batch_scale(msg: Any) -> float:
    """Factor by which the plate over data has already scaled a site; 1 for an unscaled site."""
    current = current_minibatch()
    name = None if current is None else current.plate
    frames = [frame for frame in msg["cond_indep_stack"] if frame.name == name]
    return math.prod((f.full_size / f.size for f in frames if f.full_size), start=1.0)


def outside_minibatch() -> AbstractContextManager[Minibatch | None]:
    """Hides the caller's minibatch inside the block, where programs are run on other rows."""
    return setting(_MINIBATCH, None)


def _check_rows(rows: Tensor, num_data: int) -> None:
    """Refuses a minibatch without rows, or with rows that the data set lacks."""
    if rows.numel() == 0:
        raise ValueError("a minibatch must have at least one row; got none: skip empty ones")
    if capturing():
        return
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= num_data:
        raise ValueError(
            f"`rows` must be between 0 and {num_data - 1} for num_data={num_data}; got rows from "
            f"{low} to {high}: pass positions in the whole data set, counted from 0"
        )
