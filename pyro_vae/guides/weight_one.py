r"""Discrete and masked sites of guides written by hand, and their importance weights.

A program has a density :math:`p(y, z)` of its continuous latents, with discrete sites summed out.
A guide that samples a discrete site c, too, has the weights

.. math:: \frac{p(y, z, c)}{q(z, c)} = \frac{p(y, z)}{q(z, c) \, / \, p(c \mid y, z)} ,

so that the density of its draws is the denominator on the right. A latent that guide and model mask
in the same way has no density in either: in the guide it gets the density that it has in the model,
which cancels (see :mod:`pyro_vae.programs.masks`). If only one of the two masks it, both have their
full densities.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from .._types import Batch
from ..programs import LatentSite, Program, Run, TracedSite, sum_but
from ..randomness import forked
from .contract import sampled_sites

_ROWS_AT_ONCE = 1000  # of a look at masks
_TOLERANCE = 1e-4  # relative: what float32 may round of a log density


def drawn_discrete(program: Program, run: Run) -> list[str]:
    """Names of the model's discrete sites that a guide sampled."""
    return [name for name in program.structure.enumerated if name in run]


def completed(program: Program, run: Run, rows: Batch, log_q: Tensor) -> Tensor:
    """Log density of a guide's draws, as importance weights need it, `(rows,)`.

    Arguments:
        program: The model.
        run: The guide's run on these rows.
        rows: The arguments of the run.
        log_q: Log density of all that it drew, without masks.
    """
    log_q = mask_completed(program, run, rows, log_q)
    drawn = drawn_discrete(program, run)
    if not drawn:
        return log_q
    values = run.values([*(site.name for site in program.latent_sites), *drawn])
    joint = program.log_joint_at(values, rows)
    marginal = {name: value for name, value in values.items() if name not in drawn}
    return log_q - (joint - program.log_joint_at(marginal, rows))


def mask_completed(program: Program, run: Run, rows: Batch, log_q: Tensor) -> Tensor:
    """Completes sites that guide and model mask alike, using the model's density."""
    masked = [
        site
        for site in program.latent_sites
        if site.name in program.structure.masked and run[site.name].entry_mask is not None
    ]
    at = program.drawing(drawn_discrete(program, run))
    if not masked or at.structure.enumerated:  # masks may depend on what is summed out
        return log_q
    names = [name for name in sampled_sites(program) if name in run]
    model = at.run(rows, run.values(names))
    pairs = (_same_rows(site, run[site.name], model[site.name]) for site in masked)
    alike = torch.stack(list(pairs)).all(dim=0)
    own, theirs = (_left_out(program, part, masked) for part in (run, model))
    return torch.where(alike, log_q - own + theirs, log_q)


def _left_out(program: Program, run: Run, masked: list[LatentSite]) -> Tensor:
    """Log density removed by masks, by datum."""
    parts = [run[site.name].left_out for site in masked]
    return torch.stack([sum_but(part, part.dim() + program.plate_dim) for part in parts]).sum(0)


def _same_rows(layout: LatentSite, one: TracedSite, other: TracedSite) -> Bool[Tensor, " rows"]:
    """Rows in which both mask the same entries."""
    masks = one.entry_mask, other.entry_mask
    if masks[0] is None or masks[1] is None:
        value = other.value.movedim(layout.axis, 0)
        return torch.zeros(len(value), dtype=torch.bool, device=value.device)
    differs = (masks[0] != masks[1]).movedim(layout.axis, 0)
    return ~differs.flatten(1).any(dim=1) if differs.dim() > 1 else ~differs


@torch.no_grad()
def check_masks(program: Program, batch: Batch) -> None:
    """Refuses a program in which something depends on masked values.

    The masked entries of one run get their values from another run, and no other density may
    change.

    Raises:
        ValueError: If something does; the message names the masked site and one that depends on it.
    """
    if not program.structure.masked:
        return
    for part in zip(*(part.split(_ROWS_AT_ONCE) for part in batch), strict=True):
        with forked(0, "masks"):
            one, other = (program.run(part) for _ in range(2))
        names = sampled_sites(program)
        masks = {name: one[name].entry_mask for name in names if name in program.structure.masked}
        moved = {
            name: torch.where(mask, one[name].value, other[name].value)
            for name, mask in masks.items()
            if mask is not None
        }
        there = program.run(part, {**one.values(names), **moved})
        for name, site in one.inside.items():
            if not torch.allclose(
                site.kept, there[name].kept, _TOLERANCE, _TOLERANCE, equal_nan=True
            ):
                raise ValueError(
                    f"masks remove the density of the latent site(s) {sorted(moved)} for some "
                    f"data, but the density of site '{name}' depends on their values there, so "
                    "log p(y) is not defined: sample them unmasked, and mask only what is observed"
                )
