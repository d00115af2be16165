"""Random small programs: densities against formulas, log p(y) and ELBO against a grid.

One to three sites of mixed supports, masks, enumeration, scales, shared sites, factors, obs_mask
and plates inside a datum; the guide is written by hand and may sample the discrete site and mask.
"""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from tests.helpers.random_programs import ROWS, Spec, data_of

ERRORS = 6.0  # of a normal: 300 programs of 3 data fail by chance once in 500,000 runs
ROUNDING = 2e-4  # in float32, of sums of terms below a few hundred


def check(seed: int, *, tightest: bool = False) -> None:
    """Asks a program everything; the seed is in every message."""
    spec, data = Spec.of(seed), data_of(seed)
    words = f"seed {seed}: {spec}"
    try:
        check_density(spec, data, seed, words)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_evidence(spec, data, words, tightest=tightest)
    except AssertionError:
        raise
    except Exception as error:
        error.add_note(words)
        raise


def check_density(spec: Spec, data: tuple[Tensor, ...], seed: int, words: str) -> None:
    """The log joint at random points is the formula's."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(5, ROWS, len(spec.names()), generator=generator)
    u = {name: z[..., place].double() for place, name in enumerate(spec.names())}
    found = pv.log_joint(spec.model, z, *data, given=spec.given).double()
    truth = spec.log_joint(u, *data)
    off = (found - truth).abs() / (1 + truth.abs())
    assert (off < ROUNDING).all(), f"log joint off by {off.max()}, relative: {words}"


def check_evidence(spec: Spec, data: tuple[Tensor, ...], words: str, *, tightest: bool) -> None:
    """No ELBO above log p, and log p right wherever it is called reliable."""
    truth, given = spec.log_evidence(*data), spec.given or None
    found = pv.evaluate(
        spec.model, spec.guide, data, pv.ImportanceSampling(1000), given=given, progress=False
    )
    above = found.bound.value - truth
    assert (above < ERRORS * found.bound.error + ROUNDING).all(), f"ELBO {above} above: {words}"
    near(found.log_marginal, truth, words)
    if tightest:
        best = pv.log_marginal_likelihood(
            spec.model, spec.guide, data, pv.Tightest(1000), given=given, progress=False
        )
        near(best, truth, words)


def near(result: Any, truth: Tensor, words: str) -> None:
    """Right within its errors, where it says so."""
    off = (result.value - truth).abs()
    right = (off < ERRORS * result.error + ROUNDING) | ~result.reliable
    assert right.all(), f"log p off by {off} ± {result.error}: {words}"


@pytest.mark.parametrize("seed", range(5))
def test_random_programs(seed: int) -> None:
    """A few."""
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5, 345))
def test_many_random_programs(seed: int) -> None:
    """Some hundreds, with the tightest estimate too."""
    check(seed, tightest=True)


def test_a_wrong_truth_is_seen() -> None:
    """The wrong twins: a program with another noise, and a grid that is half a nat off."""
    spec, data = Spec.of(0), data_of(0)
    moved = (data[0] + 0.05, *data[1:])
    found = pv.log_joint(spec.model, torch.zeros(1, ROWS, len(spec.names())), *moved)
    u = {name: torch.zeros(1, ROWS).double() for name in spec.names()}
    assert ((found - spec.log_joint(u, *data)).abs() > ROUNDING).any()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = pv.log_marginal_likelihood(spec.model, spec.guide, data, pv.Tightest(1000))
    with pytest.raises(AssertionError, match="log p off by"):
        near(result, spec.log_evidence(*data) + 0.5, "")
