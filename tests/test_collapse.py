"""Collapse verdicts against closed forms: probabilistic PCA, and posteriors made to order."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae._types import ProgramLike
from pyro_vae.diagnostics.posterior_collapse import Collapse, Use, collapse
from tests.helpers.cases import dependent, gamma
from tests.helpers.factor_analysis import exact_guide, mean_field_guide, model_of
from tests.helpers.statistics import FactorAnalysis

pytestmark = pytest.mark.usefixtures("float64")


def made_to_order(loc: Tensor, scale: Tensor) -> Collapse:
    """The verdicts on posteriors with these means and scales, `(data, latents)` each."""
    latents, y = loc.shape[1], torch.cat([loc, scale.log()], dim=-1)
    model = pv.models.VAE(nn.Linear(latents, y.shape[1]), pv.likelihoods.Gaussian(), latents)
    return collapse(model, pv.Guide(model, pv.Encoder(nn.Identity())), y)


def principal_components(noise_variance: float) -> tuple[FactorAnalysis, Tensor, Tensor]:
    """PPCA at its maximum likelihood for fixed noise: the model, its data, the eigenvalues.

    The data have a covariance with the eigenvalues 4, 2, 1.2, 0.8, to the last digit.
    """
    eigenvalues = torch.tensor([4.0, 2.0, 1.2, 0.8])
    basis, _ = torch.linalg.qr(torch.randn(4, 4))
    noise = torch.randn(50, 4)
    white = torch.linalg.qr(noise - noise.mean(dim=0))[0] * math.sqrt(50)  # mean 0, covariance I
    y = white * eigenvalues.sqrt() @ basis.T
    loadings = basis * (eigenvalues - noise_variance).clamp(min=0).sqrt()
    facts = FactorAnalysis(loadings, torch.zeros(4), torch.full((4,), noise_variance))
    return facts, y, eigenvalues


@pytest.mark.parametrize("noise_variance", [0.8, 1.5])
@pytest.mark.parametrize("by_hand", [False, True], ids=["guide", "program"])
def test_principal_components(noise_variance: float, *, by_hand: bool) -> None:
    r"""The rate of a latent is half the logarithm of its signal; below the noise it collapses.

    The latter under exact inference: not the guide's failure.
    """
    facts, y, eigenvalues = principal_components(noise_variance)
    model = model_of(facts)
    result = collapse(model, exact_guide(facts) if by_hand else mean_field_guide(facts, model), y)
    exact = (eigenvalues / noise_variance).log().clamp(min=0) / 2
    torch.testing.assert_close(result.rate.value, exact, rtol=1e-9, atol=1e-9)
    assert not bool(result.rate.error.any())
    signal = (eigenvalues > noise_variance + 1e-9).tolist()
    assert result.uses == tuple(Use.USED if there else Use.COLLAPSED for there in signal)
    assert result.active == sum(signal)
    expected = (1 - noise_variance / eigenvalues).clamp(min=0) * 50 / 49
    torch.testing.assert_close(result.variances, expected, rtol=1e-9, atol=1e-9)


def test_another_noise_is_caught() -> None:
    """The rates above are not those of a model with a tenth more noise."""
    facts, y, eigenvalues = principal_components(0.8)
    result = collapse(model_of(facts), mean_field_guide(facts, model_of(facts)), y)
    wrong = (eigenvalues / 0.88).log().clamp(min=0) / 2
    assert float((result.rate.value - wrong).abs().max()) > 0.04


def test_every_verdict() -> None:
    """Used in its mean, in its spread alone; collapsed; constant off the prior."""
    size = 40
    wave, off = torch.linspace(-1, 1, size), torch.ones(size)
    loc = torch.stack([wave, 0 * off, 0 * off, 1.5 * off], dim=1)
    spread = torch.where(torch.arange(size) % 2 == 0, 0.3, 1.3)
    scale = torch.stack([0.5 * off, spread, off, 0.4 * off], dim=1)
    result = made_to_order(loc, scale)
    assert result.uses == (Use.USED, Use.USED, Use.COLLAPSED, Use.CONSTANT)
    assert result.active == 1
    assert result.verdict == "of 4 latents: 2 used, 1 collapsed, 1 constant but off the prior"
    constant = (0.16 - 1 - math.log(0.16) + 1.5**2) / 2
    assert float(result.rate.value[3]) == pytest.approx(constant, abs=1e-9)
    assert float(result.mismatch.value[3]) == pytest.approx(constant, abs=1e-9)
    torch.testing.assert_close(
        result.information.value + result.mismatch.value, result.rate.value, rtol=0, atol=1e-12
    )
    lines = result.summary().splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["z[3]", "z[0]", "z[1]", "z[2]"]
    assert lines[4].endswith("  collapsed")
    assert lines[-1] == result.verdict


def test_information_of_two_kinds_of_data() -> None:
    """Means at -d and d, far apart: one bit, in the latent that has them and in no other."""
    sign = torch.where(torch.arange(30) % 2 == 0, 1.0, -1.0)
    loc = torch.stack([20 * sign, 0 * sign], dim=1)
    result = made_to_order(loc, torch.ones(30, 2))
    torch.testing.assert_close(
        result.information.value, torch.tensor([math.log(2), 0.0]), rtol=0, atol=1e-9
    )
    assert float(result.information.error.max()) < 1e-6


def dependent_prior(y: Tensor) -> None:
    """The prior of `dependent` as a guide."""
    with pyro.plate("data", len(y)):
        a = pyro.sample("a", dist.Normal(torch.zeros(len(y)), 1.0))
        pyro.sample("b", dist.Normal(2 * a[..., None].expand(-1, 2), 0.5).to_event(1))


def test_a_normal_prior_of_several_sites() -> None:
    """Told by its density: at it all has collapsed, though it is not N(0, I)."""
    result = collapse(dependent, dependent_prior, torch.randn(12))
    assert result.names == ("a", "b[0]", "b[1]")
    assert result.uses == (Use.COLLAPSED,) * 3
    assert float(result.rate.value.abs().max()) < 1e-9


def used_gamma(y: Tensor) -> None:
    """A guide for `gamma` whose mean follows the data."""
    with pyro.plate("data", len(y)):
        pyro.sample("rate", dist.Gamma(2.0 + y, 4.0))


def gamma_prior(y: Tensor) -> None:
    """The prior of `gamma`."""
    with pyro.plate("data", len(y)):
        pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 3.0))


@pytest.mark.parametrize(("guide", "use"), [(used_gamma, Use.USED), (gamma_prior, Use.UNDECIDED)])
def test_without_normals_there_are_the_means(guide: ProgramLike, use: Use) -> None:
    """What is unknown is nan, with the reason."""
    result = collapse(gamma, guide, torch.arange(12) * 1.0)
    assert result.uses == (use,)
    assert bool(result.rate.value.isnan())
    assert "prior of the unconstrained latents is not normal" in result.unknown
    assert result.summary().endswith(result.unknown)


def test_one_datum_is_refused() -> None:
    """A variance over data needs two."""
    with pytest.raises(ValueError, match="`data` must have at least 2 rows; got 1"):
        made_to_order(torch.zeros(1, 2), torch.ones(1, 2))


@pytest.mark.parametrize("scale", [0.05, 1.0, 50.0])
def test_units_are_active_beside_their_prior(scale: float) -> None:
    """Whatever the unit of z: half of a prior's variance is active, a thousandth of it is not."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), scale).to_event(1))
            loc = torch.cat([z, z], dim=-1)
            pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)

    means = torch.randn(60, 2) * torch.tensor([0.5**0.5, 0.001**0.5])
    means = (means - means.mean(dim=0)) / means.std(dim=0) * torch.tensor([0.5**0.5, 0.001**0.5])
    log_scales = torch.tensor([0.5, 1.0]).log().expand(60, 2) + math.log(scale)
    y = torch.cat([means * scale, log_scales], dim=-1)
    result = collapse(model, pv.Guide(model, pv.Encoder(nn.Identity()), example=y), y)
    torch.testing.assert_close(result.variances, torch.tensor([0.5, 0.001]), rtol=1e-6, atol=0)
    assert result.active == 1
    assert result.uses == (Use.USED, Use.COLLAPSED)
