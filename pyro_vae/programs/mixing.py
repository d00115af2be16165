"""Checks that a program has a density per datum: rows are not mixed, and all calls agree."""

from typing import Any

import pyro
import torch
from torch import Tensor

from .._types import Batch
from ..formatting import count_of
from ..randomness import forked, generator, stream
from .modes import modules_of
from .pieces import take_rows
from .program import Program

_COMPANY = 16  # rows of the batch on which a program is tested


def require_separate_rows(program: Program, batch: Batch) -> None:
    """Refuses a program whose density of a datum depends on the other rows of the batch.

    A few rows are evaluated together. Then every second of these rows is evaluated again, in
    reverse order, so that number, content and position of the other rows change. A program that has
    passed is not checked again while its layers and the shape of a datum stay the same.

    Raises:
        ValueError: If the densities differ, although two equal calls give equal densities.
    """
    few, asked = _asked(program, batch, "rows")
    if asked in program.kept_apart:
        return
    whole = torch.arange(few, device=batch[0].device)
    some = whole.flip(0)[::2]
    together, part = (_log_joint_of(program, batch, rows, seed=0) for rows in (whole, some))
    if part is None or together is None:
        return
    if _is_close(part, together[some]).all():
        program.kept_apart.add(asked)
        return
    again = _log_joint_of(program, batch, whole, seed=1)
    if again is not None and _is_close(again, together).all():
        place = int((~_is_close(part, together[some])).nonzero()[0])
        row = int(some[place])
        raise ValueError(
            f"at the same z, log p(y, z) of datum {row} is {float(together[row]):.6g} in a batch "
            f"of {count_of(few, 'row')} and {float(part[place]):.6g} in a batch of "
            f"{count_of(len(some), 'row')}, so the program mixes rows and has no density per "
            "datum. Let no operation sum, normalize or attend over the first axis (nn.BatchNorm is "
            "allowed)"
        )


def require_one_density(program: Program, batch: Batch) -> None:
    """Refuses a program whose density at given latents differs between calls, not within a call.

    Noise of a row's own is harmless: it acts as a latent that the guide draws from its prior. But
    numbers that are drawn once per call are the same for all draws, whose spread then shows nothing
    of the error. A program that has passed is not checked again while its layers and the shape of a
    datum stay the same.

    Raises:
        ValueError: If the densities of a datum differ; the message names the remedy.
    """
    few, asked = _asked(program, batch, "calls")
    if asked in program.kept_apart:
        return
    rows = torch.arange(few, device=batch[0].device).repeat(2)
    one, other = (_log_joint_of(program, batch, rows, seed=seed) for seed in range(2))
    if one is None or other is None:
        return
    differ = ~_is_close(one, other)[:few]
    if differ.any() and _is_close(one[:few], one[few:]).all():  # equal copies may be a coincidence
        row = int(differ.nonzero()[0])
        raise ValueError(
            f"at the same z, log p(y, z) of datum {row} is {float(one[row]):.6g} in one call and "
            f"{float(other[row]):.6g} in another, so the program draws random numbers outside its "
            "sites: draw these numbers with pyro.sample inside the plate over data, as in "
            "pyro.sample('noise', dist.Uniform(0.0, 1.0)), without poutine.block"
        )
    program.kept_apart.add(asked)


def _asked(program: Program, batch: Batch, check: str) -> tuple[int, tuple[Any, ...]]:
    """Returns the number of rows to check, and all that the answer is taken to depend on."""
    few = min(len(batch[0]), _COMPANY)
    layers = [layer for module in modules_of(program.model) for layer in module.modules()]
    return few, (check, few, *(part.shape[1:] for part in batch), *layers)


def _log_joint_of(program: Program, batch: Batch, rows: Tensor, *, seed: int) -> Tensor | None:
    """Log joint of the given rows, at latents that depend only on the position of a row.

    `None` if the program raises an error.
    """
    shape = (1, _COMPANY, program.latent_dim)
    z = torch.randn(shape, generator=generator(stream(0, "rows together.latents")), device="cpu")
    z = z.to(program.device, program.dtype)[:, rows]
    try:
        with forked(seed, "rows together"), pyro.validation_enabled(is_validate=False):
            return program.log_joint(z, *take_rows(batch, rows))[0]
    except Exception:  # reported when the program is used
        return None


def _is_close(one: Tensor, other: Tensor) -> Tensor:
    """Returns a mask of the entries in which two tensors are equal up to rounding.

    Entries that are infinite or nan in either tensor count as equal.
    """
    # The rounding of matrix products, whose kernel depends on the size.
    rounding = torch.finfo(one.dtype).eps ** 0.5
    return ~((one - other).abs() > rounding * (1 + one.abs() + other.abs()))
