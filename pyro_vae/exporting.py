r"""Encoder, decoder and log weights as programs that run without this library, even without Python.

`torch.export` cannot trace Pyro's handlers, nor a program that reads the plain number `len(y)`. So
each function is captured (:mod:`pyro_vae.compiling`) as a list of operations, for batches of two
sizes. The two lists differ only in numbers that depend on the number of rows n, such as a shape
`(5, 3)` in one and `(7, 3)` in the other. Each of these numbers is written as :math:`a + b n`; with
these expressions the list is valid for any batch size. The written file is then loaded, and its
results are compared with those of model and guide for batches of one row, of the given rows, and of
a thousand rows. If they differ, the export is refused.
"""

import io
import json
import math
import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from ._arguments import check_public
from ._types import Batch, Data, ProgramLike, optional
from .compiling import Captured, NotCaptured, capture
from .data.checks import check_batch
from .formatting import count_of
from .guides import Guide
from .guides.entry import is_tied_to_rows
from .guides.guide import is_made_of_map
from .guides.reparameterization import noise_size, reparameterize
from .models import Generative
from .programs import as_batch, evaluating
from .programs.missing import has_missing
from .programs.modes import device_of
from .programs.pieces import first_rows
from .programs.structure import partly_observed
from .randomness import forked
from .writing import Kind, require_place, whole_folder

Name: TypeAlias = Literal["encoder", "decoder", "mean", "log_weights"]
"""Names of the programs that can be exported."""

_HEADER = "export.json"
_SIZES = (5, 7)  # rows of the two captured batches; other dimensions rarely have these sizes
_MANY = 1000  # rows of the largest batch that is compared
# Tolerance relative to the largest number: a few times the rounding of a reordered sum, and far
# below the difference that a faulty file makes.
# ONNX keeps plain numbers, such as log(2 pi), in float32, even in float64 programs.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}

# Coefficients of 1 / x, 1 / x^3, ... in Stirling's series, which is exact to 1e-11 from x = 5 on.
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)


@runtime_checkable
class Format(Protocol):
    """A file format for exported programs."""

    suffix: str

    def require(self) -> None:
        """Raises an error if a package that the format needs is not installed."""

    def write(self, program: torch.export.ExportedProgram, path: Path) -> None:
        """Writes a program to a file."""

    def load(self, path: Path) -> Callable[..., Sequence[Tensor]]:
        """Loads a file as a callable of tensors."""


@dataclass(frozen=True)
class TorchExport:
    """Files for `torch.export.load`; to run them, only torch is needed."""

    suffix = ".pt2"

    def require(self) -> None:
        """Does nothing, because this format needs only torch."""

    def write(self, program: torch.export.ExportedProgram, path: Path) -> None:
        """Writes a program with `torch.export.save`."""
        file = io.BytesIO()  # written in memory first: torch ends the process if the disk is full
        torch.export.save(program, file)
        path.write_bytes(file.getbuffer())

    def load(self, path: Path) -> Callable[..., Sequence[Tensor]]:
        """Loads a program with `torch.export.load`."""
        return torch.export.load(path).module()


