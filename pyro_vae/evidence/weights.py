"""The input of estimators, and the importance weights of draws from a guide, per datum.

:mod:`pyro_vae.evidence` defines the weights. Every datum has a separate random key, which is
derived from the seed and the content of the datum's row.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple, TypeGuard

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from .._arguments import naming
from .._types import Batch, Data, ProgramLike
from ..compiling import DrawDensities
from ..data.checks import check_batch, part_of_the_data
from ..guides import Posterior
from ..guides.entry import given_globals, posterior_of, program_of
from ..programs import Program, as_batch, evaluating
from ..programs.hooks import hooks_of
from ..programs.mixing import require_one_density, require_separate_rows
from ..programs.modes import device_of, modules_of, require_values
from ..programs.pieces import take_rows
from ..programs.running import bytes_per_row, threads_for_rows
from ..programs.structure import of_modelled_missingness, partly_observed
from ..programs.traces import retry_unvalidated
from ..randomness import forked, seeded, undisturbed
from ..results import join
from .proposals import Keyed
from .results import Weights

_DRAWS_AT_ONCE = 4096  # fixed, since the draws of a datum must not depend on the memory budget
_FAST_ROWS = 2048  # with fewer rows, Pyro's handlers dominate; more rows do not fit into the cache
_FAST_BYTES = 2**25  # size of results that stay in the cache; allows more rows if these are narrow
_MEBIBYTE = 2**20


class Inference(NamedTuple):
    """The input of an estimator: the model, the posterior and the data.

    Arguments:
        program: The model, with fixed values of its global sites.
        posterior: The guide's posterior of every datum.
        batch: The tensors of the data, each `(batch, *datum)`. They have been checked.
    """

    program: Program
    posterior: Posterior
    batch: Batch

    def rows(self, rows: slice | Tensor) -> "Inference":
        """Returns model, posterior and data for a subset of the data."""
        part = take_rows(self.batch, rows)
        return Inference(self.program, self.posterior.rows(rows), part)


_LOOK_AT = {
    "log_guide": "the guide's parameters",
    "log_prior": "the model's prior",
    "log_likelihood": "the decoder's output",
}


def draw_rows(
    posterior: Posterior, first: int, keys: Int64[Tensor, " rows"], num_samples: int
) -> tuple[Tensor, Tensor]:
    """Draws latents for consecutive data, one datum per key, starting at row `first`.

    Returns the draws, `(num_samples, rows, latents)`, and their log densities under the posterior.
    """
    some = posterior.rows(slice(first, first + len(keys)))
    if is_keyed(some):
        return retry_unvalidated(partial(some.draw_keyed, keys, num_samples))
    rows = (posterior.rows(slice(row, row + 1)) for row in range(first, first + len(keys)))
    pairs = zip(rows, keys.split(1), strict=True)
    with undisturbed():
        draws = [_drawn_alone(row, key, num_samples) for row, key in pairs]
    return join(draws, axis=1)


def _drawn_alone(
    posterior: Posterior, key: Int64[Tensor, " 1"], num_samples: int
) -> tuple[Tensor, Tensor]:
    """Returns the draws for one datum, and their log densities."""
    return join(retry_unvalidated(lambda: list(_row_draws(posterior, key, num_samples))))


def is_keyed(posterior: Posterior) -> TypeGuard[Keyed]:
    """Returns whether a posterior can draw for all data at once, with a separate key for each."""
    return isinstance(posterior, Keyed) and retry_unvalidated(posterior.is_keyed)


def _row_draws(
    posterior: Posterior, key: Int64[Tensor, " 1"], num_samples: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the draws for one datum and their log densities, a few thousand at a time."""
    keyed = posterior if is_keyed(posterior) else None  # before seeding, as this can run the guide
    seeded(int(key))
    for first in range(0, num_samples, _DRAWS_AT_ONCE):
        size = min(_DRAWS_AT_ONCE, num_samples - first)
        yield posterior.draw(size) if keyed is None else keyed.draw_keyed(key, size, first=first)


