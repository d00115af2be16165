"""Every program under every map and family that takes it."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import pyro_vae as pv
from pyro_vae._types import Batch, ProgramLike
from pyro_vae.guides import Family
from tests.helpers.cases import CASES, Case, normal
from tests.helpers.guides import Net
from tests.helpers.idioms import IDIOMS

PROGRAMS = {**CASES, **IDIOMS}


def diagonal_density(parameters: Tensor, z: Tensor) -> Tensor:
    """Independent normals."""
    loc, log_scale = parameters.chunk(2, dim=-1)
    return normal(z, loc, log_scale.exp()).sum(-1)


def full_rank_density(parameters: Tensor, z: Tensor) -> Tensor:
    """A normal, from its covariance."""
    latents = z.shape[-1]
    loc, entries = parameters[..., :latents], parameters[..., latents:]
    factor = entries.new_zeros(*entries.shape[:-1], latents, latents)
    for place, (row, column) in enumerate(zip(*torch.tril_indices(latents, latents), strict=True)):
        entry = entries[..., place]
        factor[..., row, column] = entry.exp() if row == column else entry
    return MultivariateNormal(loc, factor @ factor.mT).log_prob(z)


def low_rank_density(parameters: Tensor, z: Tensor) -> Tensor:
    """A normal, from its covariance."""
    q = pv.LowRankNormal(1)(parameters)
    return MultivariateNormal(q.mean, q.covariance_matrix).log_prob(z)


class FamilyCase(NamedTuple):
    """How a family is made for so many latents, and its density by hand where there is one."""

    make: Callable[[int], Family]
    density: Callable[[Tensor, Tensor], Tensor] | None = None
    closed_form: bool = False  # whether it knows its member closest to a Gaussian


def flow(latents: int) -> Family:
    """A small flow; of one latent it can only be bent elementwise."""
    return pv.NormalizingFlow(num_transforms=1, context=2) if latents > 1 else flow_of_one()


def flow_of_one() -> Family:
    """An elementwise spline."""
    return pv.NormalizingFlow(transform=pv.ElementwiseSpline(), num_transforms=1, context=2)


FAMILIES = {
    "diagonal": FamilyCase(lambda _: pv.DiagonalNormal(), diagonal_density, closed_form=True),
    "full-rank": FamilyCase(lambda _: pv.FullRankNormal(), full_rank_density, closed_form=True),
    "low-rank": FamilyCase(lambda _: pv.LowRankNormal(1), low_rank_density),
    "flow": FamilyCase(flow),
}


def encoder(batch: Batch, parameters: int) -> pv.InferenceMap:
    """A linear layer on all numbers of a datum."""
    return pv.Encoder(Net.of(batch, parameters))


class MapCase(NamedTuple):
    """How a map is made for a batch and a number of parameters, and what it can be used for."""

    make: Callable[[Batch, int], pv.InferenceMap]
    families: Callable[[str], bool] = lambda _: True
    quadratic: bool = False  # whether the program's log joint must be quadratic in z


MAPS = {
    "encoder": MapCase(encoder),
    "local": MapCase(lambda batch, _: pv.LocalParameters(len(batch[0]))),
    "global": MapCase(lambda *_: pv.GlobalParameters()),
    "refined": MapCase(lambda *given: pv.Refined(encoder(*given), steps=2)),
    "refined-local": MapCase(
        lambda batch, _: pv.Refined(pv.LocalParameters(len(batch[0])), steps=2)
    ),
    "exact": MapCase(
        lambda *_: pv.ExactPosterior(), lambda name: FAMILIES[name].closed_form, quadratic=True
    ),
    "coordinate-ascent": MapCase(
        lambda *_: pv.CoordinateAscent(), lambda name: name == "diagonal", quadratic=True
    ),
}


QUADRATIC = {
    "factor-analysis", "scalar", "inner-plate", "outer-data", "missing", "covariate", "markov",
    "subsampled", "subsamples", "indexes", "pictures", "loops",
}  # fmt: skip


REPRESENTATIVE = ("factor-analysis", "gamma", "outer-data", "covariate", "clusters", "subsamples")


def triples() -> list[Any]:
    """Program, map and family: all for some programs, and one of each for the others.

    The fast ones have all pairs of map and family for one program; for the others every map with
    one family, and every family with one map.
    """
    found = []
    for program in PROGRAMS:
        for map, how in MAPS.items():
            for family in FAMILIES:
                works = how.families(family) and (not how.quadratic or program in QUADRATIC)
                stands_for_more = program in REPRESENTATIVE or (
                    family == "diagonal" and map in ("encoder", "exact")
                )
                is_fast = program == "factor-analysis" or map == "encoder" or family == "diagonal"
                if works and stands_for_more:
                    marks = () if is_fast else pytest.mark.slow
                    found.append(pytest.param(program, map, family, marks=marks))
    return found


def made(program: str, map: str, family: str) -> tuple[Case, Batch, pv.Guide]:
    """A guide with parameters of its own, some steps away from where it started."""
    case = PROGRAMS[program]
    batch = case.data()
    return case, batch, guide_of(case.program, case.latents, batch, map, family)


def guide_of(model: ProgramLike, latents: int, batch: Batch, map: str, family: str) -> pv.Guide:
    """A guide of any program, some steps away from where it started."""
    q = FAMILIES[family].make(latents)
    if isinstance(q, nn.Module):
        size = copy.deepcopy(q)
        size.setup(latents)  # type: ignore[operator]
        parameters = size.num_parameters(latents)
    else:
        parameters = q.num_parameters(latents)
    guide = pv.Guide(model, MAPS[map].make(batch, parameters), q, example=batch)
    stir(guide)
    guide.map.remember(*batch)
    return guide


def stir(guide: pv.Guide) -> None:
    """Moves every parameter and every row a little."""
    with torch.no_grad():
        for value in [*guide.parameters(), *(b for n, b in guide.named_buffers() if "table" in n)]:
            value += 0.1 * torch.randn_like(value)