@dataclass(frozen=True)
class ONNX:
    """Files for ONNX Runtime and other software that reads ONNX, in any language."""

    suffix = ".onnx"

    def require(self) -> None:
        """Raises an ImportError that names the extra to install, if packages are missing."""
        for package in ("onnx", "onnxscript", "onnxruntime"):
            optional(package, needed_for="pv.export to ONNX")

    def write(self, program: torch.export.ExportedProgram, path: Path) -> None:
        """Writes a program with `torch.onnx.export`; the weights are in the file."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of the exporter about itself
            program = program.run_decompositions(_lacking())
            written: Any = torch.onnx.export(program, dynamo=True, verbose=False)
        written.save(path, external_data=False)

    def load(self, path: Path) -> Callable[..., Sequence[Tensor]]:
        """Loads a program with ONNX Runtime, on the CPU."""
        runtime = optional("onnxruntime", needed_for="pv.export to ONNX")
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]

        def run(*inputs: Tensor) -> Sequence[Tensor]:
            # ONNX programs lack the inputs on which the results do not depend.
            given = {name: inputs[int(name.rpartition("_")[-1])].cpu().numpy() for name in names}
            return [torch.from_numpy(part) for part in session.run(None, given)]

        return run


def _lacking() -> dict[Any, Callable[..., Any]]:
    """Maps each operation that ONNX lacks to a function that replaces it."""
    aten = torch.ops.aten
    return {
        aten.elu.default: _elu,
        aten.lgamma.default: _log_gamma,
        aten.linalg_cholesky_ex.default: _cholesky,
        aten.linalg_solve_triangular.default: _solve_triangular,
        aten.cholesky_solve.default: _cholesky_solve,
    }


def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Any:
    """Computes the activation function ELU of float64 numbers; ONNX Runtime has no float64 ELU."""
    if x.dtype != torch.float64:
        return NotImplemented
    return scale * torch.where(x > 0, x, alpha * ((x * input_scale).exp() - 1))


def _log_gamma(x: Tensor) -> Tensor:
    """Computes log gamma of positive numbers by Stirling's series; ONNX has no such function."""
    is_small = x < 5  # log gamma(x) = log gamma(x + 5) - log(x (x + 1) ... (x + 4))
    product = math.prod((x.clamp(max=5) + shift for shift in range(5)), start=torch.ones_like(x))
    large = torch.where(is_small, x + 5, x)
    series = sum(weight * large ** (1 - 2 * k) for k, weight in enumerate(_STIRLING, 1))
    answer = (large - 0.5) * (large.log() - 1) + math.log(2 * math.pi) / 2 - 0.5 + series
    return torch.where(is_small, answer - product.log(), answer)


def _cholesky(
    a: Float[Tensor, "*batch n n"], *, upper: bool = False, **_checks: bool
) -> tuple[Float[Tensor, "*batch n n"], Tensor]:
    """Computes the Cholesky factor of a small matrix, and an error code that is always 0."""
    columns, left = [], a
    for k in range(a.shape[-1]):
        column = left[..., k : k + 1] / left[..., k : k + 1, k : k + 1].sqrt()
        left = left - column * column.mT
        columns.append(column)
    lower = torch.cat(columns, dim=-1).tril()
    failed = torch.zeros_like(a[..., 0, 0], dtype=torch.int32)
    return lower.mT if upper else lower, failed


def _solve_triangular(
    a: Float[Tensor, "*batch n n"],
    b: Float[Tensor, "*batch rows columns"],
    *,
    upper: bool,
    left: bool = True,
    unitriangular: bool = False,
) -> Float[Tensor, "*batch rows columns"]:
    """Solves the triangular system a x = b row by row, or x a = b if `left` is false."""
    if not left:
        return _solve_triangular(a.mT, b.mT, upper=not upper, unitriangular=unitriangular).mT
    rows, rest, order = [], b, range(a.shape[-1])
    for k in reversed(order) if upper else order:
        row = rest[..., k : k + 1, :]
        row = row if unitriangular else row / a[..., k : k + 1, k : k + 1]
        rest = rest - a[..., k : k + 1] * row
        rows.append(row)
    return torch.cat(rows[::-1] if upper else rows, dim=-2)


def _cholesky_solve(
    b: Float[Tensor, "*batch n k"],
    factor: Float[Tensor, "*batch n n"],
    upper: bool = False,  # noqa: FBT001, FBT002 (torch's signature)
) -> Float[Tensor, "*batch n k"]:
    """Solves a x = b, where `factor` is a Cholesky factor of a."""
    lower = factor.mT if upper else factor
    half = _solve_triangular(lower, b, upper=False)
    return _solve_triangular(lower.mT, half, upper=True)


class _Exported(nn.Module):
    """A module that holds captured operations and weights, and runs batches of any size."""

    def __init__(self, graph: fx.GraphModule, held: Sequence[Tensor]) -> None:
        super().__init__()
        weights = (nn.Parameter(part.detach().clone(), requires_grad=False) for part in held)
        self.held, self.graph = nn.ParameterList(weights), graph

    def forward(self, *input: Tensor) -> Sequence[Tensor]:
        answer: Sequence[Tensor] = self.graph(*self.held, *input)
        return tuple(answer)


