"""Runs of programs, with typed access to Pyro's traces; no other module makes traces.

A program is run on rows that are repeated once per particle; values of some sites may be given. The
program's plate over data holds exactly these rows. Outer handlers see only the parameters that the
program registers, and the result lists the sites that carry a density.
"""

import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _ENUM_ALLOCATOR
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from .._types import Batch, Distribution, ProgramLike
from .edges import AtEdges, log_prob_at, recorded
from .log_probs import log_prob_of
from .masks import as_written, base_of, entry_mask, is_masked, unmasked
from .plates import whole_plate

_Answer = TypeVar("_Answer")


def repeat_rows(batch: Batch, num_particles: int) -> Batch:
    """Repeats a batch for each particle: from `(batch, ...)` to `(particles * batch, ...)`."""
    return tuple(
        part.expand(num_particles, *part.shape).reshape(-1, *part.shape[1:]) for part in batch
    )


def sum_but(tensor: Tensor, axis: int) -> Tensor:
    """Adds up a tensor over all dimensions except `axis`, which is counted from the left."""
    others = [dim for dim in range(tensor.dim()) if dim != axis]
    return tensor.sum(dim=others) if others else tensor


@dataclass(frozen=True)
class TracedSite:
    """One site of a run that carries a density.

    Arguments:
        node: The site's node in Pyro's trace.
    """

    node: Any

    @property
    def name(self) -> str:
        """Name of the site in the program."""
        return self.node["name"]

    @property
    def distribution(self) -> Distribution:
        """The distribution that the value was drawn from or observed under."""
        return self.node["fn"]

    @property
    def value(self) -> Tensor:
        """Value of the site, drawn or given."""
        return self.node["value"]

    @property
    def is_observed(self) -> bool:
        """Whether the value was given, by the program or by a handler."""
        return bool(self.node["is_observed"])

    @property
    def is_auxiliary(self) -> bool:
        """Whether a guide marks the site as auxiliary, that is, as a site that the model lacks."""
        return bool(self.node["infer"].get("is_auxiliary", False))

    @property
    def is_discrete(self) -> bool:
        """Whether the support of the site's distribution is discrete."""
        support = self.distribution.support
        return support is not None and bool(support.is_discrete)

    @property
    def scale(self) -> float | Tensor:
        """Factor by which handlers scale the log density; `log_prob` does not include it."""
        return self.node["scale"]

    @property
    def mask(self) -> bool | Tensor | None:
        """The mask that Pyro's handlers set for the site."""
        return self.node["mask"]

    @property
    def is_masked(self) -> bool:
        """Whether the site is masked, by a handler or by its distribution."""
        by_handler = isinstance(self.mask, Tensor) or self.mask is False
        return by_handler or is_masked(self.distribution)

    @property
    def entry_mask(self) -> Tensor | None:
        """Mask that is true for the entries that count, as in Pyro; `None` if nothing is masked."""
        return entry_mask(*as_written(self.node), self.value)

    @property
    def kept(self) -> Tensor:
        """Log density of the entries that the program's masks keep."""
        function, mask = as_written(self.node)
        return scale_and_mask(self._log_prob_under(function), 1.0, mask)

    @property
    def left_out(self) -> Tensor:
        """Log density of the entries that the program's masks leave out."""
        return self._log_prob_under(unmasked(as_written(self.node)[0])) - self.kept

    @property
    def frames(self) -> tuple[CondIndepStackFrame, ...]:
        """The plates around the site, as Pyro's frames."""
        return tuple(self.node["cond_indep_stack"])

    @property
    def log_prob(self) -> Tensor:
        """Log density of the site, with masks, but without the scales of plates and handlers."""
        return scale_and_mask(self._log_prob_under(self.distribution), 1.0, self.mask)

    @property
    def whole_log_prob(self) -> Tensor:
        """Log density of the site, without any mask."""
        return self._log_prob_under(unmasked(self.distribution))

    @property
    def unconstrained(self) -> Tensor | None:
        """The unconstrained value that the run recorded; `None` if it recorded none.

        A recorded value is more accurate than one computed from the site's value.
        """
        found = recorded(self.node)
        return None if found is None else found[0]

    @property
    def is_known_at_edges(self) -> bool:
        """Whether the density is exact even if the value rounds to an edge of the support."""
        found = recorded(self.node)
        return found is not None and log_prob_at(self.distribution, *found) is not None

    def _log_prob_under(self, distribution: Distribution) -> Tensor:
        """Log density of the value under the site's distribution, with or without its masks.

        The density is computed from the recorded unconstrained value if a formula is known.
        """
        found = recorded(self.node)
        log_prob = None if found is None else log_prob_at(distribution, *found)
        if log_prob is not None:
            return log_prob
        args, kwargs = self.node["args"], self.node["kwargs"]
        try:
            return log_prob_of(distribution, self.value, *args, **kwargs)
        except ValueError as error:
            _refuse_value(str(error), self.name, error)
            raise

    def is_in(self, plate: str) -> bool:
        """Whether the site is in the plate called `plate`."""
        return any(frame.name == plate for frame in self.frames)

    def log_prob_by_datum(self, plate_dim: int) -> Tensor:
        """Log density of the site for every row, `(rows,)`: a sum over all other dimensions.

        The site must be in the plate over data; the caller checks this.
        """
        log_prob = self.log_prob
        return sum_but(log_prob, log_prob.dim() + plate_dim)

    def value_by_datum(self, plate_dim: int) -> Tensor:
        """The site's value, with the datum axis moved to the left."""
        shape = torch.broadcast_shapes(self.value.shape, self.node["fn"].shape())
        axis = len(shape) - self.node["fn"].event_dim + plate_dim
        return self.value.expand(shape).movedim(axis, 0)