def weigh_row(
    program: Program,
    posterior: Posterior,
    batch: Batch,
    row: int,
    key: Int64[Tensor, " 1"],
    num_samples: int,
    limit: int,
    place: int,
) -> Weights:
    """Computes the weights of one datum from very many draws, without keeping the draws.

    The draws are made and weighed in pieces, and are equal to those of :func:`draw_rows`. The
    program runs between pieces, but takes its random numbers from another stream, so it does not
    change the draws that follow.
    """
    rows = slice(row, row + 1)
    own, part = posterior.rows(rows), take_rows(batch, rows)
    weights = []
    for z, log_guide in _row_draws(own, key, num_samples):
        with undisturbed():
            weights.append(weigh(program, z, log_guide, part, limit, places=[place]))
    return join(weights)


def weigh(
    program: Program,
    z: Tensor,
    log_guide: Tensor,
    batch: Batch,
    particles: int,
    *,
    data: int | None = None,
    places: Sequence[int] | None = None,
    densities: DrawDensities | None = None,
    rows_left: int = 0,
) -> Weights:
    """Computes the log densities of given draws in float64, and checks that they are numbers.

    Pyro validates the data with the first particles only, since the data do not change.

    Arguments:
        program: The model.
        z: Draws, `(particles, batch, latents)`.
        log_guide: Log densities of the draws under the guide, `(particles, batch)`, in nats.
        batch: The data.
        particles: Largest number of particles per call of the program.
        data: Largest number of data per call of the program; by default all.
        places: Positions of the rows in the data set, for error messages; by default 0, 1, ...
        densities: The program's log densities, compiled if that saves time.
        rows_left: Number of draws that are still to be evaluated; it decides whether to compile.
    """
    if densities is None:
        densities = DrawDensities(program, compile=False)
    prior, likelihood = densities(z, batch, particles, data=data or z.shape[1], rows_left=rows_left)
    weights = Weights(prior.double(), likelihood.double(), log_guide.double())
    for name in _LOOK_AT:
        require_numbers(name, getattr(weights, name), z, places or range(z.shape[1]))
    return weights


def require_numbers(name: str, value: Tensor, z: Tensor, places: Sequence[int]) -> None:
    """Refuses log densities that are nan or plus infinity, and minus infinity under the guide.

    Raises:
        FloatingPointError: If a log density is nan or plus infinity, or if a log density under the
            guide is minus infinity. The message names the datum and the draw.
    """
    # A draw can have density 0 under the model, but not under the guide that it was drawn from.
    legal = value.isfinite() if name == "log_guide" else value < torch.inf
    if not bool(legal.all()):
        particle, datum = (~legal).nonzero()[0].tolist()
        allowed = "finite" if name == "log_guide" else "finite or minus infinity"
        raise FloatingPointError(
            f"{name} is {float(value[particle, datum])} for particle {particle} of datum "
            f"{places[datum]}, at z = {z[particle, datum].tolist()}, but it must be {allowed}: "
            f"check {_LOOK_AT[name]} for this datum"
        )


def normalized(
    log_weights: Float[Tensor, "particles *batch"],
) -> Float64[Tensor, "particles *batch"]:
    """Divides the weights of each datum by their sum.

    If all weights of a datum are 0, or if one is nan, the datum's particles get equal weights.
    """
    return log_weights.double().softmax(dim=0).nan_to_num(nan=1 / len(log_weights))


def systematic(
    log_weights: Float[Tensor, "particles batch"], level: Float[Tensor, " batch"], number: int
) -> Int64[Tensor, "number batch"]:
    """Resamples each datum's particles systematically; returns the chosen particles' positions.

    Arguments:
        log_weights: Logarithms of the weights, which need not be normalized.
        level: One uniform random number between 0 and 1 per datum.
        number: Number of positions per datum.
    """
    edges = normalized(log_weights).cumsum(dim=0).T.contiguous()
    places = torch.arange(number, device=edges.device)
    ticks = (places + level.double()[:, None]) / number
    return torch.searchsorted(edges, ticks).clamp(max=len(log_weights) - 1).T


