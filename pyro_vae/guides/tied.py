r"""Guides written by hand that are tied to rows: their detection, and their posteriors.

Usually :math:`q(z_n)` depends on the content of row n alone. A free `pyro.param` for every row, or
a mean over the batch, makes this posterior depend on the row's position or on other rows. Such
guides are detected by trial calls: on a few rows, on these rows in reverse order followed by the
rows in order, and on one of the rows alone. A row has the same latents in all calls, and the sites
outside the plate over data have the same values. If the guide is not tied to rows, a row's log
density of every site is then the same in all calls, and so is the gradient of a weighted sum of
these densities. The gradient reveals per-row parameters even if they are equal for all rows. A
guide that is tied to rows is evaluated on all of its rows together, and on no others.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import pyro
import torch
from jaxtyping import Float, Int64
from pyro.infer.autoguide import AutoDiagonalNormal, AutoGuide, AutoMessenger, AutoNormal
from torch import Tensor
from torch.distributions import TransformedDistribution, constraints

from .._types import Batch, ProgramLike
from ..formatting import count_of
from ..programs import GlobalSite, LatentSite, Program, Run, TracedSite
from ..programs.copies import no_new_parameters
from ..programs.edges import entry_of
from ..programs.masks import base_of, unmasked
from ..programs.modes import modules_of
from ..programs.pieces import take_rows
from ..programs.plates import current_minibatch, outside_minibatch
from ..programs.traces import leaves_of
from ..randomness import forked
from ..results import join
from .contract import density_sites, is_delta, log_density
from .families import DiagonalNormal
from .posteriors import FamilyPosterior, Posterior, ProgramPosterior, SitesPosterior, rows_of

_FEW = 3  # rows; in reverse order two of them move, and one does not
_TOLERANCE = 1e-2  # relative; above float32 rounding, below the effect of another row's parameters
_MOST_ROWS = 10**6  # parameters with more rows are not tried

REMEDY = (
    "for other data use pv.Guide(model, pv.LocalParameters(num_data)), whose method fit_rows(y) "
    "fits parameters to new rows, or an amortized guide, pv.Guide(model, pv.Encoder(net))"
)


def program_posterior(
    program: Program, guide: ProgramLike, batch: Batch
) -> "ProgramPosterior | SitesPosterior | RepeatedCalls":
    """The posterior of a guide written by hand; checks whether the guide is tied to rows.

    Raises:
        ValueError: If the guide is tied to rows, and the batch does not consist of all these rows;
            the message has the remedy.
    """
    every, rows = _all_rows(batch)
    site = tied_site(program, guide, every)
    if site is None:
        return ProgramPosterior(program, guide, batch)
    return _tied_posterior(program, guide, every, site).rows(rows)


def _all_rows(batch: Batch) -> tuple[Batch, Tensor | slice]:
    """Extends a minibatch to the length of the data set, for a guide that is tied to all rows.

    Returns the longer batch, and the positions of the minibatch's rows in it. All other rows are
    copies of the minibatch's first row, and have no effect. Outside a minibatch, the batch is
    returned unchanged.
    """
    current = current_minibatch()
    if current is None or len(current.rows) != len(batch[0]):
        return batch, slice(None)
    places = torch.zeros(current.num_data, dtype=torch.int64, device="cpu")
    places[current.rows.cpu()] = torch.arange(len(current.rows), device="cpu")
    return take_rows(batch, places), current.rows


def _tied_posterior(
    program: Program, guide: ProgramLike, batch: Batch, site: str
) -> "SitesPosterior | RepeatedCalls":
    """The posterior of all rows under a guide that is tied to these rows."""
    num_data = len(batch[0])
    one_more = torch.arange(num_data + 1, device="cpu") % num_data
    if not can_be_run(program, guide, batch):
        _refuse_other_number(program, guide, batch)
    elif can_be_run(program, guide, take_rows(batch, one_more)):
        raise ValueError(
            f"q of site '{site}' in the guide depends on a row's position in the batch or on other "
            f"rows. The guide also accepts more than {count_of(num_data, 'row')}, so it is unknown "
            "which q belongs to which datum: if the guide has parameters for each row of a data "
            f"set, pass all rows of this data set; {REMEDY}"
        )
    runs = [ProgramPosterior(program, guide, batch).run(1) for _ in range(2)]
    every = torch.arange(num_data, device="cpu")
    return _independent(program, *runs) or RepeatedCalls(program, guide, batch, every)


def automatic_posterior(program: Program, guide: AutoGuide, num_data: int) -> FamilyPosterior:
    """The posterior of Pyro's mean-field automatic guides: normals with free parameters per row.

    Raises:
        TypeError: If the guide is an automatic guide of another kind, or was never called.
        ValueError: If the guide lacks a latent site of the model, or has parameters for more or
            fewer rows than `num_data`.
    """
    moments = _moments(program, guide)
    parts = []
    for values in zip(*(moments[site.name] for site in program.latent_sites), strict=True):
        flat = [
            value.movedim(site.axis, 0).reshape(value.shape[site.axis], -1)
            for site, value in zip(program.latent_sites, values, strict=True)
        ]
        parts.append(torch.cat(flat, dim=-1))
    loc, scale = parts
    posterior = FamilyPosterior(DiagonalNormal(), torch.cat([loc, scale.log()], dim=-1))
    current = current_minibatch()
    if current is not None and current.num_data == len(loc) and len(current.rows) == num_data:
        return posterior.rows(current.rows.to(loc.device))
    if len(loc) != num_data:
        raise ValueError(
            f"{type(guide).__name__} is tied to {count_of(len(loc), 'training row')}, but the "
            f"batch has {count_of(num_data, 'row')}: {REMEDY}"
        )
    return posterior


def automatic_globals(program: Program, guide: AutoGuide) -> Float[Tensor, " size"]:
    """Mean of the global sites' flat unconstrained vector under an automatic guide."""
    moments = _moments(program, guide)
    return torch.cat([moments[site.name][0].flatten() for site in program.global_sites])


