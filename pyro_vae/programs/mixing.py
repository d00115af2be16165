"""Checks that a program has a density per datum: no row affects another, and all calls agree."""

import pyro
import torch
from torch import Tensor

from .._types import Batch
from ..formatting import count_of
from ..randomness import forked, generator, stream
from .modes import modules_of
from .pieces import take_rows
from .program import Program

_MOST_ROWS = 16  # of the batch, on which a program is tested


def require_separate_rows(program: Program, batch: Batch) -> None:
    """Refuses a program in which the density of a datum depends on other rows of the batch.

    A few rows are evaluated together. Then every second of these rows is evaluated again, in
    reverse order, so that the other rows differ in number, content and position. A program that has
    passed is not checked again while its layers and the shape of a datum stay the same.

    Raises:
        ValueError: If the densities differ, although two equal calls give equal densities.
    """
    few, check = _check_of(program, batch, "rows")
    if check in program.passed_checks:
        return
    whole = torch.arange(few, device=batch[0].device)
    some = whole.flip(0)[::2]
    together, part = (_log_joint_of(program, batch, rows, seed=0) for rows in (whole, some))
    if part is None or together is None:
        return
    if _is_close(part, together[some]).all():
        program.passed_checks.add(check)
        return
    again = _log_joint_of(program, batch, whole, seed=1)
    if again is not None and _is_close(again, together).all():
        place = int((~_is_close(part, together[some])).nonzero()[0])
        row = int(some[place])
        raise ValueError(
            "the density of a datum must not depend on the other rows of a batch; got log p(y, z) "
            f"= {float(together[row]):.6g} for datum {row} in a batch of {count_of(few, 'row')}, "
            f"but {float(part[place]):.6g} for the same datum and the same z in a batch of "
            f"{count_of(len(some), 'row')}, so the program mixes rows: let no operation sum, "
            "normalize or attend over the first axis (nn.BatchNorm is allowed)"
        )


def require_one_density(program: Program, batch: Batch) -> None:
    """Refuses a program that draws random numbers once per call, outside its sites.

    A few rows are evaluated twice within a call, at the same latents, and then in another call. The
    program is refused if the calls differ but the copies within a call agree. Numbers that are
    drawn for each row separately are harmless: they act as a latent that the guide draws from its
    prior. But all draws of z share the numbers that are drawn once per call, so the error that is
    estimated from the spread between these draws would be too small. A program that has passed is
    not checked again while its layers and the shape of a datum stay the same.

    Raises:
        ValueError: If the densities of a datum differ; the message names the remedy.
    """
    few, check = _check_of(program, batch, "calls")
    if check in program.passed_checks:
        return
    rows = torch.arange(few, device=batch[0].device).repeat(2)
    one, other = (_log_joint_of(program, batch, rows, seed=seed) for seed in range(2))
    if one is None or other is None:
        return
    differ = ~_is_close(one, other)[:few]
    if differ.any() and _is_close(one[:few], one[few:]).all():  # equal copies may be a coincidence
        row = int(differ.nonzero()[0])
        raise ValueError(
            "the density of a datum must be the same in every call; got log p(y, z) = "
            f"{float(one[row]):.6g} for datum {row} in one call, but {float(other[row]):.6g} for "
            "the same datum and the same z in another call, so the program draws random numbers "
            "outside its sites: draw these numbers with pyro.sample inside the plate over data, as "
            "in pyro.sample('noise', dist.Uniform(0.0, 1.0)), without poutine.block"
        )
    program.passed_checks.add(check)


def _check_of(program: Program, batch: Batch, name: str) -> tuple[int, tuple[object, ...]]:
    """Returns the number of rows to check, and the key under which a passed check is stored.

    The key contains everything that is assumed to affect the result of the check.
    """
    few = min(len(batch[0]), _MOST_ROWS)
    layers = [layer for module in modules_of(program.model) for layer in module.modules()]
    return few, (name, few, *(part.shape[1:] for part in batch), *layers)


def _log_joint_of(program: Program, batch: Batch, rows: Tensor, *, seed: int) -> Tensor | None:
    """Log joint of the given rows, at latents that depend only on the position of a row.

    `None` if the program raises an error.
    """
    shape = (1, _MOST_ROWS, program.latent_dim)
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
