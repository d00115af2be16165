r"""Compiled graphs of a model, and the cost model that decides whether to compile.

An evaluation calls the same function of tensors hundreds of times. The function is captured (see
`capture`) and compiled once for tensors of given shapes. A model may later change in ways that no
tensor shows. So a graph is compared with the eager program at the start of every evaluation.

Whether compiling saves time is decided by counts, never by the clock, so the decision does not
depend on the load of the machine. An eager call runs :math:`n` operations, each slowed down by
Pyro's handlers and torch's dispatcher, and produces :math:`m` bytes of results. A graph
has no handlers and makes fewer passes over memory; its matrix products take the same time.
Compiling takes a time proportional to :math:`n`. With :math:`s_n` and :math:`s_m` seconds saved per
operation and per byte, and :math:`t` seconds to compile an operation, compiling saves time over
:math:`c` calls if

.. math:: c\, (s_n n + s_m m) > t\, n .

If the number of further calls is not known, it is assumed to be the number of calls so far. Then
compiling takes no longer than the time already lost by running eagerly.
"""

import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from .._types import ProgramLike
from .._warnings import warn
from ..programs.hooks import name_of, owner_of
from ..programs.modes import modules_of
from ..programs.running import Counted
from ..randomness import undisturbed
from .capturing import Captured, NotCaptured, capture

# Seconds measured on one core of a 2023 Xeon; only their ratios matter.
_COMPILING = 0.04  # per operation; a training step of a VAE has 300 operations
_SAVED = 17e-6  # per operation: most of its eager time
_SAVED_BYTE = 0.08e-9  # per byte of results; eagerly a byte takes 0.3e-9
COMPILER_MEMORY = 300.0  # MiB that the compiler itself needs

_AGREE = 1e-4  # relative difference of float32 sums over a datum, in another order
_AGREE_BATCH = 1e-3  # relative difference of sums over a batch
_DISAGREEMENTS = 2  # after the first, the model is compiled again, as it may have changed
_ATTRIBUTE = "_pyro_vae_graphs"

Flat = Callable[..., Sequence[Tensor]]
_Name = tuple[str, Hashable]  # names of a method of the model, and of a function
_Shapes = tuple[tuple[torch.Size, torch.dtype, torch.device], ...]
_Key = tuple[_Name, _Shapes, bool]  # a function, its arguments, whether data have missing entries


class Cost(NamedTuple):
    """Cost of an eager call: the number of operations, and the bytes of results per row."""

    operations: int
    bytes_per_row: float

    @staticmethod
    def of(count: Counted, rows: int, *, with_backward: bool = False) -> "Cost":
        """Returns the cost of a call with these counts, doubled if there is a backward pass."""
        passes = 2 if with_backward else 1
        return Cost(passes * count.operations, passes * count.bytes / rows)

    def seconds_saved(self, rows: int, calls: int = 1) -> float:
        """Seconds that compiling would save in `calls` calls with `rows` rows each."""
        return calls * (_SAVED * self.operations + _SAVED_BYTE * self.bytes_per_row * rows)

    def pays(self, rows: int, calls: int, lost: float = 0.0) -> bool:
        """Whether compiling takes less time than it saves in further calls with `rows` rows each.

        Arguments:
            rows: Number of rows in a call.
            calls: Number of further calls.
            lost: Seconds that compiled code would have saved in the eager calls so far. Further
                calls are expected to lose as many seconds again.
        """
        return lost + self.seconds_saved(rows, calls) > _COMPILING * self.operations


@dataclass
class _Kept:
    """The record of a model: its graphs, the costs of calls, and why some calls have no graph.

    Arguments:
        owner: Reference to the model, or to the object that the model is a method of.
        graphs: The graphs.
        refused: Why there is no graph.
        costs: Costs of eager calls.
        lost: Seconds that compiled code would have saved in the eager calls so far.
        tensors: Parameters and buffers of the modules that a method of the owner uses, keyed by the
            name of the method.
        disagreements: How often a graph disagreed with the program.
    """

    owner: "ReferenceType[Any]"
    graphs: dict[_Key, Captured] = field(default_factory=dict)
    refused: dict[_Key, str] = field(default_factory=dict)
    costs: dict[_Name, Cost] = field(default_factory=dict)
    lost: dict[_Name, float] = field(default_factory=dict)
    tensors: dict[str, list[Tensor]] = field(default_factory=dict)
    disagreements: int = 0

    def drop_replaced(self, method: str, tensors: list[Tensor]) -> None:
        """Drops a method's graphs if the model's modules have other tensors than before.

        For example, after `load_state_dict(..., assign=True)` a graph would use the old tensors.
        """
        before = self.tensors.get(method, tensors)
        if len(before) != len(tensors) or not all(map(operator.is_, before, tensors)):
            self.graphs = {key: graph for key, graph in self.graphs.items() if key[0][0] != method}
            self.lost.update((name, 0.0) for name in self.lost if name[0] == method)
        self.tensors[method] = tensors

    def __reduce__(self) -> tuple[Any, ...]:
        """Makes copies and pickles hold `None`, because this record belongs to one model only."""
        return type(None), ()