def is_uncalled(guide: ProgramLike) -> bool:
    """Whether an automatic guide has no parameters yet, because its first call creates them."""
    if isinstance(guide, AutoMessenger):
        return next(guide.parameters(), None) is None
    return isinstance(guide, AutoGuide) and guide.prototype_trace is None


def require_called(guide: ProgramLike) -> None:
    """Refuses a guide without parameters: a trial call would create them for too few rows."""
    if is_uncalled(guide):
        raise TypeError(
            f"{type(guide).__name__} has no parameters before its first call: train this guide "
            "first, with pv.fit or pyro.infer.SVI, on all training rows"
        )


def _moments(program: Program, guide: AutoGuide) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation of each site's unconstrained value under an automatic guide."""
    name = type(guide).__name__
    if type(guide) not in (AutoNormal, AutoDiagonalNormal):
        raise TypeError(
            f"the density of a single row's latents under {name} is unknown: use AutoNormal, "
            "AutoDiagonalNormal, or pv.Guide(model, pv.LocalParameters(num_data)) with a family of "
            "your choice"
        )
    require_called(guide)
    trace = guide.prototype_trace
    assert trace is not None  # the guide was called
    sites: list[LatentSite | GlobalSite] = [*program.latent_sites, *program.global_sites]
    lacking = [site.name for site in sites if site.name not in trace.nodes]
    if lacking:
        raise ValueError(
            f"the guide must sample every latent site of the model, but this {name} lacks "
            f"{lacking}: build it from the whole model, as in {name}(model)"
        )
    for site in sites:
        supports = (trace.nodes[site.name]["fn"].support, site.support)
        theirs, ours = (entry_of(support) is constraints.real for support in supports)
        if theirs != ours:
            raise TypeError(
                f"{name} draws site '{site.name}' from a normal on the whole real line, but the "
                f"support of this site is {site.support}: use pv.Guide(model, map), whose draws "
                "stay inside the support"
            )
    if isinstance(guide, AutoDiagonalNormal):
        unpack = guide._unpack_latent  # noqa: SLF001 (Pyro has no other way to one site's part)
        pairs = (unpack(part) for part in (guide.loc, guide.scale))
        return {site["name"]: (loc, scale) for (site, loc), (_, scale) in zip(*pairs, strict=True)}
    names = [name for name, _ in trace.iter_stochastic_nodes()]
    moments = guide._get_loc_and_scale  # noqa: SLF001 (names may have dots, which it resolves)
    return {name: moments(name) for name in names}


