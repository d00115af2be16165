"""P-values by permutation and by rank: their level, and what they see."""

import pytest
import torch

from pyro_vae import stats
from tests.helpers.statistics import FALSE_ALARM, assert_coverage, assert_mean

REPEATS = 400


def energy_p_values(shift: float, scale: float, sizes: tuple[int, int]) -> torch.Tensor:
    """Of many pairs of samples, the second shifted and scaled."""
    pairs = [(torch.randn(sizes[0], 2), shift + scale * torch.randn(sizes[1], 2))
             for _ in range(REPEATS)]  # fmt: skip
    return torch.stack([stats.energy_test(*pair, num_permutations=19)[0].value for pair in pairs])


def test_the_energy_test_has_its_level(seed: int) -> None:
    """Equal distributions are rejected at exactly the nominal rate, at any sizes; others more."""
    torch.manual_seed(seed)
    same = energy_p_values(0.0, 1.0, (12, 25))
    assert_coverage(same > 0.2, 0.8)
    assert_mean(same, 0.525)  # uniform on 1/20 ... 1
    for wrong in ((1.0, 1.0), (0.0, 2.5)):
        with pytest.raises(AssertionError, match="resolution"):
            assert_coverage(energy_p_values(*wrong, (12, 25)) > 0.2, 0.8)


def test_the_energy_distance_is_that_of_its_definition(seed: int) -> None:
    """By all pairs, in standard deviations; and no unit plays a part."""
    torch.manual_seed(seed)
    x, y = torch.randn(7, 3).double(), 1 + torch.randn(5, 3).double()
    scale = torch.cat([x, y]).std(dim=0)
    between, own, other = (
        (a[:, None] - b).norm(dim=-1).mean()
        for a, b in ((x / scale, y / scale), (x / scale, x / scale), (y / scale, y / scale))
    )
    _, distance = stats.energy_test(x, y)
    assert distance == pytest.approx(float(1 - (own + other) / (2 * between)), abs=1e-12)
    units = torch.tensor([1e-9, 1.0, 1e9], dtype=torch.float64)
    assert stats.energy_test(x * units, y * units)[1] == pytest.approx(distance, abs=1e-9)
    equal = stats.energy_test(torch.zeros(5, 2), torch.zeros(9, 2))
    assert (float(equal[0].value), equal[1]) == (1.0, 0.0)
    with pytest.raises(ValueError, match="at least 2 draws"):
        stats.energy_test(x[:1], y)


def test_a_constant_latent_plays_no_part(seed: int) -> None:
    """Whatever its value: the other latents decide."""
    torch.manual_seed(seed)
    x, y = torch.randn(20, 1), 1 + torch.randn(20, 1)

    def tested(one: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
        chance = torch.Generator().manual_seed(1)
        p_value, distance = stats.energy_test(one, other, 19, generator=chance)
        return float(p_value.value), distance

    fixed = (torch.cat([part, torch.full((20, 1), 1e10)], dim=1) for part in (x, y))
    assert tested(*fixed) == tested(x, y)


def test_tails_are_uniform_and_ties_count(seed: int) -> None:
    """A number among its equals is no exception; one that is planted is."""
    torch.manual_seed(seed)
    reference, y = torch.randn(39, 4000), torch.randn(4000)
    p_value, _ = stats.tail_probability(y, reference)
    assert_mean(p_value, (1 + 1 / 40) / 2 + 0.0)
    assert_coverage(p_value > 0.1, 0.9)
    assert float(stats.tail_probability(torch.tensor(9.0), reference[:, 0]).value) == 1 / 40
    near = torch.full((9,), 1.0), torch.tensor(1.0 + 1e-9, dtype=torch.float64)
    assert float(stats.tail_probability(near[1], near[0].double()).value) == 0.1
    assert float(stats.tail_probability(near[1], near[0].double(), tolerance=1e-6).value) == 1.0
    assert FALSE_ALARM < 1 / 40  # no p-value of 39 draws could reject at the rate of these tests
    with pytest.raises(ValueError, match="at least 1 number"):
        stats.tail_probability(y, reference[:0])