def kept_with(model: ProgramLike) -> _Kept:
    """Returns the record of a model's graphs and costs, stored in an attribute of the model.

    The record of a bound method is stored in the object that the method is bound to. For
    an object that cannot have attributes, every call returns a new, empty record.
    """
    owner = owner_of(model)
    try:
        attributes, new = vars(owner), _Kept(ref(owner))
    except TypeError:
        return _Kept(lambda: None)  # type: ignore[arg-type]
    kept = attributes.get(_ATTRIBUTE)
    # functools.wraps and copy.copy copy attributes, so the record may belong to another object.
    if not isinstance(kept, _Kept) or kept.owner() is not owner:
        kept = attributes[_ATTRIBUTE] = new
    return kept


def counts_of(model: ProgramLike) -> list[Any]:
    """Returns the costs of a model's calls; they decide whether later evaluations are compiled."""
    kept = kept_with(model)
    return [[name, tuple(cost), kept.lost.get(name, 0.0)] for name, cost in kept.costs.items()]


def resume_counts(model: ProgramLike, counts: list[Any]) -> None:
    """Stores in a model's record the costs that :func:`counts_of` returned in another process."""
    kept = kept_with(model)
    for name, cost, lost in counts:
        kept.costs[name], kept.lost[name] = Cost(*cost), lost


