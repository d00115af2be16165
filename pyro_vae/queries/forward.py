r"""From latents to data: the mean of p(y | z), draws of y, and the density of each feature.

A model with the methods `decode` and `sample_data`, such as :class:`pyro_vae.models.VAE`, computes
the mean and the draws itself. Any other program is run with given values of its latent sites and
without observations. The values at the sites that are usually observed are then a draw of y, and
the means of the distributions at these sites are the mean of y.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from .._types import Batch, Distribution, ProgramLike
from ..diagnostics.calibration import require_discrete_draws
from ..guides.entry import given_globals, no_guide, program_of
from ..programs import ModelHooks, Program, TracedSite, evaluating
from ..programs.hooks import hooks_of
from ..programs.missing import sample_missing
from ..programs.simulation import feature_distribution, generated, with_observed
from ..programs.traces import repeat_rows
from ..randomness import forked

_ROWS_AT_ONCE = 4096  # rows passed to the program at a time; only memory use depends on this

_Read = Callable[[TracedSite], Tensor]


@contextmanager
def simulating(
    model: ProgramLike,
    guide: ProgramLike | None,
    batch: Batch,
    seed: int,
    given: Mapping[str, Tensor] | None,
) -> Iterator[Program]:
    """Yields a model's program for simulation, in evaluation mode.

    Only the shapes and the covariates of the batch are used, so the values of the data need not lie
    in the support of the likelihood. The guide is used only for the values of latent sites that all
    data share.
    """
    proposal = guide or no_guide
    with evaluating(model, proposal), torch.no_grad(), forked(seed, "queries.unkeyed"):
        program = program_of(model, proposal, batch)
        yield given_globals(program, proposal, batch, given)


def decoded(
    program: Program, z: Float[Tensor, "draws batch latents"], batch: Batch
) -> Float[Tensor, "draws batch *datum"]:
    """Computes the mean of p(y | z) for each draw of z and each datum.

    Raises:
        ValueError: If a discrete site is summed out, or a distribution has no mean.
    """
    decode = _own_methods(program).decode
    return decode(z, *batch[1:]) if decode else _by_pieces(program, z, batch, _mean)


def drawn(program: Program, z: Float[Tensor, "draws batch latents"], batch: Batch) -> Tensor:
    """Draws a y from p(y | z) for each z, `(draws, batch, *datum)`.

    The draws come from torch's global random stream.
    """
    sample = _own_methods(program).sample_data
    return sample(z, *batch[1:]) if sample else _by_pieces(program, z, batch, _value)


def drawn_missing(
    program: Program, z: Float[Tensor, "draws batch latents"], batch: Batch
) -> Tensor:
    """Draws the values of missing entries given z.

    If the model describes how the values influence which entries are missing, the draws are also
    conditional on the fact that these entries are missing.
    """
    sample = _own_methods(program).sample_missing
    return sample(z, *batch[1:]) if sample else _by_pieces(program, z, batch, _missing_value)


def features(program: Program, z: Float[Tensor, "draws latents"], batch: Batch) -> Distribution:
    """Returns p(y | z) of one row as a distribution over independent features.

    Its draws have the shape `(draws, *datum)`.

    Raises:
        ValueError: If the features of a datum are not independent given z, or the program has
            several observed sites.
    """
    if _own_methods(program).decode is None:
        _check_continuous(program)
    return feature_distribution(program, z.unsqueeze(1), batch)


def _own_methods(program: Program) -> ModelHooks:
    """Returns the model's own methods `decode` and `sample_data`, if they can be used.

    The model must have both methods. Its latents must be real numbers, and no latent may be shared
    by all data. Otherwise, the result contains no methods.
    """
    hooks = hooks_of(program.model)
    has_both = hooks.decode is not None and hooks.sample_data is not None
    is_flat = not program.global_sites and all(site.is_real for site in program.latent_sites)
    return hooks if has_both and is_flat else ModelHooks()


def _by_pieces(program: Program, z: Tensor, batch: Batch, read: _Read) -> Tensor:
    """Runs the program on a few draws of z at a time, and reads the observed sites with `read`.

    Returns the values that replace the first tensor of the batch, `(draws, batch, *datum)`.
    """
    _check_continuous(program)
    parts = []
    for piece in z.split(max(1, _ROWS_AT_ONCE // len(batch[0]))):
        rows = repeat_rows(batch, len(piece))
        run = generated(program, piece, rows)
        values = {name: read(run[name]) for name in program.observed_names}
        first = values[program.observed_names[0]]
        is_whole = len(values) == 1 and first.shape == rows[0].shape
        data = first if is_whole else with_observed(program, rows, values, fill=True)[0]
        parts.append(data.unflatten(0, piece.shape[:2]))
    return torch.cat(parts)


def _check_continuous(program: Program) -> None:
    """Refuses programs with discrete latent sites, because such sites have no draws."""
    remedy = (
        "add to the model the methods decode(z) and sample_data(z), which take only the continuous "
        "latents"
    )
    require_discrete_draws(program, "data cannot be generated", remedy)


def _value(site: TracedSite) -> Tensor:
    return site.value


def _missing_value(site: TracedSite) -> Tensor:
    missing = sample_missing(site.distribution)
    return site.value if missing is None else missing


def _mean(site: TracedSite) -> Tensor:
    try:
        mean: Tensor = site.distribution.mean
    except NotImplementedError:
        mean = torch.full((1,), math.nan, device=site.value.device)
    if bool(mean.isnan().any()):
        raise ValueError(
            f"the distribution {type(site.distribution).__name__} of site '{site.name}' has no "
            "mean: use draws instead, such as those of pv.queries.reconstruction_draws"
        )
    return mean.expand(site.value.shape)
