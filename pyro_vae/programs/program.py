r"""A Pyro program as a density per datum.

A program with one plate over data factorizes, :math:`\log p(y, z) = \sum_n \log p(y_n, z_n)`. Its
trace holds every site's log density by datum already: it is the site's log density summed over all
dimensions but the plate's. For :math:`K` particles a datum the program is not asked to vectorize
anything: each row of the batch is repeated :math:`K` times and the program is called once on the
longer batch. All latent sites of a datum are laid end to end, unconstrained, in one flat vector;
the density of that vector has the Jacobian of the change of variables put in.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from .._types import Batch, ProgramLike
from .modes import evaluating, forked_seed


class LogDensities(NamedTuple):
    """Log densities of latents and of data given latents, each `(particles, batch)`, in nats."""

    prior: Tensor
    likelihood: Tensor


@dataclass(frozen=True)
class LatentSite:
    """One latent site of one datum, and how its value is laid out in the flat vector.

    Arguments:
        name: Name of the site.
        axis: Where the datum axis stands in the site's value.
        inner_shape: Shape of one datum's unconstrained value (inner plates, then event).
        transform: From unconstrained to the site's support.
        is_real: Whether the support is the whole space, so that the transform does nothing.
        event_dim: Event dimensions of the value.
        plates: Names, sizes and dimensions of the plates inside a datum.
    """

    name: str
    axis: int
    inner_shape: tuple[int, ...]
    transform: Any
    is_real: bool
    event_dim: int
    plates: tuple[tuple[str, int, int], ...]

    @property
    def size(self) -> int:
        """Entries in the flat vector."""
        return math.prod(self.inner_shape)

    @property
    def is_plain_vector(self) -> bool:
        """Whether the value is the flat vector itself: real, one event dimension, no plate."""
        return self.is_real and self.event_dim == 1 and len(self.inner_shape) == 1

    def constrain(self, flat: Float[Tensor, "rows size"]) -> tuple[Tensor, Tensor]:
        """The site's value, and the log Jacobian, shaped as the site's log density."""
        rows = flat.shape[0]
        unconstrained = flat.reshape(rows, *self.inner_shape).movedim(0, self.axis)
        value = self.transform(unconstrained)
        return value, self.transform.log_abs_det_jacobian(unconstrained, value)

    def flatten(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of :meth:`constrain`: the flat vector and the same log Jacobian."""
        unconstrained = self.transform.inv(value)
        log_jacobian = self.transform.log_abs_det_jacobian(unconstrained, value)
        rows = value.shape[self.axis]
        return unconstrained.movedim(self.axis, 0).reshape(rows, self.size), log_jacobian


def _sum_but(tensor: Tensor, axis: int) -> Tensor:
    """Sums over all dimensions but one, given from the left."""
    others = [dim for dim in range(tensor.dim()) if dim != axis]
    return tensor.sum(dim=others) if others else tensor


def repeat_rows(batch: Batch, num_particles: int) -> Batch:
    """Repeats a batch for its particles: `(batch, ...)` to `(particles * batch, ...)`."""
    return tuple(
        part.expand(num_particles, *part.shape).reshape(-1, *part.shape[1:]) for part in batch
    )


def per_datum_log_probs(site: Any, plate_dim: int) -> Tensor:
    """One site's log density `(rows,)`: masked, but never scaled by a plate or a handler.

    Of another shape if the site is not in the plate over data; the caller looks.
    """
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    log_prob = scale_and_mask(log_prob, 1.0, site["mask"])
    return _sum_but(log_prob, log_prob.dim() + plate_dim)


def _is_density(site: Any) -> bool:
    """Whether a site of a trace carries a density: not a plate's subsample, not deterministic."""
    return (
        site["type"] == "sample"
        and not pyro.poutine.util.site_is_subsample(site)
        and not site["infer"].get("_deterministic", False)
    )