def tied_site(program: Program, guide: ProgramLike, batch: Batch) -> str | None:
    """Name of a site whose q(z_n) depends on more than the content of row n.

    `None` if there is no such site. Also `None` if the guide fails on these rows for a reason that
    is not listed below; the next call of the guide then raises the error.

    Raises:
        ValueError: If the guide can only be run on another number of rows, or draws random values
            that belong to none of its sites.
        TypeError: If the guide has no parameters yet, because its first call creates them.
    """
    if not program.latent_sites:
        return None
    require_called(guide)
    size = min(_FEW, len(batch[0]))
    back = torch.arange(size - 1, -1, -1, device="cpu")
    try:
        with _apart():
            drawn = _Call.of(program, guide, take_rows(batch, slice(size)))
            base = drawn.again(back.flip(0))  # gradients do not pass through the draws
            repeated = base.again(back.flip(0))
            calls = [base.again(order) for order in (torch.cat([back, back.flip(0)]), back[:1])]
    except Exception:  # wrong shapes can raise errors of any kind
        if can_be_run(program, guide, batch):
            return program.latent_sites[0].name
        _refuse_other_number(program, guide, batch)
        return None
    for call in calls:
        _require_same_sites(base, call)
    random = base.differs_from(repeated)
    if random is not None:
        raise ValueError(
            f"q of site '{random}' differs between two calls of the guide on the same rows, so "
            "the guide draws random numbers outside its sites: draw these numbers with "
            f"pyro.sample(..., infer={{'is_auxiliary': True}}), without poutine.block"
        )
    return next(filter(None, (base.differs_from(call) for call in calls)), None)


def _require_same_sites(one: "_Call", other: "_Call") -> None:
    """Refuses a guide whose set of sites depends on the rows that it is called with."""
    if set(one.log_probs) != set(other.log_probs):
        raise ValueError(
            "the guide must sample the same sites whatever rows it is called with; got the sites "
            f"{list(one.log_probs)} for some rows, and {list(other.log_probs)} for another "
            "selection of these rows: sample the same sites for all data; for example, let loops "
            "run to y.shape[1] and not to the length of the longest series in the batch"
        )


def _refuse_other_number(program: Program, guide: ProgramLike, batch: Batch) -> None:
    """Refuses a guide that fails on the batch because it requires a different number of rows.

    Such a number is looked for among the lengths of the guide's parameters.
    """
    num_data = len(batch[0])
    tensors: list[Tensor] = [p for module in modules_of(guide) for p in module.parameters()]
    with _apart():
        with suppress(Exception):  # a call that fails may still have created the parameters
            _Call.of(program, guide, batch)
        tensors += [param for _, param in pyro.get_param_store().named_parameters()]
    sizes = {size for tensor in tensors for size in tensor.shape} - {0, 1, num_data}
    for rows in sorted(sizes, reverse=True):
        some = torch.arange(rows, device="cpu") % num_data
        if rows <= _MOST_ROWS and can_be_run(program, guide, take_rows(batch, some)):
            raise ValueError(
                f"the guide is tied to {count_of(rows, 'training row')}, but the batch has "
                f"{count_of(num_data, 'row')}: {REMEDY}"
            )


def can_be_run(program: Program, guide: ProgramLike, batch: Batch) -> bool:
    """Whether a guide accepts a batch; parameters and random streams do not change."""
    try:
        with _apart():
            _Call.of(program, guide, batch)
    except Exception:  # for any reason
        return False
    return True


@contextmanager
def _apart() -> Iterator[None]:
    """Runs a `with` block of trial calls, then restores random streams and parameters."""
    with (
        no_new_parameters(),
        torch.enable_grad(),
        pyro.validation_enabled(is_validate=False),
        forked(0, "contract"),
        outside_minibatch(),
    ):
        yield


