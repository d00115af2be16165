"""Every program, under every map, with every family: a new one is a line in a table here.

A few programs, which stand for the rest, go through all pairs of map and family, most of them in
the slow tests; all the others go through one pair of each kind.
"""

import copy
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae._types import Batch
from pyro_vae.evidence.weights import conditioned
from pyro_vae.guides import Family
from pyro_vae.programs import evaluating
from tests.helpers.cases import NUM_DATA, Case
from tests.helpers.conformance import FAMILIES, MAPS, guide_of, made, triples
from tests.helpers.training import assert_same_state, fit, state

pytestmark = pytest.mark.usefixtures("float64", "user_param_store")


# ---------------------------------------------------------------------- the tables


every = pytest.mark.parametrize(("program", "map", "family"), triples())
PAIRS = sorted({(map, family) for _, map, family in (triple.values for triple in triples())})


def weights(case: Case, guide: pv.Guide, batch: Batch, rows: Tensor, seed: int = 0) -> Tensor:
    """Log weights of some rows of the data."""
    part = tuple(tensor[rows] for tensor in batch)
    with pv.minibatch(rows, NUM_DATA):
        return pv.log_weights(case.program, guide, *part, num_samples=3, seed=seed)


ALL = torch.arange(NUM_DATA)
same = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)

# ---------------------------------------------------------------------- what holds for all


@every
def test_log_weights(program: str, map: str, family: str) -> None:
    """Log p(y, z) written by hand, less log q(z) written by hand, at the draws that were taken."""
    case, batch, guide = made(program, map, family)
    with conditioned(case.program, guide, batch, 0) as inference:
        posterior = inference.posterior
        sampling = pv.ImportanceSampling(4).sampling(inference, seed=0, progress=False)
        for block in sampling.blocks():
            z, part = block.z, tuple(tensor[block.rows] for tensor in batch)
            parameters = posterior.parameters[block.rows]  # type: ignore[attr-defined]
            by_hand = FAMILIES[family].density
            log_q = by_hand(parameters, z) if by_hand else alone(guide.family, parameters, z)
            expected = case.density(z, *part) - log_q  # a covariance is inverted in some of these
            torch.testing.assert_close(block.weights.log_weights, expected, rtol=1e-6, atol=1e-6)
            shifted = case.density(z + 0.1, *part) - log_q  # the wrong twin: other draws
            assert (shifted - block.weights.log_weights).abs().max() > 1e-3


def alone(family: Family, parameters: Tensor, z: Tensor) -> Tensor:
    """Log q of every draw of every datum by itself."""
    columns = [
        torch.stack([family(row[None]).log_prob(draw[None])[0] for draw in draws])
        for row, draws in zip(parameters, z.unbind(1), strict=True)
    ]
    return torch.stack(columns, dim=1)


@every
def test_training_moves_everything(program: str, map: str, family: str) -> None:
    """Every tensor of the guide that can be trained; and what is trained has no nan."""
    case, batch, guide = made(program, map, family)
    before = state(guide)
    data = batch if len(batch) > 1 else batch[0]
    if map in ("exact", "coordinate-ascent"):
        with pytest.raises(ValueError, match="nothing to train"):
            fit(case.program, guide, data, num_epochs=1, train_model=False)
        return
    fit(case.program, guide, data, num_epochs=1)
    after = state(guide)
    trained = [f"0.{name}" for name, _ in guide.named_parameters()]
    trained += [name for name in after if name.endswith("table")]
    assert trained
    for name in trained:
        moved = after[name].numel() == 0 or bool((after[name] != before[name]).any())
        assert moved, f"{name} was not trained"
        assert after[name].isfinite().all(), name