def export(
    folder: str | Path,
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    *,
    programs: Sequence[Name] | None = None,
    formats: Sequence[Format] = (TorchExport(),),
) -> None:
    r"""Writes encoder, decoder, posterior mean and log weights as programs for other software.

    Each program takes tensors with any number of rows, at least one, and returns the results of
    model and guide in evaluation mode. This is checked before the folder is put in place. The files
    do not need this library: `.pt2` files need only torch (`torch.export.load(file).module()`), and
    `.onnx` files need any ONNX runtime.

    .. math:: \text{encoder}(y) = \lambda, \quad \text{mean}(y) = \mathbb{E}_{q_\lambda}[z], \quad
        \text{decoder}(z) = \mathbb{E}[y \mid z], \\
        \text{log\_weights}(\epsilon, y) = \big(\log p(y, z) - \log q_\lambda(z), \; z\big),
        \quad z = T_\lambda(\epsilon)

    Here :math:`\lambda` are the parameters of q for the row y, and :math:`T_\lambda` maps noise to
    a draw of q. To estimate log p(y) in nats, pass a row K times with standard normal noise
    :math:`\epsilon`, and take the logarithm of the mean of the K weights. The second output holds
    the latents z of these weights. Further tensors of the batch, such as covariates, come after y,
    or after z in the decoder. Global latent sites are set to their posterior mean.

    Arguments:
        folder: Folder to write to, created if it does not exist; an older export in it is replaced.
            Its file `export.json` describes the inputs and outputs of each program.
        model: A Pyro program. Only models of `pv.models` have a decoder to export.
        guide: A :class:`pyro_vae.Guide` whose map works for new data.
        data: A few rows on which the files are checked. If these rows have missing entries (nan),
            the programs accept missing entries.
        programs: Which of "encoder", "decoder", "mean" and "log_weights" to export; by default all
            that exist for this model and guide.
        formats: File formats, :class:`TorchExport` or :class:`ONNX` or both; ONNX needs `pip
            install 'pyro-vae[onnx]'`.

    Raises:
        ImportError: If a format needs a package that is not installed.
        TypeError: If the guide is written by hand.
        ValueError: If the folder holds anything but an export, or if a program cannot be exported
            because the guide has a table of local parameters, the program branches on data, or
            ONNX lacks an operation.

    References:
        | torch.export: https://docs.pytorch.org/docs/stable/export.html
        | Open Neural Network Exchange: https://onnx.ai

    Example:
        >>> import tempfile
        >>> from pyro_vae import Encoder, likelihoods, models, nets
        >>> decoder = nets.MLPDecoder(latent_dim=2, shape=3)
        >>> model = models.VAE(decoder, likelihoods.Bernoulli(), latent_dim=2)
        >>> guide = Guide(model, Encoder(nets.MLPEncoder(3)))
        >>> folder, y = Path(tempfile.mkdtemp()) / "exported", torch.ones(4, 3)
        >>> export(folder, model, guide, y, programs=["mean"])
        >>> (mean,) = torch.export.load(folder / "mean.pt2").module()(y)
        >>> torch.allclose(mean, guide.mean(y))
        True
    """
    for kind in formats:
        kind.require()
    if programs is not None and not programs:
        raise ValueError(
            "`programs` must name at least one program; got none: omit this argument to export "
            "all programs"
        )
    target = require_place(Path(folder), Kind("an export", {_HEADER}, _is_ours))
    batch = as_batch(data, device_of(model, guide))
    check_batch(*batch, missing=partly_observed(model, batch))
    with (
        whole_folder(target) as new,
        evaluating(model, guide),
        torch.no_grad(),
        forked(0, "export"),
    ):
        found, descriptions = _functions(model, guide, batch), {}
        for name in found if programs is None else programs:
            if name not in found:
                raise ValueError(_refusal(name, "only models of pv.models have a decoder"))
            _export(new, name, found[name], formats)
            descriptions[name] = found[name].description()
        (new / _HEADER).write_text(json.dumps({"programs": descriptions}, indent=1))


