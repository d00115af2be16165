r"""The degree of a program's log joint as a polynomial in the latents of a datum.

A density that agrees with a quadratic at a million points may still have a spike between these
points. So the degree is read from the operations of a run, and not from values of the density. A
linear operation keeps the degree of its arguments, a product adds the degrees of its factors, and
any other operation on a latent gives no polynomial,

.. math:: \deg(a x + b y) = \max(\deg x, \deg y), \qquad \deg(x y) = \deg x + \deg y, \qquad
    \deg x^n = n \deg x .

The result is an upper bound, since terms that cancel still count. Degrees are recorded per storage,
so that views and writes into a part of a tensor are followed as well.
"""

import math
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .._types import Batch
from .modes import evaluating
from .program import Program

# Operations by what they do to degrees.
_KINDS = {
    "linear": """
        _neg_view _reshape_alias _to_copy _unsafe_view add alias as_strided cat clone
        constant_pad_nd contiguous copy copy_ cumsum detach diag_embed diagonal diagonal_copy expand
        fill flip lift lift_fresh mean movedim narrow neg permute positive repeat reshape roll rsub
        select select_scatter slice slice_scatter split split_with_sizes squeeze stack sub sum t
        transpose tril triu unbind unfold unsafe_split unsqueeze view""",
    "choice": """
        gather index index_add index_copy index_put index_select masked_fill masked_scatter
        masked_select scatter scatter_add take where""",
    "product": "bmm dot ger linear matmul mm mul mv outer",
    "sum of products": "addbmm addcmul addmm addmv addr baddbmm",
    "constant": """
        empty_like full_like new_empty new_full new_ones new_zeros ones_like rand_like
        randn_like size sym_size zero zeros_like""",
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names.split()}


class _Degrees(TorchDispatchMode):
    """Follows the degree of every tensor, as a polynomial in the latents, through a run.

    `why` is the name of the first operation whose result is not a polynomial.
    """

    def __init__(self, variable: Tensor) -> None:
        super().__init__()
        self.why = ""
        self._degrees: dict[int, float] = {}
        self._kept: list[Tensor] = []  # kept alive, so that no storage is reused
        self._note(variable, 1.0)

    def of(self, value: Any) -> float:
        """Degree of an operation's argument as a polynomial in the latents; 0 for a constant."""
        return max((self._degrees.get(_storage(t), 0.0) for t in _tensors(value)), default=0.0)

    def _note(self, tensor: Tensor, degree: float) -> None:
        """Records a degree for the storage of a tensor; the highest degree counts."""
        place = _storage(tensor)
        self._degrees[place] = max(degree, self._degrees.get(place, 0.0))
        self._kept.append(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs an operation, and records the degree of each tensor that it returns or writes to."""
        kwargs = kwargs or {}
        degree = self._degree(func, args, kwargs) if self.of((args, kwargs)) > 0 else 0.0
        made = func(*args, **kwargs)
        results = list(_tensors(made))
        if degree > 0 and not all(tensor.is_floating_point() for tensor in results):
            degree = math.inf  # a conversion to integers rounds
        if degree == math.inf:
            self.why = self.why or _name_of(func)
            if not results:  # a number, which may decide which operations follow
                results = [self._kept[0]]
        if degree > 0:
            for tensor in results:
                self._note(tensor, degree)
        return made

    def _degree(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> float:
        """Degree of an operation's result; infinite if the result is not a polynomial."""
        name = _name_of(func).removesuffix("_")
        kind = _KIND_OF.get(name, "")
        of = [self.of(arg) for arg in args]
        rest = self.of(list(kwargs.values()))
        if rest > 0 or kwargs.get("rounding_mode") is not None:
            return math.inf
        if kind == "constant":
            return 0.0
        if kind == "linear":
            return max(of)
        if kind == "choice":  # linear if masks and indices do not depend on the latents
            return _if_constant(_choice(name, args), self) or max(of)
        if kind == "product":
            return sum(of)
        if kind == "sum of products":
            return max(of[0], sum(of[1:]))
        return self._of_arithmetic(name, args, of)

    def _of_arithmetic(self, name: str, args: tuple[Any, ...], of: list[float]) -> float:
        """Degree of the result of a quotient, power, triangular solve or layer; else infinite."""
        if name == "div" and of[1] == 0 and len(args) == 2:
            return of[0]
        if name == "pow" and _is_power(args[1]):
            return float(of[0] * args[1])
        if name == "linalg_solve_triangular" and of[0] == 0:
            return of[1]
        if name == "convolution":
            return max(of[0] + of[1], of[2])
        if name == "native_batch_norm" and not args[5]:
            return _if_constant(args[3:5], self) or max(of[0] + of[1], of[2])
        return math.inf


def _name_of(operation: Any) -> str:
    """Short name of one of torch's operations, for example `add` for `aten.add.Tensor`."""
    return str(operation).removeprefix("aten.").partition(".")[0]


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # noqa: SLF001


def _choice(name: str, args: tuple[Any, ...]) -> list[Any]:
    """Selects the masks and indices among the arguments of an indexing or masking operation."""
    if name == "where":
        return [args[0]]
    return [tensor for tensor in _tensors(args[1:]) if not tensor.is_floating_point()]


def _if_constant(arguments: Any, degrees: _Degrees) -> float:
    """Returns degree 0 if no argument depends on the latents; otherwise infinity."""
    return math.inf if degrees.of(list(arguments)) > 0 else 0.0


def _is_power(exponent: Any) -> bool:
    return isinstance(exponent, int | float) and exponent >= 0 and exponent == int(exponent)


def degree_of(program: Program, batch: Batch) -> tuple[float, str]:
    r"""The degree of :math:`\log p(y_n, z)` as a polynomial in the flat latents z.

    Arguments:
        program: The model, with the values of its shared latents given.
        batch: The data; the program is run once, on all rows.

    Returns:
        An upper bound on the degree, and the name of the operation that makes the bound infinite
        (empty if it is finite). The bound is infinite if the log joint is not a polynomial, or if a
        value decides which operations are run.

    Example:
        >>> import pyro
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z.exp(), 1.0), obs=y)
        >>> degree_of(Program(model, torch.zeros(1)), (torch.zeros(2),))
        (inf, 'exp')
    """
    shape = (1, len(batch[0]), program.latent_dim)
    z = torch.zeros(shape, dtype=program.dtype, device=program.device)
    degrees = _Degrees(z)
    with evaluating(program.model), torch.no_grad(), pyro.validation_enabled(is_validate=False):
        with degrees:
            log_joint = program.log_joint(z, *batch)
        return max(degrees.of(log_joint), math.inf if degrees.why else 0.0), degrees.why
