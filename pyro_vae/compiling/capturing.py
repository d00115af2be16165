r"""Turns a Pyro program into a plain function of tensors: recorded once, replayed without handlers.

Pyro's handlers cost milliseconds per call, for any network. But for given shapes a program performs
the same sequence of tensor operations every time. So a function that runs programs is run once
while its operations are recorded, including gradients and in-place updates. The recorded graph is
compiled, and replaces the function from then on. Tensors that are not arguments (parameters,
buffers, the state of an optimizer) are held by reference: the graph sees later changes to these
tensors, and its in-place updates change them. Random draws are recorded operations, too: every
replay takes the same number of draws from torch's random stream, in the same order.

A graph cannot branch. So a function that reads a number out of a tensor (`.item()`, `if y > 0`) is
not captured, and :class:`NotCaptured` names the line. Pyro's ELBOs read numbers only to report and
check them. In place of such a number they get a zero, which does not change the loss.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from ..programs.modes import capturing_data, require_cache
from .forms import FORMS, onednn_product

Outputs = Tensor | Sequence[Tensor]

# Functions that read a number out of a tensor, and the value that Pyro's own code gets instead.
_READS = {
    Tensor.item: 0.0,
    Tensor.__bool__: False,
    Tensor.__float__: 0.0,
    Tensor.__int__: 0,
    Tensor.__index__: 0,
    Tensor.tolist: [],
}
# Two settings of the compiler. The first, if "fast", lets one instruction with one rounding compute
# a product and a sum, which saves a sixth of a polynomial's time. The second, if true, keeps loops
# with a few strided reads, such as of a narrow layer's weights, from computing several
# exponentials at once.
_FUSED, _HEURISTICS = "enable_floating_point_contract_flag", "enable_tiling_heuristics"
_SKIPPED = (__name__, "torch.", "jaxtyping", "beartype")  # their code is not the program's


class NotCaptured(Exception):
    """Raised if a function cannot be captured; the message says why, in one line."""


class Captured:
    """A captured function, to be called with new arguments of the same shapes and dtypes.

    Arguments:
        graph: The operations, with the held tensors as the first inputs.
        held: Tensors that the function uses besides its arguments.
        run: The callable that runs the operations.
    """

    def __init__(
        self, graph: GraphModule, held: Sequence[Tensor], run: Callable[..., Any] | None = None
    ) -> None:
        self.graph, self.held = graph, tuple(held)
        self._inputs = [tensor.detach() for tensor in held]
        self._run: Callable[..., Any] = graph if run is None else run

    def __call__(self, *args: Tensor) -> tuple[Tensor, ...]:
        """Replays the function, including its in-place changes; call it under `torch.no_grad()`."""
        laid_out = args if self._run is self.graph else _laid_out(args)
        answer: Sequence[Tensor] = self._run(*self._inputs, *laid_out)
        return tuple(answer)

    @property
    def is_current(self) -> bool:
        """Whether the tensors that the graph holds still have the same memory addresses.

        Calling `module.to(...)` gives a module's tensors new addresses.
        """
        return all(
            tensor.data_ptr() == held.data_ptr()
            for tensor, held in zip(self.held, self._inputs, strict=True)
        )

    def compiled(self, *args: Tensor) -> "Captured":
        """Returns a copy whose operations are compiled, for arguments of the shapes of `args`.

        Raises:
            NotCaptured: If there is no compiler, or the compiler fails.
        """
        try:
            require_cache()
            with torch.no_grad(), _quiet(), _same_subnormals():
                run = _compiled(self.graph, [*self._inputs, *_laid_out(args)])
        except Exception as error:  # whatever a compiler raises
            raise NotCaptured(f"the compiler failed: {_first_line(error)}") from error
        return Captured(self.graph, self.held, run)


def _laid_out(args: Sequence[Tensor]) -> list[Tensor]:
    """Returns the arguments, made contiguous in memory, as compiled operations expect."""
    return [arg.contiguous() for arg in args]


def _compiled(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """Compiles a graph for inputs of these shapes; returns the callable that runs it."""
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx

    # Torch makes the draws, so that they are the same as without a compiler. The pattern matcher
    # is off: it would undo the separation of biases from matrix products.
    options: dict[str, Any] = {
        "fallback_random": True, "pattern_matcher": False,
        f"cpp.{_FUSED}": "fast", f"cpp.{_HEURISTICS}": False,
    }  # fmt: skip
    if all(tensor.device.type == "cpu" for tensor in inputs):
        # One C++ file for all kernels compiles faster than one file each, and without Python
        # between its kernels a small step takes half the time.
        options["cpp_wrapper"] = True
        _store_shapes(graph, inputs)
    with config.patch(options), _called_as_recorded():
        run: Any = compile_fx(graph, inputs)
    return run


@contextmanager
def _called_as_recorded() -> Iterator[None]:
    """Makes the compiler keep oneDNN's matrix products as calls of oneDNN, inside the block.

    The compiler would otherwise translate these products in a way that requires constant weights.
    """
    from torch._inductor.lowering import lowerings

    own = lowerings.pop(onednn_product(), None) if torch.backends.mkldnn.is_available() else None
    try:
        yield
    finally:
        if own is not None:
            lowerings[onednn_product()] = own


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the compiler's own warnings and log messages inside the block."""
    log = logging.getLogger("torch._inductor.ir")  # this logger lists operations without a C++ call
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