def _is_ours(name: str) -> bool:
    """Whether a file of this name belongs to an export."""
    return name == _HEADER or name.partition(".")[0] in get_args(Name)


class _Function(NamedTuple):
    """A function to export, with example inputs by name, and the names of its outputs."""

    call: Callable[..., Sequence[Tensor]]
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]

    def rows(self, size: int) -> Batch:
        """Returns `size` rows of example inputs, made by repeating the given rows."""
        return first_rows(tuple(self.inputs.values()), size)

    def description(self) -> dict[str, dict[str, str]]:
        """Returns dtype and shape of each input and output, for `export.json`."""
        outputs = dict(zip(self.outputs, self.call(*self.inputs.values()), strict=True))
        return {
            "inputs": {name: _shape(part) for name, part in self.inputs.items()},
            "outputs": {name: _shape(part) for name, part in outputs.items()},
        }


def _shape(part: Tensor) -> str:
    sizes = ", ".join(["batch", *map(str, part.shape[1:])])
    return f"{str(part.dtype).removeprefix('torch.')} ({sizes})"


def _functions(model: ProgramLike, guide: ProgramLike, batch: Batch) -> dict[str, _Function]:
    """Returns the functions of a model and a guide that can be exported, by name."""
    found: dict[str, _Function] = {}
    given = {f"x{place}": part for place, part in enumerate(batch[1:], 1)}
    data, rows = {"y": batch[0], **given}, len(batch[0])
    if isinstance(model, Generative):
        z = torch.randn(rows, model.latent_dim, dtype=model.zero.dtype, device=model.zero.device)
        expectation = model.expectation
        found["decoder"] = _Function(lambda *r: (expectation(*r),), {"z": z, **given}, ("y",))
    own = _amortized(guide)
    program = own.program.given(own.global_values())
    found["encoder"] = _Function(lambda *r: (own.parameters_of(*r),), data, ("parameters",))
    found["mean"] = _Function(lambda *r: (own.posterior(*r).mean(),), data, ("z",))

    def log_weights(noise: Tensor, *rows: Tensor) -> Sequence[Tensor]:
        q = own.family(own.parameters_of(*rows))
        z = reparameterize(q, noise[None])
        log_weights = sum(program.log_densities(z, *rows)) - q.log_prob(z)
        return log_weights[0], z[0]

    size = noise_size(own.family(own.parameters_of(*batch)))
    if size is not None:  # otherwise draws are not transformed normal noise
        noise = torch.randn(rows, size, dtype=program.dtype, device=program.device)
        found["log_weights"] = _Function(
            log_weights, {"noise": noise, **data}, ("log_weights", "z")
        )
    return found


def _amortized(guide: ProgramLike) -> Guide:
    """Returns the guide; refuses guides that have no posterior for new data."""
    if not is_made_of_map(guide):
        raise TypeError(
            "only a pv.Guide has parameters and a mean to export, but this guide is written by "
            "hand: make a pv.Guide from the guide's network, as in pv.Guide(model, pv.Encoder(net))"
        )
    if is_tied_to_rows(guide):
        raise ValueError(
            f"{type(guide.map).__name__} has parameters only for the data that it was trained "
            "on, and no encoder that could be exported: train pv.Guide(model, pv.Encoder(net)) "
            "instead"
        )
    return guide


def _export(folder: Path, name: str, function: _Function, formats: Sequence[Format]) -> None:
    """Writes one program in every format, and checks each file."""
    try:
        program = _program(function)
        for kind in formats:
            path = folder / f"{name}{kind.suffix}"
            kind.write(program, path)
            _check(kind, path, function)
    except OSError:
        raise
    except Exception as error:  # whatever the exporters raise
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise ValueError(_refusal(name, reason)) from error


def _refusal(name: str, reason: str) -> str:
    return (
        f"pyro_vae cannot export the {name}: {reason}. Pass only programs that can be exported, as "
        f"in programs={[other for other in get_args(Name) if other != name]}"
    )