@dataclass(frozen=True)
class _Call:
    """A trial call of a guide on some rows, with given values of the guide's sites."""

    program: Program
    guide: ProgramLike
    batch: Batch
    rows: Int64[Tensor, " rows"]
    sites: tuple[TracedSite, ...]
    shared: dict[str, Tensor]
    log_probs: dict[str, Tensor]
    bases: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        program: Program,
        guide: ProgramLike,
        batch: Batch,
        values: Mapping[str, Tensor] | None = None,
        rows: Tensor | None = None,
        bases: Mapping[str, Tensor] | None = None,
    ) -> "_Call":
        """Calls the guide with its sites at given values.

        A site whose density is known only at its own draws cannot be set to a value. For such a
        site, `bases` holds a draw of the base distribution, and the call transforms this draw.
        """
        given = {**program.fixed, **(values or {})}
        run = program.run_guide(guide, batch, given)
        rows = torch.arange(len(batch[0]), device="cpu") if rows is None else rows
        sites = density_sites(run, values or ())
        inside = [s for s in sites if s.is_in(program.plate)]
        outside = [s for s in sites if not s.is_in(program.plate)]
        shared = {s.name: s.value.detach() for s in outside if not is_delta(s.distribution)}
        if bases is None:
            drawn = {site.name: _base_draw(site) for site in inside}
            bases = {name: base for name, base in drawn.items() if base is not None}
        log_probs = {s.name: _answer(program, s, len(rows), bases.get(s.name)) for s in inside}
        return cls(program, guide, batch, rows, tuple(inside), shared, log_probs, dict(bases))

    def again(self, order: Tensor) -> "_Call":
        """Calls the guide on these rows in the given order; each row keeps its latents."""
        # A Delta is not set, because its value follows from the other draws.
        drawn = [site for site in self.sites if not is_delta(site.distribution)]
        values = {**self.shared, **{site.name: self._taken(site, order) for site in drawn}}
        bases = {
            site.name: self._taken(TracedSite({**site.node, "value": base}), order)
            for site in self.sites
            if (base := self.bases.get(site.name)) is not None
        }
        return _Call.of(
            self.program, self.guide, take_rows(self.batch, order), values, order, bases
        )

    def _taken(self, site: TracedSite, rows: Tensor) -> Tensor:
        """Returns a site's values for these rows, in the shape that the guide's draws have."""
        value = site.value_by_datum(self.program.plate_dim).detach()
        axis = site.distribution.event_dim - self.program.plate_dim
        return value[rows.to(value.device)].movedim(0, value.dim() - axis)

    def differs_from(self, other: "_Call") -> str | None:
        """Name of the first site whose log density or gradient is different in `other`.

        `None` if no site differs.
        """
        for name, here in self.log_probs.items():
            there = other.log_probs[name]
            expected = here[other.rows.to(here.device)]
            scale = 1 + expected.detach().abs()
            off = (there - expected).detach().abs() / scale
            if bool((off > _TOLERANCE).any()) or _gradients_differ(expected, there, other.rows):
                return name
        return None


def _base_draw(site: TracedSite) -> Tensor | None:
    """Returns a site's base draw, or `None` if the site's density is known at any value.

    The site's transforms turn the base draw into the site's value. The base draw is needed if the
    density is known only at the site's own draws, as for a planar flow.
    """
    q = base_of(site.distribution)
    if not isinstance(q, TransformedDistribution):
        return None
    try:
        q.log_prob(site.value.clone())
    except (KeyError, NotImplementedError):
        base = site.value
        for transform in reversed(q.transforms):
            base = transform.inv(base)
        return base
    return None


def _answer(program: Program, site: TracedSite, rows: int, base: Tensor | None) -> Tensor:
    """Returns a number per datum that must agree between two calls: a site's log density.

    If the site is a `Delta`, or if its base draw `base` is given, the site's value is a function of
    other draws. A weighted sum of the value's entries is then added to the log density.
    """
    if base is not None:
        value, flow = base, base_of(site.distribution)
        assert isinstance(flow, TransformedDistribution)  # the only kind with a base draw
        for transform in flow.transforms:
            value = transform(value)
        site = TracedSite({**site.node, "value": value})
    log_prob = log_density(program, site, rows)
    if base is None and not is_delta(site.distribution):
        return log_prob
    value = site.value_by_datum(program.plate_dim).reshape(rows, -1)
    return log_prob + value @ torch.linspace(1, 2, value.shape[-1], device=value.device).to(value)