@every
def test_saved_state(program: str, map: str, family: str) -> None:
    """A guide made anew, with the tensors of another, says what that one says."""
    case, batch, guide = made(program, map, family)
    torch.manual_seed(1)
    other = made(program, map, family)[2]
    expected = weights(case, guide, batch, ALL)
    if state(other):
        assert not torch.equal(weights(case, other, batch, ALL), expected)
    other.load_state_dict(copy.deepcopy(guide.state_dict()))
    assert_same_state(state(other), state(guide))
    assert torch.equal(weights(case, other, batch, ALL), expected)


@every
def test_the_same_numbers_in_any_order(program: str, map: str, family: str) -> None:
    """The seed and the datum decide: not the order of the rows, nor how many come with it."""
    case, batch, guide = made(program, map, family)
    expected = weights(case, guide, batch, ALL)
    assert torch.equal(weights(case, guide, batch, ALL), expected)
    assert not torch.equal(weights(case, guide, batch, ALL, seed=1), expected)
    if len({tuple(row.reshape(-1).tolist()) for row in batch[0]}) < NUM_DATA and len(batch) == 1:
        return  # of equal rows the first has the first stream
    order = torch.randperm(NUM_DATA)
    same(weights(case, guide, batch, order), expected[:, order])
    for row in (0, NUM_DATA - 1):
        same(weights(case, guide, batch, torch.tensor([row])), expected[:, [row]])


@every
def test_evaluation_changes_nothing(program: str, map: str, family: str) -> None:
    """Not a bit of the guide, nor its mode, nor the caller's random stream."""
    case, batch, guide = made(program, map, family)
    before, stream = state(guide), torch.get_rng_state()
    weights(case, guide, batch, ALL)
    assert_same_state(state(guide), before)
    assert guide.training
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize(("map", "family"), PAIRS)
@pytest.mark.parametrize("program", ["factor-analysis"])
def test_both_precisions(program: str, map: str, family: str) -> None:
    """The same guide in float32 and float64 says the same, to the precision of the former."""
    case, batch, guide = made(program, map, family)
    z = torch.randn(3, NUM_DATA, case.latents)
    with evaluating(guide), pv.minibatch(ALL, NUM_DATA), torch.no_grad():
        expected = guide.posterior(*batch).log_prob(z)
    single = copy.deepcopy(guide).to(torch.float32)
    torch.set_default_dtype(torch.float32)  # the fixture puts the old one back
    batch = tuple(part.float() for part in batch)
    with evaluating(single), pv.minibatch(ALL, NUM_DATA), torch.no_grad():
        posterior = single.posterior(*batch)
        log_q = posterior.log_prob(z.float())
        assert posterior.draw(2)[0].dtype == log_q.dtype == torch.float32
    if map.startswith("refined") and not posterior.is_keyed():
        return  # its steps follow draws of torch's own, which are others in each precision
    tolerance = 0.02 if map.startswith("refined") else 1e-3  # steps follow the rounding
    torch.testing.assert_close(log_q.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("map", "family"), PAIRS)
def test_save_and_load(map: str, family: str, tmp_path: Path) -> None:
    """A model of ours comes back from its folder with any guide, and nothing passed."""
    likelihood = pv.likelihoods.Gaussian(sigma=0.5)
    model = pv.models.VAE(nn.Linear(2, 3), likelihood, latent_dim=2)
    y = torch.randn(NUM_DATA, 3)
    guide = guide_of(model, 2, (y,), map, family)
    pv.save(tmp_path / "folder", model=model, guide=guide)
    loaded: tuple[Any, Any] = pv.load(tmp_path / "folder")
    expected = pv.log_weights(model, guide, y, num_samples=3)
    assert torch.equal(pv.log_weights(*loaded, y, num_samples=3), expected)
    assert math.isfinite(expected.sum())


OTHERS = [(map, family) for map in MAPS for family in FAMILIES if not MAPS[map].families(family)]


@pytest.mark.parametrize(("map", "family"), OTHERS)
def test_other_families_are_refused(map: str, family: str) -> None:
    """With a remedy; the triples above are all that is taken, as README says."""
    with pytest.raises(TypeError, match=r": use pv\."):
        made("factor-analysis", map, family)