def _program(function: _Function) -> torch.export.ExportedProgram:
    """Makes a program for `torch.export` that runs the function for any number of rows."""
    function.call(*function.rows(_SIZES[0]))  # fills caches before the function is captured
    small, large = (_captured(function, size) for size in _SIZES)
    module = _Exported(_dynamic(small, large), small.held)
    dynamic = {"input": tuple({0: torch.export.Dim("batch", min=1)} for _ in function.inputs)}
    inputs = function.rows(_SIZES[0])
    return torch.export.export(module, inputs, dynamic_shapes=dynamic, strict=False)


def _captured(function: _Function, size: int) -> Captured:
    """Captures a function for `size` rows; refuses functions that draw random numbers."""
    inputs = function.rows(size)
    # With gradients enabled, an inference map computes all rows at once, not piece by piece.
    with torch.enable_grad():
        captured = capture(function.call, *inputs, missing=any(map(has_missing, inputs)))
    graph = captured.graph.graph
    random = [
        node.target
        for node in graph.nodes
        if isinstance(node.target, OpOverload)
        and torch.Tag.nondeterministic_seeded in node.target.tags
    ]
    if random or not all(isinstance(part, Tensor) for part in captured.held):
        raise NotCaptured(f"the program draws random numbers {random or ''}".strip())
    for node in reversed(graph.nodes):
        if "_linalg_check_errors" in str(node.target):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    return captured


def _dynamic(small: Captured, large: Captured) -> fx.GraphModule:
    """Merges a function's captures for two batch sizes into one graph for any number of rows."""
    graph, nodes, others = small.graph.graph, [*small.graph.graph.nodes], large.graph.graph.nodes
    same_operations = [(n.op, n.target) for n in nodes] == [(n.op, n.target) for n in others]
    same_tensors = len(small.held) == len(large.held) and all(
        one is other or torch.equal(one, other)
        for one, other in zip(small.held, large.held, strict=True)
    )
    if not (same_operations and same_tensors):
        raise NotCaptured("the program's operations depend on the number of rows")
    last = next(node for node in reversed(nodes) if node.op == "placeholder")
    with graph.inserting_after(last):
        rows = graph.call_function(torch.ops.aten.sym_size.int, (last, 0))
    for node, other in zip(nodes, others, strict=True):
        with graph.inserting_before(node):
            node.args = _merged(node.args, other.args, rows)
            node.kwargs = _merged(node.kwargs, other.kwargs, rows)
    return fx.GraphModule({}, graph)  # without the captured tensors


def _merged(one: Any, other: Any, rows: fx.Node) -> Any:
    """Replaces the values of an argument in two captures by an expression in the number of rows."""
    if isinstance(one, tuple | list) and isinstance(other, type(one)) and len(one) == len(other):
        return type(one)(_merged(*pair, rows) for pair in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return {name: _merged(one[name], other[name], rows) for name in one}
    if isinstance(one, fx.Node) and isinstance(other, fx.Node) and one.name == other.name:
        return one
    if type(one) is type(other) and one == other:
        return one
    if type(one) is int and type(other) is int:
        slope, rest = divmod(other - one, _SIZES[1] - _SIZES[0])
        if rest == 0:
            times = rows.graph.call_function(operator.mul, (rows, slope))
            return rows.graph.call_function(operator.add, (times, one - slope * _SIZES[0]))
    raise NotCaptured(
        f"an operation takes the argument {one} for {_SIZES[0]} rows, but {other} for {_SIZES[1]} "
        "rows"
    )


def _check(kind: Format, path: Path, function: _Function) -> None:
    """Compares the results of an exported file with those of the function that it was made from.

    They are compared for one row, for the given rows and for many rows.

    Raises:
        ValueError: If the results differ by more than rounding.
    """
    program = kind.load(path)
    for size in (1, len(next(iter(function.inputs.values()))), _MANY):
        rows = function.rows(size)
        for found, expected in zip(program(*rows), function.call(*rows), strict=True):
            largest = float(expected.nan_to_num(posinf=0.0, neginf=0.0).abs().amax())
            limit = _TOLERANCE.get(expected.dtype, 1e-2) * (1 + largest)
            if not torch.allclose(found.to(expected), expected, 0, limit, equal_nan=True):
                raise ValueError(
                    f"on a batch of {count_of(size, 'row')}, the exported file and the model give "
                    "different results"
                )


check_public(globals())
