r"""A Pyro program as a density per datum.

A program with one plate over data factorizes, :math:`\log p(y, z) = \sum_n \log p(y_n, z_n)`. A
trace of the program already gives every site's log density per datum: the site's log density,
summed over all dimensions except the plate's. For :math:`K` particles per datum the program need
not be vectorized: each row of the batch is repeated :math:`K` times, and the program is called once
on the longer batch. The unconstrained values of all latent sites of a datum are concatenated to one
flat vector. The density of that vector includes the Jacobian of the change of variables.
"""

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from .._types import Batch, ProgramLike
from ..formatting import count_of, listed
from ..randomness import forked
from .copies import copied
from .edges import AtEdges
from .hooks import hooks_of, name_of
from .log_probs import sum_out
from .masks import Unmasked
from .modes import as_batch, capturing, evaluating
from .pieces import take_rows
from .structure import Structure, structure_of
from .traces import Determined, Run, TracedSite, Unobserved, repeat_rows, run_rows, sum_but


class LogDensities(NamedTuple):
    """Log density of the latents, and log density of the data given the latents.

    Each has the shape `(particles, batch)` and is in nats.
    """

    prior: Tensor
    likelihood: Tensor


@runtime_checkable
class Density(Protocol):
    """The methods of a :class:`Program` that are needed to run MCMC or to fit q to single rows."""

    @property
    def model(self) -> ProgramLike:
        """The model whose densities are computed."""

    def log_densities(self, z: Tensor, *batch: Tensor) -> LogDensities:
        """Log prior and log likelihood, each `(particles, batch)`, in nats."""

    def log_joint(self, z: Tensor, *batch: Tensor) -> Tensor:
        """Log joint density, `(particles, batch)`, in nats: log prior plus log likelihood."""