@dataclass(frozen=True)
class Run:
    """The sites of one run that carry a density.

    Subsamples of plates and deterministic sites are left out.

    Arguments:
        trace: Pyro's trace of the run.
        plate: Name of the plate over data.
    """

    trace: Trace
    plate: str = ""
    sites: dict[str, TracedSite] = field(init=False)

    def __post_init__(self) -> None:
        nodes = self.trace.nodes.items()
        sites = {name: TracedSite(node) for name, node in nodes if _is_density(node)}
        object.__setattr__(self, "sites", sites)

    def __contains__(self, name: str) -> bool:
        """Whether the run has a site called `name`."""
        return name in self.sites

    def __getitem__(self, name: str) -> TracedSite:
        """Returns the site called `name`.

        Raises:
            ValueError: If the run has no such site.
        """
        if name not in self.sites:
            raise ValueError(
                f"site '{name}' must be in every run of the program; got a run with the sites "
                f"{list(self.sites)}: sample every site for every datum and every draw; for "
                "example, loop over range(y.shape[1]), not up to the length of the longest series "
                "in the batch"
            )
        return self.sites[name]

    @property
    def inside(self) -> dict[str, TracedSite]:
        """The sites of a datum, which are in the plate over data, by name."""
        return {name: site for name, site in self.sites.items() if site.is_in(self.plate)}

    @property
    def outside(self) -> dict[str, TracedSite]:
        """The sites that all data share, which are outside the plate over data, by name."""
        return {name: site for name, site in self.sites.items() if not site.is_in(self.plate)}

    @property
    def deterministic(self) -> dict[str, Tensor]:
        """Values of the deterministic sites in the plate over data, by name."""
        sites = map(TracedSite, filter(_is_deterministic, self.trace.nodes.values()))
        return {site.name: site.value for site in sites if site.is_in(self.plate)}

    @property
    def unconstrained(self) -> dict[str, Tensor]:
        """The unconstrained values that the run recorded, by site name."""
        pairs = ((name, site.unconstrained) for name, site in self.sites.items())
        return {name: u for name, u in pairs if u is not None}

    def values(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Returns the values of the named sites, by name."""
        return {name: self[name].value for name in names}


def _is_density(node: Any) -> bool:
    """Whether a node of a trace carries a density; false for subsamples and deterministic sites."""
    return (
        node["type"] == "sample"
        and not poutine.util.site_is_subsample(node)
        and not _is_deterministic(node)
    )


def _is_deterministic(node: Any) -> bool:
    return node["type"] == "sample" and bool(node["infer"].get("_deterministic", False))


def total_log_prob(sites: Iterable[TracedSite], zero: Tensor) -> Tensor:
    """Adds up log densities of sites to a scalar; `zero`, a scalar tensor 0, sets the dtype."""
    return sum((site.log_prob.sum() for site in sites), zero)


def run(
    program: ProgramLike,
    batch: Batch,
    values: Mapping[str, Tensor] | None = None,
    plate: str = "",
    edges: AtEdges | None = None,
) -> Run:
    """Runs a program without changing its plates; values of some sites may be given.

    Arguments:
        program: A model or a guide, possibly wrapped in handlers.
        batch: The arguments of the call.
        values: Values of some sites, by name; these sites then count as observed.
        plate: Name of the plate over data, if it is known.
        edges: Handler that records and draws unconstrained values.
    """
    with own_messages(), poutine.block(expose_types=["param"]), _own_dimensions():
        conditioned = poutine.condition(program, data=dict(values or {}))
        trace = poutine.trace(conditioned if edges is None else edges(conditioned))
        return Run(trace.get_trace(*batch), plate)


@contextmanager
def own_messages() -> Iterator[None]:
    """Removes the table of shapes that Pyro appends to the messages of pyro_vae's errors.

    If a distribution refuses a parameter or a value, our message replaces torch's message. If a
    site does not fit its plate, our message replaces Pyro's.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        cause: BaseException = error
        while "Trace Shapes:" in str(cause) and cause.__cause__ is not None:
            cause = cause.__cause__
        frames = list(traceback.walk_tb(cause.__traceback__))
        if refused := re.match(_REFUSED, str(cause), re.DOTALL):
            raise ValueError(_REFUSAL.format(**refused.groupdict())) from error
        if unlike := re.match(_APART, str(error), re.DOTALL):
            raise ValueError(_UNLIKE.format(unlike["name"] or unlike["other"])) from error
        if mismatch := re.match(_MISMATCH, str(cause)):
            raise ValueError(_OTHER_SIZE.format(**mismatch.groupdict())) from error
        if str(cause).startswith("Inhomogeneous total count"):  # a Binomial of data with own counts
            raise ValueError(f"a discrete latent site {SAME_VALUES}") from error
        if site := re.match(_AT_SITE, str(error)):
            _refuse_value(str(cause), site["name"], error)
        if cause is error or not frames or not _is_ours(frames[-1][0]):
            raise
        raise cause from None


# Torch's message about an invalid parameter of a distribution, and ours.
_REFUSED = (
    r"Expected parameter (?P<name>\w+) \(.*?\) of distribution (?P<kind>\w+).* to satisfy the "
    r"constraint (?P<range>.+?), but found invalid values:\n(?P<values>[^\n]*)"
)
_REFUSAL = (
    "the parameter {name} of a {kind} distribution in the program must satisfy {range}; got "
    "{values}...: let the decoder return finite numbers in that range (use softplus for positive "
    "numbers), and check the decoder's weights for nan"
)

# Pyro's message about a site that does not have the size of its plate, and ours.
_MISMATCH = (
    r"Shape mismatch inside plate\('(?P<plate>.*?)'\) at site (?P<name>.*?) dim (?P<dim>-\d+), "
    r"(?P<size>\d+) vs (?P<got>\d+)"
)
_OTHER_SIZE = (
    "site '{name}' must have the size of plate '{plate}' in dimension {dim}, which is {size}; got "
    "{got}: if this dimension belongs to one datum, make it part of an event, as in "
    ".to_event(1); if it belongs to the plate over data, give this plate the size of the batch, as "
    "in pyro.plate('data', len(y))"
)

# Pyro's messages about a site whose shape in a guide is not the one in the model, and ours.
_APART = (
    r"Model and guide shapes disagree at site '(?P<name>[^']+)'"
    r"|.*at site \"(?P<other>[^\"]+)\", invalid log_prob shape"
)
_UNLIKE = (
    "site '{}' must have the same plates and event dimensions in guide and model: open the plate "
    "over data in the guide, too, with the model's `dim`, and use .to_event as in the model"
)
SAME_VALUES = (
    "must have the same possible values for all data: sample it from a dist.Categorical with the "
    "same number of categories for every datum, and with logits of -inf for values that a datum "
    "cannot have"
)
_AT_SITE = r"Error while computing log_prob at site '(?P<name>[^']+)'"
_OUTSIDE = (
    r".*Expected value argument \(.*?\) to be within the support \((?P<range>.+?)\) of the "
    r"distribution (?P<kind>\w+)\(.*but found invalid values:\n(?P<values>[^\n]*)"
)
_MOST_VALUES = 60  # characters that a message quotes of a site's values


class OutsideSupportError(ValueError):
    """Raised if a site's value is not nan, but lies outside the support of its distribution."""


def _refuse_value(message: str, site: str, error: Exception) -> None:
    """Raises an error that names the site, if torch refused a value outside the support."""
    if refused := re.match(_OUTSIDE, message, re.DOTALL):
        values = refused["values"]
        short = values if len(values) <= _MOST_VALUES else f"{values[:_MOST_VALUES]}..."
        support = f"support of its {refused['kind']} distribution, {refused['range']}"
        if "nan" in values:
            raise ValueError(
                f"site '{site}' must have values in the {support}; got {short}: write "
                "the program so that it computes no nan, even if it is called with a single row or "
                "with equal rows"
            ) from error
        raise OutsideSupportError(
            f"site '{site}' must have values in the {support}; got {short}: transform "
            "these values, or use a distribution whose support contains them"
        ) from error


def _is_ours(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]


@contextmanager
def _own_dimensions() -> Iterator[None]:
    """Restores Pyro's global table of enumeration dimensions at the end of the block.

    A handler outside the block may need the table as it was before.
    """
    before = dict(vars(_ENUM_ALLOCATOR))
    try:
        yield
    finally:
        vars(_ENUM_ALLOCATOR).clear()
        vars(_ENUM_ALLOCATOR).update(before)


def run_rows(
    program: ProgramLike,
    batch: Batch,
    plate: str,
    values: Mapping[str, Tensor] | None,
    edges: AtEdges | None,
) -> Run:
    """Runs a program, and makes its plate over data hold all rows of the batch."""
    with whole_plate(len(batch[0]), plate):
        return run(program, batch, values, plate, edges)


class Unobserved(Messenger):
    """Handler that draws the named sites, even those that the program observes."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = frozenset(names)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg.update(is_observed=False, value=None, done=False)


class Determined(Messenger):
    """Handler that makes the `Delta` sites of a model deterministic.

    The value of a `Delta` site follows from other sites. Without this handler the site would count
    as latent, with the density of a point mass. Pyro's reparameterizations replace a latent site by
    a `Delta` that observes its own value; without this handler such a site would count as data.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get("_deterministic") or poutine.util.site_is_subsample(msg):
            return
        point, value = base_of(msg["fn"]), msg["value"]
        if not isinstance(point, Delta) or value is not (point.v if msg["is_observed"] else None):
            return
        if not _has_density(msg["fn"], point):
            self.names.add(msg["name"])
            msg["infer"] = {**msg["infer"], "_deterministic": True}
            msg.update(value=msg["fn"]() if value is None else value, is_observed=True)


def _has_density(function: Distribution, point: Delta) -> bool:
    """Whether a site with a `Delta` has a log density other than zero."""
    if isinstance(function, MaskedDistribution) and function._mask is False:  # noqa: SLF001
        return False  # a site that pyro.infer.reparam has made
    return bool(point.log_density.any())


def retry_unvalidated(call: Callable[[], _Answer]) -> _Answer:
    """Calls a function; if it raises a ValueError, calls it again without Pyro's validation.

    The second call only tells why the first call failed. If its result contains nan or +inf, this
    result is returned, so that the caller can report the site at fault. Otherwise the error of
    the first call is raised.
    """
    try:
        return call()
    except OutsideSupportError:
        raise  # the message names the site
    except ValueError:
        with pyro.validation_enabled(is_validate=False):
            answer = call()
        if _is_numbers(answer):
            raise  # refused for another reason, such as data outside the support
        return answer


def _is_numbers(answer: Any) -> bool:
    """Whether a tensor, or a sequence of tensors, has neither nan nor +inf among its entries."""
    if isinstance(answer, Tensor):
        return not bool((answer.isnan() | answer.isposinf()).any())
    return isinstance(answer, tuple | list) and all(map(_is_numbers, answer))


def leaves_of(loss: Tensor) -> dict[Tensor, None]:
    """Lists the trainable leaf tensors that a loss depends on, in the order of its graph."""
    found: dict[Tensor, None] = {}
    seen, stack = set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[node.variable] = None
        stack.extend(parent for parent, _ in node.next_functions)
    return found
