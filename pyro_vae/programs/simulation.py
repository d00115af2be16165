r"""Draws from a program's prior, and simulation of data together with their latents."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .._types import Batch, Distribution
from ..formatting import listed
from ..randomness import forked
from .missing import unwrapped, with_missing
from .pieces import take_rows
from .program import Program
from .running import bytes_per_row
from .traces import Run, repeat_rows

_ROWS_AT_ONCE = 256  # rows per run of the program that draws; the draws depend on it
_DRAWN = 64  # tries with random values of discrete sites that have too many combinations
_BYTES_AT_ONCE = 2**25  # results of a run that computes densities; they stay in the cache


@dataclass(frozen=True)
class Prior:
    r"""The prior of the latents of given data; its draws come from forward runs of the program.

    Observed sites keep their data. So draws and densities agree even if the prior of a site depends
    on an earlier observation. Draws and densities are those of
    :math:`\prod_s p(z_s \mid \text{what the program samples or observes before } z_s)`, where
    s counts the latent sites.

    Arguments:
        program: The model, with the values of its global latents given.
        batch: The data, including covariates that the prior may depend on.
    """

    program: Program
    batch: Batch

    def __len__(self) -> int:
        """Number of data."""
        return len(self.batch[0])

    def rows(self, rows: slice | Tensor) -> "Prior":
        """Returns the prior of the latents of the selected rows."""
        return replace(self, batch=take_rows(self.batch, rows))

    def sample(self, num_particles: int) -> Float[Tensor, "particles batch latents"]:
        """Returns prior draws for every datum; runs the program for a few particles at a time."""
        size = max(1, _ROWS_AT_ONCE // len(self))
        whole, rest = divmod(num_particles, size)
        pieces = [size] * whole + [rest] * (rest > 0)
        return torch.cat([self._drawn(particles) for particles in pieces])

    def draw(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Returns prior draws for every datum, and log densities `(particles, batch)`, in nats."""
        z = self.sample(num_particles)
        return z, self.log_prob(z)

    def log_prob(self, z: Float[Tensor, "particles batch latents"]) -> Tensor:
        """Log prior density of flat latents, in nats; includes the Jacobian of the transforms."""
        rows = int(_BYTES_AT_ONCE / max(1, bytes_per_row(self.program, self.batch)))
        parts = z.split(max(1, max(_ROWS_AT_ONCE, rows) // len(self)))
        return torch.cat([self.program.log_densities(part, *self.batch).prior for part in parts])

    def mean(self) -> Float[Tensor, "batch latents"]:
        """Mean of 1,000 prior draws per datum, because the exact mean has no closed form."""
        return self.sample(1000).mean(dim=0)

    def _drawn(self, num_particles: int) -> Float[Tensor, "particles batch latents"]:
        """Returns prior draws for every datum from a single run of the program."""
        run = self.program.run(repeat_rows(self.batch, num_particles))
        return self.program.latents_of(run)[0].view(-1, len(self), self.program.latent_dim)


def simulate(program: Program, rows: Batch, seed: int) -> tuple[Tensor, Batch]:
    """Draws latents `(batch, latents)` from the prior, and simulates a batch from these latents.

    As a check, the program is run again on the simulated batch, with the same random numbers. If
    this second run draws other values, the program uses its data not only through `pyro.sample`,
    but also directly. The latents are then not a draw from the posterior of the simulated data,
    and an error is raised.
    """
    latent = [site.name for site in program.latent_sites]
    with forked(seed, "simulate"):
        first = program.run_forward(rows)
        batch = with_observed(program, rows, first.values(program.observed_names))
    with forked(seed, "simulate"):
        second = program.run_forward(batch)
    for name in [*latent, *program.observed_names]:
        one, two = first[name], second[name]
        if not torch.equal(one.value, two.value) or not torch.equal(one.log_prob, two.log_prob):
            raise ValueError(
                f"data cannot be simulated from the program, because site '{name}' uses observed "
                "values of the batch directly: let this site use the values that pyro.sample "
                "returns"
            )
    return program.latents_of(first)[0], batch


def generated(program: Program, z: Float[Tensor, "particles batch latents"], rows: Batch) -> Run:
    """Runs a program at given latents, and draws its data.

    Arguments:
        program: The program.
        z: Flat latents of every row.
        rows: Covariates and shapes of `particles * batch` rows.
    """
    values, _ = program.constrain(z.flatten(0, 1))
    return program.run_forward(rows, values)


def replicated(
    program: Program, z: Float[Tensor, "particles batch latents"], batch: Batch
) -> Batch:
    """Draws `particles * batch` rows of data from p(y | z); covariates in `batch` are repeated."""
    rows = repeat_rows(batch, len(z))
    drawn = generated(program, z, rows)
    return with_observed(program, rows, drawn.values(program.observed_names))


def feature_distribution(
    program: Program, z: Float[Tensor, "particles batch latents"], batch: Batch
) -> Distribution:
    """Returns p(y | z) as independent distributions of features, `(particles * batch, *datum)`.

    Raises:
        ValueError: If the features of a datum are not independent given z, or the program has
            several observed sites.
    """
    rows, names = repeat_rows(batch, len(z)), program.observed_names
    _require_unaffected_by_discrete_sites(program, z, batch)
    distribution = unwrapped(generated(program, z, rows)[names[0]].distribution)
    expected = rows[0].shape
    if len(names) != 1 or distribution.event_shape or distribution.batch_shape != expected:
        raise ValueError(
            f"the model must have one observed site, with features of shape {tuple(expected)} "
            f"that are independent given z; got the observed sites {list(names)}, the first with "
            f"batch shape {tuple(distribution.batch_shape)} and event shape "
            f"{tuple(distribution.event_shape)}: observe one tensor, with a distribution of single "
            "features, as in dist.Normal(mean, sd).to_event(1)"
        )
    return distribution


def _require_unaffected_by_discrete_sites(program: Program, z: Tensor, batch: Batch) -> None:
    """Refuses a program whose data depend, given z, on discrete sites that are summed out.

    Once these sites are summed out, the features of a datum depend on each other given z. The check
    uses the first draw of z for the first datum, with every combination of values of these sites.
    """
    if not program.structure.enumerated:
        return
    combined = program.structure.discrete_values
    number = _DRAWN if combined is None else len(combined)
    values, _ = program.constrain(z[0, :1].expand(number, -1))
    if combined is not None:
        values |= combined.to(z).beside({}, {}, 1)
    run = program.run_forward(repeat_rows(take_rows(batch, slice(1)), number), values)
    features = unwrapped(run[program.observed_names[0]].distribution)
    drawn = features.sample()
    log_p = features.log_prob(drawn[:1].expand_as(drawn))
    if not torch.allclose(log_p, log_p[:1].expand_as(log_p), 1e-4, 1e-4, equal_nan=True):
        sites = listed("discrete site", program.structure.enumerated)
        raise ValueError(
            f"given z, the data still depend on the {sites}, so the features are not independent, "
            "and p(y | z) is not a product over features: check the data with "
            "pv.diagnostics.predictive_check, and compute densities with pv.marginal or "
            "pv.conditional"
        )


def with_observed(
    program: Program, rows: Batch, values: Mapping[str, Tensor], *, fill: bool = False
) -> Batch:
    """Returns a copy of the batch in which `values`, by site name, replace the data.

    If `fill` is true, the result has no missing entries. Otherwise the entries that are missing in
    `rows` stay missing, or are drawn anew if the model describes which entries are missing.
    """
    batch = tuple(part.clone() for part in rows)
    run = program.run(batch)
    for name in program.observed_names:
        observed, value = run[name].value, values[name]
        if not _is_part(observed, batch) or observed.shape != value.shape:
            raise ValueError(
                f"site '{name}' observes a tensor that the model computes from the batch, so "
                "simulated values cannot be put into the batch: compute this tensor before the "
                "model is called, and pass it to the model as data"
            )
        if not fill:
            value = with_missing(run[name].distribution, value, observed)
        observed.copy_(value)
    return batch


def _is_part(observed: Tensor, batch: Batch) -> bool:
    """Whether `observed` is a view of the batch, so that writing to it changes the batch."""
    storages = {part.untyped_storage().data_ptr() for part in batch}
    repeated = any(s == 0 and n > 1 for s, n in zip(observed.stride(), observed.shape, strict=True))
    return observed.untyped_storage().data_ptr() in storages and not repeated