class Program:
    r"""A model seen as :math:`\log p(y_n, z_n)` per datum, over one flat unconstrained vector.

    The model is run on a row repeated twice, and on the row repeated three times. These
    runs show the structure: the plate over data, and the latent sites with their shapes and
    supports. The plate over data is the plate whose size follows the batch. Discrete latent sites
    of a datum are summed out. If latent sites are shared by all data, their values have to be given
    first (:meth:`given`); the density per datum is then conditional on these values.

    Attributes:
        plate: Name of the plate over data.
        plate_dim: Dimension of that plate, counted from the right.
        latent_sites: Latent sites of a datum, in the order of the flat vector.
        latent_dim: Number of entries of the flat vector of a datum's latents.
        global_sites: Latent sites that all data share, in the order of their flat vector.
        global_dim: Number of entries of the flat vector of the global latents.
        observed_names: Names of a datum's observed sites.
        dtype: Dtype of the latents.
        device: Device of the latents.
        structure: Everything else that was found about the sites and plates.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        batch: A few rows to run the model on. They may be left out if the model has a method
            `prototype()` that returns a few rows, as :class:`pyro_vae.models.VAE` has.
        plate: Name of the plate over data; needed if the sizes of several plates follow the batch.

    Raises:
        ValueError: If there is no plate over data or more than one, if a site of a datum is outside
            that plate, if there is no latent or no observed site, or if the program has no density
            per datum for another reason. The message names the site or the plate.

    Example:
        >>> import pyro
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> program = Program(model, torch.zeros(1))
        >>> program.log_joint(torch.zeros(1, 2, 1), torch.zeros(2))
        tensor([[-1.8379, -1.8379]])
    """

    structure: Structure

    def __init__(self, model: ProgramLike, *batch: Tensor, plate: str | None = None) -> None:
        self.model: ProgramLike = model
        rows = as_batch(batch, argument="batch") if batch else self._own_prototype()
        self._take(structure_of(model, rows, plate))
        self.fixed: dict[str, Tensor] = {}
        self.conditions = ""
        # Copies made by `given` share the next two attributes, which cache results.
        self.passed_checks: set[tuple[object, ...]] = set()
        self.bytes_per_row: dict[tuple[object, ...], float] = {}
        if self.structure.combinations is not None and self._broadcasts(rows):
            self.structure = replace(self.structure, combinations=None)

    def _take(self, structure: Structure) -> None:
        """Stores a structure, and sets the attributes that every call uses."""
        self.structure = structure
        self.plate, self.plate_dim = structure.plate, structure.plate_dim
        self.latent_sites, self.global_sites = structure.latent_sites, structure.global_sites
        self._sizes = [site.size for site in structure.latent_sites]
        self._bounded = {s.name: s.transform for s in structure.latent_sites if not s.is_real}
        self.latent_dim = sum(self._sizes)
        self.global_dim = sum(site.size for site in structure.global_sites)
        self.observed_names = structure.observed
        self.dtype, self.device = structure.dtype, structure.device

    def moved(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Updates dtype and device after `module.to()`, which applies `fn` to each tensor."""
        old, start = self.structure, fn(self.structure.global_start)
        values = None if old.discrete_values is None else old.discrete_values.to(start)
        self._take(
            replace(
                old,
                global_start=start,
                global_spread=fn(old.global_spread),
                dtype=start.dtype,
                device=start.device,
                discrete_values=values,
                combinations=None if old.combinations is None else values,
            )
        )

    def __deepcopy__(self, memo: dict[Any, Any]) -> "Program":
        """Copies the program and its model, with all networks that the model refers to."""
        made = copy.copy(self)
        memo[id(self)] = made
        made.model = copied(self.model, memo)
        made.fixed = copy.deepcopy(self.fixed, memo)
        made.passed_checks, made.bytes_per_row = set(), {}
        return made

    def _own_prototype(self) -> Batch:
        """Returns the rows that the model's method `prototype` makes."""
        prototype = hooks_of(self.model).prototype
        if prototype is None:
            raise ValueError(
                f"the program '{name_of(self.model)}' must be run once to find its latent sites: "
                "pass a few rows of data, as in pv.Guide(model, map, example=y[:2])"
            )
        with evaluating(self.model), torch.no_grad():
            return as_batch(prototype(), argument="prototype()")

    def given(self, values: Mapping[str, Tensor], source: str = "given values") -> "Program":
        """Returns a copy of the program with given values of its global sites.

        Arguments:
            values: The value of every global site, by name, which must lie in the site's support.
            source: Text that says where the values come from; results quote this text.

        Raises:
            ValueError: If a site is missing, unknown, or has a value of another shape.
        """
        names = [site.name for site in self.global_sites]
        if sorted(values) != sorted(names):
            raise ValueError(
                f"`given` must have values for the global sites {names}; got {sorted(values)}: "
                "pass `given=guide.global_values()`"
            )
        for site in self.global_sites:
            start = torch.zeros(site.size, dtype=self.dtype, device=self.device)
            expected, got = tuple(site.constrain(start)[0].shape), tuple(values[site.name].shape)
            if got != expected:
                raise ValueError(
                    f"the value of global site '{site.name}' must have shape {expected}; got "
                    f"shape {got}: pass a single value of this shape, such as one draw"
                )
        other = copy.copy(self)
        # In the order in which a compiled graph takes these values.
        other.fixed = {name: values[name] for name in names}
        for name, value in other.fixed.items():
            if not value.is_floating_point():
                other.fixed[name] = value.to(self.dtype)
        sites = f"global {'site' if len(names) == 1 else 'sites'} {', '.join(names)}"
        other.conditions = f"conditional on the {sites} at {source}" if names else ""
        return other

    def given_valid(self, values: Mapping[str, Tensor]) -> "Program":
        """Like :meth:`given`, for a caller's own values: each must be in its site's support."""
        program = self.given(values)
        for site in self.global_sites:
            site.require_valid(program.fixed[site.name])
        return program

    def at_start(self) -> "Program":
        """Returns a copy of the program, given global values near the medians of their priors."""
        if not self.global_sites:
            return self
        flat = self.constrain_globals(self.structure.global_start)
        return self.given({name: value for name, (value, _) in flat.items()})

    def constrain_globals(
        self, flat: Float[Tensor, "*particles size"]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Value and log Jacobian of every global site, for flat unconstrained vectors."""
        parts = flat.split([site.size for site in self.global_sites], dim=-1)
        pairs = zip(self.global_sites, parts, strict=True)
        return {site.name: site.constrain(part) for site, part in pairs}

    def split(self, z: Float[Tensor, "rows latents"]) -> list[Tensor]:
        """Splits flat latent vectors into one part per latent site, each `(rows, size)`."""
        return list(z.split(self._sizes, dim=-1)) if self._sizes else []

    def constrain(self, z: Float[Tensor, "rows latents"]) -> tuple[dict[str, Tensor], Tensor]:
        """Constrained values of the latent sites by name, and the log Jacobian, `(rows,)`."""
        values, jacobian = {}, z.new_zeros(len(z))
        for site, part in zip(self.latent_sites, self.split(z), strict=True):
            values[site.name], log_jacobian = site.constrain(part)
            jacobian = jacobian + sum_but(log_jacobian, site.axis)
        return values, jacobian

    def unconstrained(self, z: Float[Tensor, "rows latents"]) -> dict[str, Tensor]:
        """Unconstrained values, by site, of the latent sites that have a constrained support."""
        parts = zip(self.latent_sites, self.split(z), strict=True)
        return {site.name: site.unconstrained(part) for site, part in parts if not site.is_real}

    def latents_of(self, run: Run) -> tuple[Tensor, Tensor]:
        """Flat latents of a run, `(rows, latents)`, and the log Jacobian, `(rows,)`."""
        return self.flatten(run.values(site.name for site in self.latent_sites), run.unconstrained)

    def flatten(
        self, values: dict[str, Tensor], unconstrained: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Flat vectors `(rows, latents)` for values of the latent sites, and the log Jacobian.

        Arguments:
            values: Values of the latent sites, by name.
            unconstrained: Unconstrained values by name, for the sites where they are known.
        """
        self.require_latents()
        known, parts, jacobians = unconstrained or {}, [], []
        for site in self.latent_sites:
            part, log_jacobian = site.flatten(values[site.name], known.get(site.name))
            parts.append(part)
            jacobians.append(sum_but(log_jacobian, site.axis))
        return torch.cat(parts, dim=-1), torch.stack(jacobians).sum(dim=0)

    def require_latents(self) -> None:
        """Refuses a program without continuous latents, because there is nothing to draw or fit.

        Raises:
            ValueError: If the program has no continuous latent site.
        """
        if not self.latent_sites:
            raise ValueError(
                f"all latent sites of a datum, {list(self.structure.enumerated)}, are discrete "
                "and summed out, so no latent is left to draw or fit: call "
                "pv.log_marginal_likelihood(model, guide, data) for the exact log p(y)"
            )

    def log_densities(
        self, z: Float[Tensor, "particles batch latents"], *batch: Tensor
    ) -> LogDensities:
        r"""Log prior of the flat latents and log likelihood of the data, for every particle.

        .. math:: \log p(z_{kn}) + \log |J|, \qquad \log p(y_n \mid z_{kn})

        Here k counts particles, n counts rows, and J is the Jacobian of the change of variables.

        Arguments:
            z: Flat unconstrained latents, `(particles, batch, latents)`.
            batch: The arguments of the program, each with `batch` rows.

        Returns:
            Two tensors `(particles, batch)`, in nats, never scaled by a plate or a handler.
        """
        with poutine.block():
            return self.traced(z, *batch)[0]

    def traced(
        self, z: Float[Tensor, "particles batch latents"], *batch: Tensor
    ) -> tuple[LogDensities, Run]:
        """Returns the results of :meth:`log_densities`, and the run of the program.

        Objectives use this method. Outer handlers see only the parameters that the program
        registers, so that Pyro's SVI trains these parameters.
        """
        num_particles, rows, latents = z.shape
        self._check(batch, rows, latents)
        flat = z.flatten(0, 1)
        values, jacobian = self.constrain(flat)
        rows_of_particles = repeat_rows(batch, num_particles)
        densities, run = self.weighed(values, rows_of_particles, self.unconstrained(flat))
        prior, likelihood = (part.view(num_particles, rows) for part in densities)
        return LogDensities(prior + jacobian.view(num_particles, rows), likelihood), run

    def weighed(
        self,
        values: Mapping[str, Tensor],
        rows: Batch,
        unconstrained: Mapping[str, Tensor] | None = None,
    ) -> tuple[LogDensities, Run]:
        """Runs the program at given values of the latents; returns log densities, and the run.

        The log densities are the log prior and the log likelihood, `(rows,)` each, without a
        Jacobian.

        Arguments:
            values: Values of the latent sites, by name.
            rows: The arguments of the program.
            unconstrained: Unconstrained values by name, for the sites where they are more accurate
                than `values`.
        """
        combined, unconstrained = self.structure.combinations, unconstrained or {}
        values, batch = {**values, **self._globals()}, rows
        if combined is not None:
            unconstrained = combined.repeated(unconstrained, self._axes)
            values = combined.beside(values, self._axes, len(rows[0]))
            batch = repeat_rows(rows, len(combined))
        run = run_rows(self.enumerated, batch, self.plate, values, self._at_edges(unconstrained))
        return self.densities_of(run), run

    def _at_edges(self, unconstrained: Mapping[str, Tensor]) -> AtEdges | None:
        """Handler that records and draws unconstrained values; `None` if all supports are real."""
        return AtEdges(self._bounded, unconstrained) if self._bounded else None

    def log_joint_at(self, values: Mapping[str, Tensor], rows: Batch) -> Tensor:
        r"""Computes :math:`\log p(y_n, z_n)` at given values of latent sites, without a Jacobian.

        Arguments:
            values: Values of the latent sites of a datum by name, as `pyro.sample` returns them.
                All continuous sites need a value; discrete sites without one are summed out.
            rows: The arguments of the program.

        Returns:
            Log densities `(rows,)`, in nats.
        """
        drawn = [name for name in self.structure.enumerated if name in values]
        with poutine.block():
            densities, _ = self.drawing(drawn).weighed(values, rows)
        return sum(densities)  # type: ignore[return-value]

    def drawing(self, names: Collection[str]) -> "Program":
        """Returns a copy of the program in which the named discrete sites are drawn or given.

        The copy sums out only the other discrete sites.
        """
        if not names:
            return self
        rest = tuple(name for name in self.structure.enumerated if name not in names)
        combined = self.structure.combinations
        combined = combined.only(rest) if combined is not None and rest else None
        other = copy.copy(self)
        other.structure = replace(self.structure, enumerated=rest, combinations=combined)
        return other

    @property
    def _axes(self) -> dict[str, int]:
        """Position of the datum axis in the value of each latent site."""
        axes = {site.name: site.axis for site in self.latent_sites}
        combined = self.structure.combinations
        return axes if combined is None else {**axes, **combined.axes}

    def run(
        self,
        batch: Batch,
        values: Mapping[str, Tensor] | None = None,
        unconstrained: Mapping[str, Tensor] | None = None,
    ) -> Run:
        """Runs the program with its data observed; latent sites without a value are drawn."""
        values = {**self.fixed, **(values or {})}
        run = run_rows(self._whole, batch, self.plate, values, self._at_edges(unconstrained or {}))
        self._checked_sites(run)
        return run

    def run_forward(self, batch: Batch, values: Mapping[str, Tensor] | None = None) -> Run:
        """Runs the program with no site observed, so that the data are drawn, too.

        Arguments:
            batch: Rows that give the shapes and the covariates.
            values: Values of some latent sites; all other latent sites are drawn.
        """
        model = Unobserved(self.observed_names)(self._whole)
        values = {**self.fixed, **(values or {})}
        return run_rows(model, batch, self.plate, values, self._at_edges({}))

    def run_guide(
        self,
        guide: ProgramLike,
        batch: Batch,
        values: Mapping[str, Tensor] | None = None,
        unconstrained: Mapping[str, Tensor] | None = None,
    ) -> Run:
        """Runs a guide on rows; sites in `values` get these values, all other sites are drawn."""
        return run_rows(guide, batch, self.plate, values, self._at_edges(unconstrained or {}))

    def log_joint(
        self, z: Float[Tensor, "particles batch latents"], *batch: Tensor
    ) -> Float[Tensor, "particles batch"]:
        r"""Computes :math:`\log p(y_n, z_{kn})` per particle k and datum n, in nats.

        The result has the shape `(particles, batch)`.
        """
        return sum(self.log_densities(z, *batch))  # type: ignore[return-value]

    def _globals(self) -> dict[str, Tensor]:
        """Returns the given values of the global sites; raises an error if none were given."""
        if len(self.fixed) < len(self.global_sites):
            raise ValueError(
                f"all data share the {listed('latent site', (s.name for s in self.global_sites))}, "
                "so the density of a datum is defined only if the value of every shared site is "
                "given: pass `given=guide.global_values()`, or one of the draws of "
                "guide.sample_globals()"
            )
        return self.fixed

    def whole(self, names: Collection[str]) -> ProgramLike:
        """Returns the model without the masks of the named latent sites.

        Sites whose value follows from other sites become deterministic.
        """
        model = Determined()(self.model) if self.structure.determined else self.model
        return Unmasked(names)(model) if names else model

    @property
    def _whole(self) -> ProgramLike:
        """The model without the masks of its latent sites."""
        return self.whole(self.structure.masked)

    @property
    def enumerated(self) -> ProgramLike:
        """The model, with discrete sites marked for enumeration if it can broadcast over them."""
        if not self.structure.enumerated or self.structure.combinations is not None:
            return self._whole
        return poutine.enum(self.enumerating(self._whole), -1 - self.structure.nesting)

    def enumerating(self, model: ProgramLike) -> ProgramLike:
        """Marks the discrete latent sites of a model for Pyro's enumeration."""
        names = self.structure.enumerated
        if not names:
            return model
        return poutine.infer_config(
            model,
            config_fn=lambda site: {"enumerate": "parallel"} if site["name"] in names else {},
        )

    def densities_of(self, run: Run) -> LogDensities:
        """Log prior and log likelihood of the rows of a run, each `(rows,)`.

        If rows were repeated for the values of discrete sites, the densities of the copies of a row
        are added up.
        """
        sites = self._checked_sites(run)
        latent = [site.name for site in self.latent_sites]
        if self.structure.combinations is not None:
            if not capturing():
                self.structure.combinations.check(sites)
            shape = (len(self.structure.combinations), -1)
            drawn = self._total(sites, [*self.structure.enumerated, *latent]).view(shape)
            prior = drawn.logsumexp(dim=0)
            joint = self._total(sites, [*sites]).view(shape).logsumexp(dim=0)
            return LogDensities(prior, joint - prior)
        if self.structure.enumerated:
            known = {n: sites[n].log_prob for n in latent if sites[n].is_known_at_edges}
            prior = sum_out(run.trace, [*self.structure.enumerated, *latent], self.plate, known)
            return LogDensities(prior, sum_out(run.trace, [*sites], self.plate) - prior)
        likelihood = self._total(sites, [name for name in sites if name not in latent])
        prior = self._total(sites, latent) if latent else torch.zeros_like(likelihood)
        return LogDensities(prior, likelihood)

    def _broadcasts(self, batch: Batch) -> bool:
        """Whether enumeration by broadcasting gives the same densities as repeating rows.

        The results differ if the program cannot broadcast over discrete sites, or broadcasts
        wrongly.
        """
        other, found = copy.copy(self), []
        other.structure = replace(self.structure, combinations=None)
        for program in (self, other):
            with evaluating(self.model), torch.no_grad(), forked(0, "enumeration"):
                found.append(_tried(program, batch))
        expected, got = found
        if expected is None:  # the program raises an error without broadcasting, too
            return True
        return got is not None and torch.allclose(got, expected, 1e-4, 1e-4, equal_nan=True)

    def refuse_enumeration(self) -> None:
        """Refuses Pyro's enumeration of a program that does not broadcast over discrete sites.

        Raises:
            ValueError: If an outer handler enumerates such a program; the message names an
                objective that works.
        """
        enumerates = any(isinstance(handler, EnumMessenger) for handler in _PYRO_STACK)
        if self.structure.combinations is not None and enumerates:
            raise ValueError(
                "TraceEnum_ELBO needs a program that broadcasts over the values of its "
                f"{listed('discrete site', self.structure.enumerated)}, and this program does not, "
                "perhaps because of an operation such as torch.cat([z, y], -1): use "
                "pv.BetaELBO(1.0), which repeats rows instead"
            )

    def _checked_sites(self, run: Run) -> dict[str, TracedSite]:
        """Returns a datum's sites in a run; refuses latent sites other than the program's."""
        sites = {name: site for name, site in run.inside.items() if name not in self.fixed}
        expected = {site.name for site in self.latent_sites} | set(self.structure.enumerated)
        sampled = {name for name, site in sites.items() if not site.is_observed}
        found = {name for name in expected if name in sites}
        if found != expected or not sampled <= expected:
            raise ValueError(
                f"the latent sites must be {sorted(expected)} in every run of the program; got "
                f"{sorted(found | sampled)} in this run: sample every site for every datum and "
                "every draw, and mask observations instead of leaving out sites; for example, loop "
                "over range(y.shape[1]), not up to the length of the longest series in the batch"
            )
        return sites

    def _total(self, sites: dict[str, TracedSite], names: list[str]) -> Tensor:
        """Adds up the log densities of the named sites for every row, `(rows,)`."""
        log_probs = [sites[name].log_prob_by_datum(self.plate_dim) for name in names]
        return torch.stack(log_probs).sum(dim=0)

    def _check(self, batch: Batch, rows: int, latents: int) -> None:
        """Refuses flat latents z, `(particles, rows, latents)`, that do not fit the batch."""
        if latents != self.latent_dim:
            names = {site.name: site.inner_shape for site in self.latent_sites}
            raise ValueError(
                f"the last axis of z must have size {self.latent_dim}, for the latents of the "
                f"sites {names}; got size {latents}: pass z as guide.sample(y) returns it"
            )
        for index, part in enumerate(batch):
            if len(part) != rows:
                raise ValueError(
                    "z must have shape (particles, data, latents), with one datum for each row of "
                    f"the batch; got z for {count_of(rows, 'datum')}, but "
                    f"{count_of(len(part), 'row')} in tensor {index} of the batch"
                )


def _tried(program: Program, batch: Batch) -> Tensor | None:
    """Log densities of two rows at random latents; `None` if the program raises an error."""
    program, rows = program.at_start(), take_rows(batch, slice(2))
    shape = (3, len(rows[0]), program.latent_dim)
    try:
        z = torch.randn(shape, device=program.device, dtype=program.dtype)
        return torch.cat(program.log_densities(z, *rows))
    except Exception:  # whatever a program that cannot broadcast raises
        return None


def log_joint(
    model: ProgramLike,
    z: Float[Tensor, "particles batch latents"],
    *batch: Tensor,
    given: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "particles batch"]:
    r"""Evaluates :math:`\log p(y_n, z_{kn})` of a Pyro program, per particle and datum.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        z: Flat unconstrained latents, `(particles, batch, latents)`: all latent sites of a datum
            concatenated, in the order in which the program samples them.
        batch: The arguments of the program; the leftmost axis of each tensor indexes the data.
        given: Values of the global latent sites, by name, if the program has any; the density is
            then conditional on these values.

    Returns:
        Exact log densities `(particles, batch)`, in nats. The Jacobians of constrained sites are
        included, and discrete latent sites of a datum are summed out.

    Raises:
        ValueError: If the program or the shapes do not fit (see :class:`Program`).

    Example:
        >>> import pyro
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> log_joint(model, torch.zeros(3, 2, 1), torch.tensor([0.0, 1.0])).shape
        torch.Size([3, 2])
    """
    with evaluating(model):
        program = Program(model, *batch)
        return program.given_valid(given or {}).log_joint(z, *batch)
