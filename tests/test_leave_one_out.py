"""Columns by leave-one-out: uniform for data of the model, and the wrong column is named."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.diagnostics import columns, leave_one_out, predictive_check
from pyro_vae.programs.simulation import feature_distribution
from pyro_vae.stats import rank_p_value
from tests.helpers.factor_analysis import mean_field_guide, model_of
from tests.helpers.statistics import FACTS, FALSE_ALARM, assert_coverage, assert_mean

pytestmark = pytest.mark.usefixtures("float64")

MODEL = model_of(FACTS)
GUIDE = mean_field_guide(FACTS, MODEL)


def test_columns_have_their_level(seed: int) -> None:
    """Over many data sets of the model p-values are uniform, though the guide is too narrow."""
    result = leave_one_out(MODEL, GUIDE, FACTS.sample(1750), 200, seed=seed)
    assert_mean((result.ranks.double() + 0.5) / 100, 0.5)
    groups = result.ranks.view(70, 25, 4)
    p_values = torch.tensor([rank_p_value(rows[:, 0], 99) for rows in groups])
    assert_coverage(p_values > 0.2, 0.8)
    assert (result.adjusted > FALSE_ALARM).all()
    assert "no miscalibration detected" in result.verdict(FALSE_ALARM)


def test_the_entry_itself_must_be_left_out(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong twin predicts an entry from itself, too: it lies too near the middle."""

    class Unseen:
        """A distribution whose density is not taken out of the weights."""

        def __init__(self, whole: Any) -> None:
            self.sample = whole.sample

        def log_prob(self, y: Tensor) -> Tensor:
            """Nothing."""
            return torch.zeros_like(y)

    monkeypatch.setattr(
        columns, "feature_distribution", lambda *args: Unseen(feature_distribution(*args))
    )
    result = leave_one_out(MODEL, GUIDE, FACTS.sample(1000), 200, seed=seed)
    assert "too wide" in result.verdict(FALSE_ALARM)


@pytest.mark.parametrize(
    ("shift", "scale", "words"), [(0.6, 1.0, "are too low"), (0.0, 1.7, "are too narrow")]
)
def test_the_wrong_column_is_named(shift: float, scale: float, words: str, seed: int) -> None:
    """By its name, and in what way it is off."""
    y = FACTS.sample(1500)
    noise = (scale**2 - 1) ** 0.5 * FACTS.noise_variance[2].sqrt() * torch.randn(1500)
    y[:, 2] += shift + noise
    result = leave_one_out(MODEL, GUIDE, y, 200, names=["a", "b", "c", "d"], seed=seed)
    assert result.p_values.argmin() == 2
    assert "the model's predictions of" in result.verdict()
    assert words in result.verdict().split("c ")[1].split(",")[0]


def test_tables_with_holes_and_kinds(seed: int) -> None:
    """Counts, categories and numbers side by side; what is missing has a random rank."""
    parts = [pv.likelihoods.Gaussian(), pv.likelihoods.Poisson(), pv.likelihoods.Categorical(3)]
    model = pv.models.VAE(nn.Linear(2, 5), pv.likelihoods.Mixed(parts), latent_dim=2).double()
    y = model.sample(1200, seed=seed)
    guide = pv.Guide(model, pv.GlobalParameters(), example=y[:2])
    right = leave_one_out(model, guide, y, 200, seed=seed)
    assert right.names == ("column 0", "column 1", "column 2")
    assert (right.adjusted > FALSE_ALARM).all()
    wrong = y.clone()
    wrong[:, 1] += 1 + wrong[:, 1]
    wrong[::3, 0] = torch.nan
    result = leave_one_out(model, guide, wrong, 200, seed=seed)
    assert result.p_values[1] < FALSE_ALARM
    assert bool(result.ess[::3, 0].isinf().all())


def test_what_cannot_be_checked(seed: int) -> None:
    """Few effective draws are said to be few; names that do not fit are refused."""
    y = FACTS.sample(40)
    few = leave_one_out(MODEL, GUIDE, y, 20, seed=seed)
    assert "fewer than 50 draws are effective" in few.summary()
    y[0, 0] = 1e200  # so that the model rules out every draw
    ruled_out = leave_one_out(MODEL, GUIDE, y, 20, seed=seed)
    assert int(ruled_out.ranks[0, 0]) == 99
    assert bool((ruled_out.ess[0] == 0).all())
    with pytest.raises(ValueError, match="`names` must be 4 names, one per column; got 1"):
        leave_one_out(MODEL, GUIDE, y, names=["a"])
    with pytest.raises(ValueError, match="at least 2 rows"):
        leave_one_out(MODEL, GUIDE, y[:1])


def test_data_of_one_number_each(seed: int) -> None:
    """Without the number itself nothing is left to condition on: its ranks are those of p(y)."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    y = dist.Normal(torch.zeros(300), 1.25**0.5).sample()
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    check = leave_one_out(model, guide, y, 400, seed=seed, progress=False)
    assert check.ranks.shape == (300, 1)
    assert_mean((check.ranks.double() + 0.5) / 100, 0.5)


class Switched(nn.Module):
    """A site c without a part in the latents; y depends on c unless `apart`; two methods of z."""

    def __init__(self, *, apart: bool) -> None:
        super().__init__()
        self.gap = 0.0 if apart else 4.0

    def forward(self, y: Tensor) -> None:
        """The program."""
        with pyro.plate("data", len(y)):
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.4)))
            z = pyro.sample("z", dist.Normal(2 * c - 1, 1.0))
            loc = (z + self.gap * c).unsqueeze(-1) + torch.zeros(2)
            pyro.sample("y", pv.PartlyObserved(dist.Normal(loc, 1.0)).to_event(1), obs=y)

    def decode(self, z: Tensor) -> Tensor:
        """Says that the discrete site need not be drawn."""
        return z.expand(*z.shape[:-1], 2)

    def sample_data(self, z: Tensor) -> Tensor:
        """As decode, with the noise."""
        return self.decode(z) + torch.randn(*z.shape[:-1], 2)


def test_features_that_depend_on_a_site_that_is_summed_out(seed: int) -> None:
    """They are not independent given z, so none has a density; two that do not are checked."""
    y = 2 * torch.randn(60, 1) + torch.randn(60, 2)
    options: dict[str, Any] = {"seed": seed, "progress": False}
    apart, model = Switched(apart=True), Switched(apart=False)
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    assert leave_one_out(apart, pv.Guide(apart, pv.GlobalParameters(), example=y), y, 50, **options)
    with pytest.raises(ValueError, match="data still depend on the discrete site 'c', so the"):
        leave_one_out(model, guide, y, 50, **options)
    with pytest.raises(ValueError, match=r"densities with pv.marginal or pv.conditional"):
        pv.conditional_density(model, guide, y[:2], 0, **options)
    assert predictive_check(model, guide, y, num_samples=20, **options).verdict()
    found = pv.marginal(model, guide, y[:3], [0], pv.Quadrature(), **options).value
    modes = dist.Normal(torch.tensor([-1.0, 5.0]), 2**0.5).log_prob(y[:3, :1])
    exact = (modes + torch.tensor([0.6, 0.4]).log()).logsumexp(dim=1)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)