class WholePlate(Messenger):
    """Lets a plate that subsamples hold as many rows as there are: repeated rows may exceed it."""

    def __init__(self, plate: str, rows: int) -> None:
        super().__init__()
        self.plate, self.rows = plate, rows

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.plate and poutine.util.site_is_subsample(msg):
            msg["value"] = torch.arange(self.rows, device=msg["fn"].device)


class Program:
    r"""A model seen as :math:`\log p(y_n, z_n)` per datum, over one flat unconstrained vector.

    The structure (the plate over data, the latent sites, their shapes and supports) is read off
    the model once, by running it on a row repeated twice and three times: the plate over data is
    the one whose size follows the batch.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        batch: A few rows to run it on. May be left out for a model that has a method
            `prototype()` giving some, as :class:`pyro_vae.models.VAE` does.
        plate: Name of the plate over data, where several plates follow the batch.

    Raises:
        ValueError: If there is no plate over data or more than one, if a site is outside it, or
            if nothing is latent or nothing is observed.

    Example:
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> program = Program(model, torch.zeros(1))
        >>> program.log_joint(torch.zeros(1, 2, 1), torch.zeros(2))
        tensor([[-1.8379, -1.8379]])
    """

    def __init__(self, model: ProgramLike, *batch: Tensor, plate: str | None = None) -> None:
        self.model = model
        sites = self._prototype(batch or self._own_prototype(), plate)
        self.latent_sites = tuple(
            _latent_site(site, self.plate, self.plate_dim)
            for site in sites.values()
            if not site["is_observed"]
        )
        self.observed_names = tuple(name for name, site in sites.items() if site["is_observed"])
        if not self.latent_sites or not self.observed_names:
            raise ValueError(
                f"a program needs a latent and an observed site in plate '{self.plate}', got "
                f"latent {[site.name for site in self.latent_sites]} and observed "
                f"{list(self.observed_names)}; was the data passed on as obs=?"
            )
        first = next(site for site in sites.values() if not site["is_observed"])
        self.dtype, self.device = first["value"].dtype, first["value"].device

    @property
    def latents(self) -> int:
        """Entries of the flat latent vector of one datum."""
        return sum(site.size for site in self.latent_sites)

    def _own_prototype(self) -> Batch:
        prototype = getattr(self.model, "prototype", None)
        if prototype is None:
            name = getattr(self.model, "__name__", type(self.model).__name__)
            raise ValueError(
                f"the program '{name}' has to be run once to find its latent sites: "
                "pass a few rows of data, as in pv.Guide(model, map, example=y[:2])"
            )
        with evaluating(self.model), torch.no_grad():
            return as_tuple(prototype())

    def _prototype(self, batch: Batch, plate: str | None) -> dict[str, Any]:
        """Finds the plate over data; returns the sites in it that carry a density."""
        for index, part in enumerate(batch):
            if part.dim() == 0 or len(part) == 0:
                raise ValueError(
                    f"a program needs at least one row of data, tensor {index} has none"
                )
        row = tuple(part[:1] for part in batch)
        two, three = (self._trace(repeat_rows(row, rows)) for rows in (2, 3))
        frame = _data_plate(two, three, plate)
        self.plate, self.plate_dim = frame.name, frame.dim
        self.num_data = frame.full_size if frame.full_size != frame.size else None
        sites = {name: site for name, site in two.items() if _is_density(site)}
        for name, site in sites.items():
            if all(frame.name != self.plate for frame in site["cond_indep_stack"]):
                kind = "observed" if site["is_observed"] else "latent"
                raise ValueError(
                    f"{kind} site '{name}' is outside the plate over data '{self.plate}': a "
                    "datum has no density of its own then; move it into the plate, or fix its "
                    "value with pyro.condition"
                )
        return sites

    def _trace(self, batch: Batch) -> dict[str, Any]:
        with evaluating(self.model), torch.no_grad(), forked_seed(0), poutine.block():
            return dict(poutine.trace(self.model).get_trace(*batch).nodes)

    def split(self, z: Float[Tensor, "rows latents"]) -> list[Tensor]:
        """The part of each latent site in flat vectors, each `(rows, size)`."""
        return list(z.split([site.size for site in self.latent_sites], dim=-1))

    def constrain(self, z: Float[Tensor, "rows latents"]) -> tuple[dict[str, Tensor], Tensor]:
        """Values of the latent sites for flat vectors, and the log Jacobian, `(rows,)`."""
        values, jacobian = {}, z.new_zeros(len(z))
        for site, part in zip(self.latent_sites, self.split(z), strict=True):
            values[site.name], log_jacobian = site.constrain(part)
            jacobian = jacobian + _sum_but(log_jacobian, site.axis)
        return values, jacobian

    def flatten(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Flat vectors `(rows, latents)` for values of the latent sites, and the log Jacobian."""
        pairs = [site.flatten(values[site.name]) for site in self.latent_sites]
        jacobians = [
            _sum_but(log_jacobian, site.axis)
            for site, (_, log_jacobian) in zip(self.latent_sites, pairs, strict=True)
        ]
        return torch.cat([flat for flat, _ in pairs], dim=-1), torch.stack(jacobians).sum(dim=0)

    def log_densities(
        self, z: Float[Tensor, "particles batch latents"], *batch: Tensor
    ) -> LogDensities:
        r"""Log prior of the flat latents and log likelihood of the data, for every particle.

        .. math:: \log p(z_{kn}) + \log |J|, \qquad \log p(y_n \mid z_{kn})

        Arguments:
            z: Flat unconstrained latents, `(particles, batch, latents)`.
            batch: What the program is called with, each with `batch` rows.

        Returns:
            Two tensors `(particles, batch)`, in nats. Never scaled by a plate or a handler.
        """
        num_particles, rows, latents = z.shape
        self._check(batch, rows, latents)
        values, jacobian = self.constrain(z.reshape(-1, latents))
        nodes = self._run(values, repeat_rows(batch, num_particles))
        likelihood = self._total(nodes, self._observed(nodes))
        prior = jacobian + self._total(nodes, list(values))
        return LogDensities(prior.view(num_particles, rows), likelihood.view(num_particles, rows))

    def log_joint(
        self, z: Float[Tensor, "particles batch latents"], *batch: Tensor
    ) -> Float[Tensor, "particles batch"]:
        r""":math:`\log p(y_n, z_{kn})` per particle and datum, `(particles, batch)`, in nats."""
        return sum(self.log_densities(z, *batch))  # type: ignore[return-value]

    def _run(self, values: dict[str, Tensor], batch: Batch) -> dict[str, Any]:
        """Runs the program with its latent sites set; outer handlers do not see it."""
        with poutine.block(), WholePlate(self.plate, len(batch[0])):
            conditioned = poutine.condition(self.model, data=values)
            return dict(poutine.trace(conditioned).get_trace(*batch).nodes)

    def _total(self, nodes: dict[str, Any], names: list[str]) -> Tensor:
        """Log densities of some sites, summed by datum."""
        return torch.stack(
            [per_datum_log_probs(nodes[name], self.plate_dim) for name in names]
        ).sum(dim=0)

    def _observed(self, nodes: dict[str, Any]) -> list[str]:
        latent = {site.name for site in self.latent_sites}
        return [name for name, site in nodes.items() if _is_density(site) and name not in latent]

    def _check(self, batch: Batch, rows: int, latents: int) -> None:
        if latents != self.latents:
            names = {site.name: site.inner_shape for site in self.latent_sites}
            raise ValueError(f"z needs {self.latents} latents (sites {names}), got {latents}")
        for index, part in enumerate(batch):
            if len(part) != rows:
                raise ValueError(
                    f"z has {rows} data (shape particles, data, latents) but tensor {index} of "
                    f"the batch has {len(part)} rows"
                )


def as_tuple(batch: Tensor | Batch) -> Batch:
    """A tuple of tensors, from one or from several."""
    return batch if isinstance(batch, tuple) else (batch,)


def _data_plate(two: dict[str, Any], three: dict[str, Any], plate: str | None) -> Any:
    """The frame of the plate whose size is 2 in one trace and 3 in the other."""
    sizes = [
        {
            frame.name: frame
            for site in nodes.values()
            if _is_density(site)
            for frame in site["cond_indep_stack"]
        }
        for nodes in (two, three)
    ]
    found = {
        name: frame
        for name, frame in sizes[0].items()
        if frame.size == 2 and name in sizes[1] and sizes[1][name].size == 3  # rows of the traces
    }
    if plate is not None:
        found = {name: frame for name, frame in found.items() if name == plate}
    if len(found) != 1:
        raise ValueError(
            f"expected one plate over data (its size is that of the batch), got {sorted(found)} "
            f"among the plates {sorted(sizes[0])}; open pyro.plate('data', len(y)) around the "
            "sites of a datum, or name the right one with plate="
        )
    (frame,) = found.values()
    if frame.dim is None:
        raise ValueError(
            f"the plate over data '{frame.name}' is a loop; use it as a context manager: "
            f"with pyro.plate('{frame.name}', len(y)): ..."
        )
    return frame


def _latent_site(site: Any, plate: str, plate_dim: int) -> LatentSite:
    function, value = site["fn"], site["value"]
    if getattr(function.support, "is_discrete", False):
        raise ValueError(
            f"latent site '{site['name']}' is discrete ({type(function).__name__}): guides hold "
            "continuous latents; sum it out of the likelihood (e.g. with pyro.distributions."
            "MixtureSameFamily)"
        )
    transform = biject_to(function.support)
    axis = value.dim() - function.event_dim + plate_dim
    _check_support(site["name"], function.support, value.shape[axis:])
    with torch.no_grad():
        unconstrained = transform.inv(value)
    shape = unconstrained.movedim(axis, 0).shape[1:]
    inner = [frame for frame in site["cond_indep_stack"] if frame.name != plate]
    return LatentSite(
        name=site["name"],
        axis=axis,
        inner_shape=tuple(shape),
        transform=transform,
        is_real=_is_real(function.support),
        event_dim=function.event_dim,
        plates=tuple((frame.name, frame.size, frame.dim) for frame in inner),
    )


def _base(support: Any) -> Any:
    """The constraint on one entry."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _is_real(support: Any) -> bool:
    return _base(support) is torch.distributions.constraints.real


def _check_support(name: str, support: Any, shape: torch.Size) -> None:
    """Refuses bounds that belong to a datum; `shape` is the value's, from the datum axis on."""
    bounds = [bound for bound in vars(_base(support)).values() if isinstance(bound, Tensor)]
    if any(bound.dim() >= len(shape) and bound.shape[-len(shape)] > 1 for bound in bounds):
        raise ValueError(
            f"the support of latent site '{name}' has bounds that belong to a datum; sample it on "
            "a support that is the same for all data, e.g. Uniform(0, 1), and rescale the value"
        )


def log_joint(
    model: ProgramLike, z: Float[Tensor, "particles batch latents"], *batch: Tensor
) -> Float[Tensor, "particles batch"]:
    r"""Evaluates :math:`\log p(y_n, z_{kn})` of a Pyro program, per particle and datum.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        z: Flat unconstrained latents, `(particles, batch, latents)`: all latent sites of a datum
            laid end to end, in the order the program samples them.
        batch: What the program is called with; the datum axis is leftmost in each tensor.

    Returns:
        `(particles, batch)`, in nats, exact; with the Jacobian where a support is constrained.

    Raises:
        ValueError: If the program or the shapes do not fit (see :class:`Program`).

    Example:
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> log_joint(model, torch.zeros(3, 2, 1), torch.tensor([0.0, 1.0])).shape
        torch.Size([3, 2])
    """
    with evaluating(model):
        return Program(model, *batch).log_joint(z, *batch)