class Graphs:
    """The compiled functions of one model; they are compiled if that saves time, or on request.

    Arguments:
        model: The model that the functions belong to.
        results: Name of the functions' results, for a warning.
        compile: True to compile at once, False to never compile, `None` to compile if that saves
            time.
        memory: Memory budget in MiB. With `compile=None` nothing is compiled if the compiler needs
            more memory than this.
    """

    def __init__(
        self, model: ProgramLike, results: str, *, compile: bool | None, memory: float = torch.inf
    ) -> None:
        self.results, self.is_requested = results, bool(compile)
        self.is_off = compile is False or (compile is None and memory < COMPILER_MEMORY)
        self._method = name_of(model)  # an object may have several methods
        self._kept = kept_with(model)
        if not self.is_off:
            modules = modules_of(model)
            tensors = [part for one in modules for part in (*one.parameters(), *one.buffers())]
            self._kept.drop_replaced(self._method, tensors)

    @contextmanager
    def counted(self, name: Hashable, rows: int, *, with_backward: bool = False) -> Iterator[None]:
        """Counts the operations of the eager call in the block, unless they were counted before."""
        if self.is_off:
            yield
            return
        called, costs = (self._method, name), self._kept.costs
        if called in costs:
            yield
        else:
            with Counted() as count:
                yield
            costs[called] = Cost.of(count, rows, with_backward=with_backward)
        lost = self._kept.lost.get(called, 0.0)
        self._kept.lost[called] = lost + costs[called].seconds_saved(rows)

    def of(
        self,
        name: Hashable,
        function: Flat,
        tensors: Sequence[Tensor],
        *,
        missing: bool,
        rows: int,
        calls_left: int = 0,
    ) -> Captured | None:
        """Returns a function's graph for these arguments; `None` if the function must run eagerly.

        Arguments:
            name: Name of the function, unique in the model.
            function: The function to capture, if it is not captured yet.
            tensors: Arguments of the function: everything that differs between calls.
            missing: Whether data have nan entries, which mean "not observed".
            rows: Number of rows in an eager call.
            calls_left: Number of further calls that are certain to follow.
        """
        if self.is_off:
            return None
        called = (self._method, name)
        shapes = tuple((part.shape, part.dtype, part.device) for part in tensors)
        key = (called, shapes, missing)
        graph = self._kept.graphs.get(key)
        if graph is not None and graph.is_current:
            return graph
        cost = self._kept.costs.get(called)  # None before the first call, which is eager
        pays = cost is not None and cost.pays(rows, calls_left, self._kept.lost[called])
        if not (self.is_requested or pays):
            return None
        try:
            if key in self._kept.refused and not self.is_requested:
                raise NotCaptured(self._kept.refused[key])
            self._kept.graphs[key] = compiled(function, tensors, missing=missing)
        except NotCaptured as error:
            self._kept.refused[key] = str(error)
            self._turn_off(str(error))
            return None
        return self._kept.graphs[key]

    def agree(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
        """Whether a graph agrees with the program; if not, all graphs of the model are dropped."""
        if _agree(expected, found, _AGREE):
            return True
        reason = f"compiled {self.results} differ from those of the eager program"
        self._kept.disagreements += 1
        if self._kept.disagreements >= _DISAGREEMENTS:
            self._kept.refused.update(dict.fromkeys(self._kept.graphs, reason))
        self._kept.graphs.clear()
        self._turn_off(reason)
        return False

    def _turn_off(self, reason: str) -> None:
        """Turns compiling off from now on; warns, with the reason, if compiling was requested."""
        self.is_off = True
        if self.is_requested:
            warn(f"{self.results} are evaluated eagerly, not compiled: {reason}")


def compiled(
    function: Flat,
    tensors: Sequence[Tensor],
    *,
    missing: bool,
    check: bool = False,
    modules: Iterable[nn.Module] = (),
) -> Captured:
    """Captures and compiles a function for the shapes of `tensors`, and changes nothing else.

    Arguments:
        function: The function, called with `tensors`.
        tensors: Arguments of the function: everything that differs between calls.
        missing: Whether the data have nan entries, which mean "not observed".
        check: Whether to compare the first output, a sum over a batch, with that of the eager
            function on the same draws. Otherwise the caller must compare (:meth:`Graphs.agree`).
        modules: The modules that the function calls and may change.

    Raises:
        NotCaptured: If the function cannot be captured or compiled, or the results differ.
    """
    with on_trial(modules) as again:
        graph = capture(function, *tensors, missing=missing).compiled(*tensors)
        if check:
            again()
            expected = function(*tensors)[0].detach()
            again()
            require_agreement(expected, graph(*tensors)[0])
    return graph


@contextmanager
def on_trial(modules: Iterable[nn.Module]) -> Iterator[Callable[[], None]]:
    """Restores random streams, and the modules' buffers such as running averages, after the block.

    The block gets a function that restores them as well, so that a call can be repeated.

    Raises:
        NotCaptured: If a buffer was replaced by another tensor; a graph would not see the new one.
    """
    parts = [part for module in modules for part in module.modules()]
    buffers = [(part, *item) for part in parts for item in part.named_buffers(recurse=False)]
    values, replaced = [buffer.clone() for *_, buffer in buffers], set[str]()
    with undisturbed() as restore_streams:

        def again() -> None:
            restore_streams()
            for (part, name, buffer), value in zip(buffers, values, strict=True):
                if getattr(part, name) is not buffer:
                    replaced.add(f"{type(part).__name__}.{name}")
                    setattr(part, name, buffer)
                if not torch.equal(buffer, value):  # an expanded buffer cannot be written
                    with torch.no_grad():
                        buffer.copy_(value)

        try:
            yield again
        finally:
            again()
    if replaced:
        names = ", ".join(sorted(replaced))
        raise NotCaptured(f"a step replaces the buffer {names}: change it in place, by copy_()")


def require_agreement(expected: Tensor, found: Tensor) -> None:
    """Refuses a graph whose sum over a batch differs from that of the eager function.

    Raises:
        NotCaptured: If the two sums differ.
    """
    if not _agree([expected], [found], _AGREE_BATCH):
        raise NotCaptured(
            f"the graph gives {found.tolist()}, but the programs give "
            f"{expected.tolist()}: the programs depend on something that is not a tensor"
        )


def _agree(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> bool:
    """Whether two lists of tensors are equal up to the tolerance; nan equals nan."""
    return all(
        torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
        for mine, theirs in zip(found, expected, strict=True)
    )
