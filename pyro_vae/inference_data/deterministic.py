"""Values of a program's deterministic sites, at given draws of its latents.

By default, `pyro.deterministic` treats all axes of a value as event axes, even inside a plate. So
the program is run with two different numbers of rows to find out which axis is that of the data.
"""

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from .._types import Batch
from ..evidence.weights import rows_at_once
from ..programs import Program
from ..programs.pieces import slices, take_rows
from ..programs.traces import repeat_rows
from ..randomness import undisturbed
from ..results import join


def data_axes(program: Program, batch: Batch) -> dict[str, int]:
    """Returns the data axis of each deterministic site that has a value per datum, by site name.

    If discrete latents are summed out, no site is returned, because deterministic sites may depend
    on the unknown values of these latents.
    """
    if program.structure.enumerated:
        return {}
    row = take_rows(batch, slice(1))
    with undisturbed():
        two, three = (program.run(repeat_rows(row, rows)).deterministic for rows in (2, 3))
    axes = {}
    for name in (name for name in two if name in three):
        sizes = list(zip(two[name].shape, three[name].shape, strict=False))
        different = [axis for axis, (one, other) in enumerate(sizes) if one != other]
        if len(different) == 1 and sizes[different[0]] == (2, 3):
            axes[name] = different[0]
    return axes


def deterministic(
    program: Program, batch: Batch, z: Float[Tensor, "draws rows latents"]
) -> dict[str, Tensor]:
    """Computes the values of deterministic sites at draws of the flat unconstrained latents.

    Returns:
        Values of the sites that have a value per datum, `(draws, rows, *site)`, by name.
    """
    axes = data_axes(program, batch)
    if not axes:
        return {}
    draws, rows = z.shape[:2]
    flat, parts = z.flatten(0, 1), []
    row = torch.arange(rows, device=z.device).repeat(draws)
    for piece in slices(len(flat), rows_at_once(program, batch)):
        latents, _ = program.constrain(flat[piece])
        part = take_rows(batch, row[piece])
        # Without validation: a draw may be rounded to the edge of its support.
        with pyro.validation_enabled(is_validate=False), undisturbed():
            values = program.run(part, latents, program.unconstrained(flat[piece])).deterministic
        parts.append({name: values[name].movedim(axis, 0) for name, axis in axes.items()})
    return {name: value.unflatten(0, (draws, rows)) for name, value in join(parts).items()}
