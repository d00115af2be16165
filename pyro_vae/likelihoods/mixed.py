"""A likelihood for tables with columns of different kinds."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import constraints
from torch.func import functional_call

from .._types import Distribution, Size
from ..formatting import count_of, listed
from ..registry import arguments_of, is_registered, registered
from .base import Likelihood, Start, has_own_density
from .codes import Ordinal
from .real import LearnedSigma
from .special import Learned

_STACKED = (LearnedSigma, Learned, Ordinal)  # if of shape (), several can be stacked into one


class MixedFeatures(dist.TorchDistribution):
    """Independent distributions of columns of several kinds, of batch shape `(batch, columns)`.

    Arguments:
        parts: Distributions of groups of columns, each of shape `(batch, columns of the group)`.
        columns: For each group, the positions of its columns in the table.
    """

    # the parts check their own parameters
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, parts: Sequence[Distribution], columns: Sequence[Tensor]) -> None:
        self.parts, self.columns = tuple(parts), tuple(columns)
        self.order = torch.cat(self.columns).argsort()
        shape = torch.Size([*self.parts[0].batch_shape[:-1], len(self.order)])
        super().__init__(shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Returns the real line; `check` refuses values outside the support of their column."""
        return constraints.real

    def expand(self, batch_shape: Size, _instance: object = None) -> "MixedFeatures":
        """Returns the same distributions with more batch dimensions."""
        rows = tuple(batch_shape)[:-1]
        parts = [part.expand((*rows, part.batch_shape[-1])) for part in self.parts]
        return MixedFeatures(parts, self.columns)

    def joined(self, answers: list[Tensor]) -> Tensor:
        """Joins the tensors of all groups of columns, in the order of the table's columns."""
        return torch.cat(answers, dim=-1)[..., self.order]

    @property
    def mean(self) -> Tensor:
        """Returns the means of the columns."""
        return self.joined([part.mean for part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density of each column."""
        pairs = zip(self.parts, self.columns, strict=True)
        return self.joined([part.log_prob(value[..., columns]) for part, columns in pairs])

    def sample(self, sample_shape: Size = ()) -> Tensor:
        """Returns draws of all columns."""
        return self.joined([part.sample(sample_shape) for part in self.parts])


@registered()
class Mixed(Likelihood):
    r"""One likelihood per column, for tables of numbers, counts, shares and categories.

    .. math:: \log p(y \mid z) = \sum_d \log p_d(y_d \mid \eta_d(z))

    Data are one float tensor `(batch, columns)`; categories and counts are stored as floats, too.
    The decoder gives the parameters of the columns, one column after the other:
    `MLPDecoder(latent_dim, likelihood.output_shape((columns,)))`. If a further tensor of the
    batch is shaped like the data, each column's likelihood gets only the matching column of this
    tensor; otherwise it gets the whole tensor. Columns whose likelihoods have the same arguments
    are evaluated together, but each column has separate parameters.

    Arguments:
        likelihoods: The likelihoods, in the order of the columns: a mapping from the columns' names
            to likelihoods, or a sequence of likelihoods.
        names: Names of the columns, if the likelihoods are a sequence; by default "0", "1", ...

    Raises:
        ValueError: If there is no likelihood, if names and likelihoods differ in number, or if a
            name occurs twice.
        TypeError: If a column's likelihood is itself a Mixed, or models missingness.

    References:
        | Handling Incomplete Heterogeneous Data using VAEs (Nazabal et al., 2020)
        | https://arxiv.org/abs/1807.03653

    Example:
        >>> from pyro_vae.likelihoods import Bernoulli, Categorical, Gaussian
        >>> likelihood = Mixed({"age": Gaussian(), "sex": Bernoulli(), "grade": Categorical(3)})
        >>> likelihood.output_shape((3,))
        (5,)
        >>> likelihood(torch.zeros(1, 5)).log_prob(torch.zeros(1, 3))
        tensor([-2.7107])
    """

    placeholders: Tensor

    def __init__(
        self,
        likelihoods: Mapping[str, Likelihood] | Sequence[Likelihood],
        names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if isinstance(likelihoods, Mapping):
            names = tuple(likelihoods)
            likelihoods = tuple(likelihoods.values())
        self.names = tuple(names) or tuple(str(place) for place in range(len(likelihoods)))
        _check_columns(likelihoods, self.names)
        self.likelihoods = nn.ModuleList(likelihoods)
        fill = torch.tensor([likelihood.placeholder for likelihood in likelihoods])
        self.register_buffer("placeholders", fill, persistent=False)
        self._groups = _alike(likelihoods)
        for number, group in enumerate(self._groups):
            columns, places = _indices(likelihoods, group)
            self.register_buffer(f"columns_{number}", columns, persistent=False)
            self.register_buffer(f"places_{number}", places, persistent=False)

    @property
    def takes(self) -> int:  # type: ignore[override]
        """The largest number of tensors, besides the data, that any column's likelihood takes."""
        return max(likelihood.takes for likelihood in self)

    @property
    def any_units(self) -> bool:  # type: ignore[override]
        """Whether all columns may be in any unit; if not, the data must be standardized."""
        return all(likelihood.any_units for likelihood in self)

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """The number of decoder outputs for all columns together."""
        return sum(likelihood.outputs for likelihood in self)

    def __iter__(self) -> Iterator[Any]:
        """Iterates over the likelihoods, in the order of the columns."""
        return iter(self.likelihoods)

    def check_learned(self, shape: tuple[int, ...]) -> None:
        """Refuses learned parameters that are not scalars: each likelihood is for one column."""
        for likelihood in self:
            likelihood.check_learned((1,))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the decoder's output: one number per parameter of each column."""
        if shape != (len(self.names),):
            raise ValueError(
                f"for a Mixed with {listed('column', self.names)}, each datum must have shape "
                f"({len(self.names)},); got shape {shape}"
            )
        return (self.outputs,)

    def distribution(self, output: Tensor, *given: Tensor) -> MixedFeatures:
        """Returns the distributions of all columns, side by side."""
        return MixedFeatures(self._by_group("distribution", output, given), self._columns())

    def mean(
        self, output: Float[Tensor, "batch output"], *given: Tensor
    ) -> Float[Tensor, "batch columns"]:
        """Returns the mean of every column; for unordered categories, the most probable code."""
        means = torch.cat(self._by_group("mean", output, given), dim=1)
        return means[:, torch.cat(self._columns()).argsort()]

    def _columns(self) -> list[Tensor]:
        """Returns, for each group of equal likelihoods, the positions of the group's columns."""
        return [getattr(self, f"columns_{number}") for number in range(len(self._groups))]

    def _by_group(self, method: str, output: Tensor, given: tuple[Tensor, ...]) -> list[Any]:
        """Calls a method once per group of equal likelihoods, on the group's decoder outputs."""
        if output.shape[1:] != (self.outputs,):
            raise ValueError(
                f"for {count_of(len(self.names), 'column')}, the decoder must give "
                f"{count_of(self.outputs, 'number')} per row; got shape {tuple(output.shape)}: "
                "build the decoder with MLPDecoder(latent_dim, likelihood.output_shape((columns,)))"
            )
        answers = []
        for number, (group, columns) in enumerate(zip(self._groups, self._columns(), strict=True)):
            own = output[:, getattr(self, f"places_{number}")]
            more = [
                part[:, columns] if part.shape[1:] == (len(self.names),) else part for part in given
            ]
            answers.append(together([self.likelihoods[i] for i in group], method, own, *more))
        return answers

    def fill(self, output: Tensor) -> Tensor:
        """Returns the placeholder for missing entries of each column."""
        return self.placeholders.to(output)

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses wrong names or a wrong order of the columns, and values outside the support."""
        if names is not None and tuple(names) != self.names:
            raise ValueError(
                f"the columns must be {list(self.names)} in this order; got {list(names)}"
            )
        self.output_shape(tuple(y.shape[1:]))
        for group, columns in zip(self._groups, self._columns(), strict=True):
            only = torch.full_like(y, torch.nan)
            only[:, columns] = y[:, columns]  # other columns are nan: positions stay valid
            list(self)[group[0]].check(only, self.names)

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """Returns the initial decoder outputs for all columns, concatenated."""
        self.output_shape(tuple(y.shape[1:]))
        return torch.cat(
            [one.start(y[:, own], *more) for one, own, more in self._by_column(y, given)]
        )

    def start_units(
        self, y: Float[Tensor, "batch *datum"], spread: Float[Tensor, "*datum"], *given: Tensor
    ) -> Start:
        """Returns the initial decoder outputs and their units for all columns, concatenated."""
        starts, units = [], []
        for likelihood, own, more in self._by_column(y, given):
            start = likelihood.start_units(y[:, own], spread[own], *more)
            starts.append(start.output)
            units.append(torch.ones_like(start.output) if start.unit is None else start.unit)
        return Start(torch.cat(starts), torch.cat(units))

    def warn_of_floor(self, spread: Float[Tensor, "*datum"], names: Sequence[str] = ()) -> None:
        """Warns if the floor of a column's sigma is above the spread of the column."""
        for place, likelihood in enumerate(self):
            likelihood.warn_of_floor(spread[place : place + 1], self.names[place : place + 1])

    def _by_column(
        self, y: Tensor, given: tuple[Tensor, ...]
    ) -> Iterator[tuple[Likelihood, slice, list[Tensor]]]:
        """Yields each column's likelihood, its position, and its part of the further tensors."""
        for place, likelihood in enumerate(self):
            own = slice(place, place + 1)
            yield likelihood, own, [p[:, own] if p.shape == y.shape else p for p in given]

    def start_noise(self, sd: Float[Tensor, "*datum"], y: Float[Tensor, "batch *datum"]) -> None:
        """Sets the learned noise of every column."""
        for place, likelihood in enumerate(self):
            likelihood.start_noise(sd[place : place + 1], y[:, place : place + 1])


def _check_columns(likelihoods: Sequence[Likelihood], names: tuple[str, ...]) -> None:
    if not likelihoods or len(names) != len(likelihoods) or len(set(names)) < len(names):
        raise ValueError(
            "a Mixed must have one likelihood for each column, and distinct column names; got "
            f"{count_of(len(likelihoods), 'likelihood')} for the columns {list(names)}"
        )
    for name, likelihood in zip(names, likelihoods, strict=True):
        if has_own_density(likelihood):
            raise TypeError(
                f"column '{name}' must have a likelihood that does not model which entries are "
                f"missing; got {type(likelihood).__name__}: use a likelihood such as Gaussian() "
                "for the column, and wrap the Mixed, as in SelfMasking(Mixed(...), (columns,))"
            )
        if isinstance(likelihood, Mixed):
            raise TypeError(
                f"column '{name}' must have a likelihood for a single column; got a Mixed: use a "
                "likelihood such as Gaussian()"
            )


def _alike(likelihoods: Sequence[Likelihood]) -> list[list[int]]:
    """Returns groups of columns whose likelihoods have the same class and the same arguments."""
    groups: dict[object, list[int]] = {}
    for place, likelihood in enumerate(likelihoods):
        groups.setdefault(_key(likelihood, place), []).append(place)
    return list(groups.values())


def _key(likelihood: Likelihood, place: int) -> object:
    """Returns a key that is equal for likelihoods that can be evaluated together.

    The key is the class and the arguments. If the arguments are unknown, or if the parameters and
    buffers cannot be stacked, the key is the column's `place`, which no other column has.
    """
    kind = type(likelihood)
    has_known_arguments = kind.__init__ is Likelihood.__init__ or is_registered(kind)
    owners = [part for part in likelihood.modules() if [*part.parameters(recurse=False)]]
    stacks = all(isinstance(part, _STACKED) and part.shape == () for part in owners)
    if not (has_known_arguments and stacks) or [*likelihood.buffers()]:
        return place
    return _class_and_arguments(likelihood)


def together(likelihoods: list[Any], method: str, *args: Tensor) -> Any:
    """Calls a method once for the columns of several likelihoods of one class.

    The likelihoods' parameters are stacked, one per column, as if one likelihood had the shape of
    all these columns.
    """
    first, *others = (
        dict([*likelihood.named_parameters(), *likelihood.named_buffers()])
        for likelihood in likelihoods
    )
    if not others or not first:
        return getattr(likelihoods[0], method)(*args)
    stacked = {
        f"likelihood.{name}": torch.stack([value, *(other[name] for other in others)])
        for name, value in first.items()
    }
    return functional_call(_Call(likelihoods[0], method), stacked, args)


class _Call(nn.Module):
    """A module for `functional_call`; its `forward` calls a method of a likelihood."""

    def __init__(self, likelihood: nn.Module, method: str) -> None:
        super().__init__()
        self.likelihood, self.method = likelihood, method

    def forward(self, *args: Tensor) -> Any:
        """Calls the method of the likelihood with the given arguments."""
        return getattr(self.likelihood, self.method)(*args)


def _class_and_arguments(value: object) -> object:
    """Returns the class and the arguments of a module; any other value is returned unchanged.

    Arguments that are modules are converted in the same way.
    """
    if not isinstance(value, nn.Module):
        return value
    arguments = arguments_of(value) if is_registered(type(value)) else {}
    return type(value), *((name, _class_and_arguments(part)) for name, part in arguments.items())


def _indices(likelihoods: Sequence[Likelihood], group: list[int]) -> tuple[Tensor, Tensor]:
    """Returns where a group's columns are in the data, and where their decoder outputs are.

    The positions of the outputs are in the order in which a likelihood of these columns expects
    them: the first number of every column, then the second number of every column, and so on.
    """
    ends = torch.tensor([likelihood.outputs for likelihood in likelihoods]).cumsum(dim=0)
    outputs = likelihoods[group[0]].outputs
    columns = torch.tensor(group)
    first = ends[columns] - outputs
    return columns, (first + torch.arange(outputs)[:, None]).flatten()