def _gradients_differ(one: Tensor, other: Tensor, rows: Tensor) -> bool:
    """Whether weighted sums of the log densities of two calls have different gradients."""
    weights = (1.0 + rows).to(one)
    leaves = list(leaves_of((one + other).sum()))
    if not leaves:
        return False
    gradients = [
        torch.autograd.grad(
            (weights * part).sum(), leaves, retain_graph=True, materialize_grads=True
        )
        for part in (one, other)
    ]
    pairs = list(zip(*gradients, strict=True))
    off = sum(float((a - b).square().sum()) for a, b in pairs)
    return off > _TOLERANCE**2 * sum(float(a.square().sum() + b.square().sum()) for a, b in pairs)


def _independent(program: Program, one: Run, other: Run) -> SitesPosterior | None:
    """Returns a posterior with one distribution per site; `None` if two runs rule this out."""
    names = [site.name for site in program.latent_sites]
    if {site.name for site in density_sites(one)} - {*names, *program.fixed}:
        return None
    try:
        sites = {name: unmasked(one[name].distribution) for name in names}
        posterior = SitesPosterior(program, sites, program.plate_dim)
        last = len(posterior) - 1
        back = torch.arange(last, -1, -1, device="cpu")
        for name, q in sites.items():
            value, again = other[name].value, unmasked(other[name].distribution)
            axis = value.dim() - q.event_dim + program.plate_dim
            log_prob, turned = q.log_prob(value), back.to(value.device)
            moved = rows_of(q, back, program.plate_dim).log_prob(value.index_select(axis, turned))
            if rows_of(q, back[:1], program.plate_dim).batch_shape[program.plate_dim] != 1:
                return None  # the transforms may have per-row parameters
            torch.testing.assert_close(again.log_prob(value), log_prob)
            turned_back = log_prob.index_select(log_prob.dim() + program.plate_dim, turned)
            torch.testing.assert_close(moved, turned_back)
    except Exception:  # the guide is then called once per particle
        return None
    return posterior


@dataclass(frozen=True)
class RepeatedCalls(Posterior):
    """The posterior of some rows under a guide that is tied to rows; one call gives one particle.

    Arguments:
        program: The model.
        guide: The guide.
        batch: All rows that the guide is tied to.
        chosen: Positions of the requested rows.
    """

    program: Program
    guide: ProgramLike
    batch: Batch
    chosen: Int64[Tensor, " rows"]

    def __len__(self) -> int:
        """Number of data."""
        return len(self.chosen)

    def rows(self, rows: slice | Tensor) -> "RepeatedCalls":
        """Returns the posterior of the selected rows."""
        (chosen,) = take_rows((self.chosen,), rows)
        return replace(self, chosen=chosen)

    def draw(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Returns draws, `(particles, batch, latents)`, and log densities, `(particles, batch)`."""
        every, chosen = self._every, self.chosen.to(self.batch[0].device)
        z, log_q = join([every.draw(1) for _ in range(num_particles)])
        return z[:, chosen], log_q[:, chosen]

    def log_prob(self, z: Float[Tensor, "particles batch latents"]) -> Tensor:
        """Returns the log density at given points, `(particles, batch)`, in nats."""
        every, chosen = self._every, self.chosen.to(z.device)
        with forked(0, "contract"):  # for the rows that were not requested
            start = every.draw(1)[0]
        points = start.repeat(len(z), 1, 1).index_copy(1, chosen, z)
        return torch.cat([every.log_prob(point[None]) for point in points])[:, chosen]

    @property
    def _every(self) -> ProgramPosterior:
        """The posterior of all rows that the guide is tied to."""
        return ProgramPosterior(self.program, self.guide, self.batch)