@contextmanager
def conditioned(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    seed: int,
    given: Mapping[str, Tensor] | None = None,
) -> Iterator[Inference]:
    """Checks data, model and guide, and yields the input of an estimator.

    The `with` block runs in evaluation mode, without gradients, with a separate random stream.
    """
    batch = as_batch(data, device_of(model, guide))
    check_data(model, batch)
    _require_trained({"model": model, "guide": guide})
    with evaluating(model, guide), torch.no_grad(), forked(seed, "evidence.unkeyed"):
        program = retry_unvalidated(partial(program_of, model, guide, batch))
        program = given_globals(program, guide, batch, given)
        if len(batch[0]) > 1:
            require_separate_rows(program, batch)
        require_one_density(program, batch)
        with threads_for_rows(program, batch):
            yield Inference(program, posterior_of(guide, program, batch), batch)


def _require_trained(programs: Mapping[str, ProgramLike]) -> None:
    """Refuses parameters that are nan, for example because training diverged."""
    for role, program in programs.items():
        modules = modules_of(program)
        require_values(modules)
        for module in modules:
            for name, parameter in module.named_parameters():
                if bool(parameter.isnan().any()):
                    raise FloatingPointError(
                        f"parameter '{name}' of the {role} has nan entries, so log densities of "
                        f"the {role} would be nan: train again with a smaller step size, or load "
                        "another checkpoint"
                    )


def require_evidence(value: Float[Tensor, " batch"], name: str, cause: str) -> None:
    """Refuses values of log p(y) that are nan or plus infinity.

    Arguments:
        value: The values, in nats.
        name: What to call the values in the message.
        cause: What the message tells the user to check.

    Raises:
        FloatingPointError: If a value is nan or plus infinity.
    """
    wrong = (~(value < torch.inf)).nonzero()[:, 0]
    if len(wrong) > 0:
        row = int(wrong[0])
        raise FloatingPointError(
            f"{name} is {float(value[row])} for datum {row}, but it must be finite or minus "
            f"infinity: check {cause} for this datum"
        )


def check_data(
    model: ProgramLike, batch: Batch, argument: str = "data", *, for_training: bool = False
) -> None:
    """Checks the data: shapes, nan and inf, and the values that the likelihood allows.

    A nan is allowed if the program treats it as a missing entry (see `PartlyObserved`). Error
    messages refer to the data by the name `argument`. If `for_training`, the data are a
    whole training set, and a warning names constant columns.
    """
    check = hooks_of(model).check
    with naming(argument), nullcontext() if for_training else part_of_the_data():
        missing = partly_observed(model, batch)
        empty = of_modelled_missingness(model, batch) if missing else ()
        check_batch(*batch, missing=missing, empty=empty)
        if check is not None:
            check(batch[0])


def check_more_data(model: ProgramLike, batch: Batch, more: Batch, argument: str) -> None:
    """Checks further data, such as validation data, and runs the model on two of the rows.

    So wrong columns are found before training. If the model fails on the training data `batch`,
    too, the error from the training data is raised.
    """
    check_data(model, more, argument)
    first, second = (take_rows(rows, slice(2)) for rows in (batch, more))
    check_data(model, first)
    with evaluating(model), torch.no_grad(), forked(0, "unused"):
        retry_unvalidated(partial(Program, model, *first))
        with naming(argument):
            retry_unvalidated(partial(Program, model, *second))


def rows_at_once(program: Program, batch: Batch, memory: float = 256.0) -> int:
    """Returns the number of rows that a program should evaluate at once.

    The program's results for these rows fit into `memory`, in MiB, and into the processor's cache.
    """
    size = max(1, bytes_per_row(program, batch))
    fast = max(_FAST_ROWS, int(_FAST_BYTES / size))
    return max(1, min(fast, int(memory * _MEBIBYTE / size)))