@contextmanager
def _same_subnormals() -> Iterator[None]:
    """Restores how the processor treats subnormal numbers (below 1.2e-38 in float32).

    Torch 2.4 compiles with `-ffast-math`. With GCC before version 13, loading the compiled library
    makes the processor replace all subnormal numbers by zero. The previous setting is restored
    after the block.
    """
    are_zero = sys.float_info.min / 2 == 0
    try:
        yield
    finally:
        torch.set_flush_denormal(are_zero)


def _store_shapes(graph: GraphModule, inputs: list[Tensor]) -> None:
    """Stores the shapes of a graph's inputs in the graph, where the compiler reads them."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # imports SymPy: a fifth of a second

    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)  # loops need static shapes
    nodes = (node for node in graph.graph.nodes if node.op == "placeholder")
    for node, tensor in zip(nodes, inputs, strict=True):
        node.meta["val"] = mode.from_tensor(tensor)


def capture(function: Callable[..., Outputs], *args: Tensor, missing: bool = False) -> Captured:
    """Runs a function once and records its operations.

    The function really runs: it changes tensors in place, and draws from the random stream. The
    caller must restore the tensors and the random stream where necessary.

    Arguments:
        function: Called with `args`; returns a tensor or several. The function may compute
            gradients and change tensors in place.
        args: Tensors; replays get other tensors of the same shapes and dtypes.
        missing: Whether the data have nan entries, which mean "not observed".

    Raises:
        NotCaptured: If the function reads a number out of a tensor, or uses an operation that
            cannot be recorded.

    Example:
        >>> weight = torch.tensor([2.0])
        >>> double = capture(lambda y: (y * weight,), torch.zeros(3))
        >>> _ = weight.fill_(3.0)
        >>> double(torch.ones(3))
        (tensor([3., 3., 3.]),)
    """
    try:
        with (
            capturing_data(missing=missing),
            pyro.validation_enabled(is_validate=False),
            # Otherwise gradients on a GPU are computed in another thread. There the capture is
            # unknown, so hooks would read numbers.
            torch.autograd.set_multithreading_enabled(False),
            # One mode records the shapes of all operations; otherwise each would create its own.
            tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))),
            _NoNumbers(),
        ):
            graph = make_fx(function, decomposition_table=FORMS, _allow_non_fake_inputs=True)(*args)
    except NotCaptured:
        raise
    except Exception as error:  # whatever an operation raises that cannot be traced
        raise NotCaptured(_first_line(error)) from error
    held = _lifted(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return Captured(graph, held)


class _NoNumbers(TorchFunctionMode):
    """Refuses programs that read a number out of a tensor.

    Where Pyro's own code reads a number, that code gets a zero.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _READS and func is not Tensor.register_hook:
            return func(*args, **(kwargs or {}))
        frame = _calling_frame()
        # Not all of Pyro's code gets a zero: a plate used as a loop needs its real indices.
        is_pyro = str(frame.f_globals.get("__name__", "")).startswith(("pyro.infer.", "pyro.util"))
        if func is Tensor.register_hook:  # Pyro's check for nan in gradients
            return None if is_pyro else func(*args, **(kwargs or {}))
        if is_pyro:
            return _READS[func]
        raise NotCaptured(
            f"{frame.f_code.co_filename}:{frame.f_lineno} reads a number out of a tensor, so the "
            "program's operations may depend on the data"
        )


def _calling_frame() -> Any:
    """Returns the innermost stack frame outside this file, torch and the type checker."""
    frame: Any = sys._getframe(1)
    while str(frame.f_globals.get("__name__", "")).startswith(_SKIPPED):
        frame = frame.f_back
    return frame


def _lifted(graph: GraphModule) -> list[Tensor]:
    """Turns the tensors held by a graph into its first inputs, and returns these tensors."""
    nodes = [node for node in graph.graph.nodes if node.op == "get_attr"]
    first = next(iter(graph.graph.nodes))
    inputs: dict[int, Any] = {}
    held: list[Tensor] = []
    for node in nodes:
        tensor = getattr(graph, node.target)
        if not isinstance(tensor, Tensor):
            raise NotCaptured(f"the program uses a {type(tensor).__name__}, which is not a tensor")
        if id(tensor) not in inputs:
            with graph.graph.inserting_before(first):
                inputs[id(tensor)] = graph.graph.placeholder(f"held_{len(held)}")
            held.append(tensor)
        node.replace_all_uses_with(inputs[id(tensor)])
        graph.graph.erase_node(node)
    return held


def _first_line(error: Exception) -> str:
    """The type of an error and the first line of its message."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
