"""Sites of `pyro.deterministic` beside the draws of the latents that they depend on."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.inference_data import deterministic as module

ROWS = 3  # as many as latents, so that the sizes of axes do not tell them apart


def model(y: Tensor, x: Tensor) -> None:
    """A rate per latent, a vector that depends on a covariate, and values not of a datum."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(y.new_zeros(3), 1.0).to_event(1))
        pyro.deterministic("rate", z.exp())
        pyro.deterministic("scaled", z[..., :2] * x, event_dim=1)
        pyro.deterministic("total", z.sum(dim=-1))
        pyro.deterministic("constant", y.new_ones(3))
        pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)
    pyro.deterministic("outside", y.new_ones(()))


def data(seed: int) -> tuple[Tensor, Tensor]:
    """Rows whose covariates differ, so that values of another row are seen."""
    torch.manual_seed(seed)
    return torch.randn(ROWS, 3), torch.tensor([1.0, 10.0, 100.0])[:, None].expand(ROWS, 2)


def expected(z: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Values of the sites at draws of z, with the axis of data before the last."""
    return {"rate": z.exp(), "scaled": z[..., :2] * x, "total": z.sum(dim=-1)}


@pytest.mark.parametrize("at_once", [1, 4, 10_000])
def test_they_are_functions_of_the_draws(
    at_once: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the posterior's and of the guide's draws, whatever the size of pieces."""
    monkeypatch.setattr(module, "rows_at_once", lambda program, batch: at_once)
    y, x = data(seed)
    guide = pv.Guide(model, pv.GlobalParameters(), example=(y, x))
    sites = pv.posterior_draws(model, guide, (y, x), num_samples=ROWS, seed=seed).sites
    assert list(sites) == ["z", "rate", "scaled", "total"]
    groups = pv.to_inference_data(model, guide, (y, x), num_samples=ROWS, seed=seed)
    assert groups["posterior"]["scaled"].dims == ("chain", "draw", "datum", "scaled_dim")
    guides, prior = (
        {name: torch.tensor(groups[group][name].values[0]) for name in sites}
        for group in ("posterior", "prior")
    )
    for found in (sites, guides, prior):
        for name, values in expected(found["z"], x).items():
            torch.testing.assert_close(found[name], values)


def test_the_centred_effect_of_a_non_centred_program_is_there(seed: int) -> None:
    """Pyro's reparameterization makes it a deterministic site."""
    from pyro.infer.reparam import LocScaleReparam

    def centred(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            scale = pyro.sample("scale", dist.LogNormal(y.new_zeros(()), 1.0))
            effect = pyro.sample("effect", dist.Normal(0.0, scale))
            pyro.sample("y", dist.Normal(effect, 1.0), obs=y)

    program = pyro.poutine.reparam(centred, config={"effect": LocScaleReparam(0.0)})
    y = torch.tensor([0.5, 3.0])
    guide = pv.Guide(program, pv.GlobalParameters(), example=y)
    sites = pv.posterior_draws(program, guide, y, num_samples=10, seed=seed).sites
    torch.testing.assert_close(sites["effect"], sites["scale"] * sites["effect_decentered"])


def test_sites_that_depend_on_summed_out_latents_are_left_out(seed: int) -> None:
    """There is no draw of the label that the mean depends on."""

    def mixture(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
            label = pyro.sample("label", dist.Bernoulli(y.new_tensor(0.5)))
            mean = pyro.deterministic("mean", z + 5 * label, event_dim=0)
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = torch.tensor([0.5, 3.0])
    guide = pv.Guide(mixture, pv.GlobalParameters(), example=y)
    draws = pv.posterior_draws(mixture, guide, y, num_samples=10, seed=seed)
    assert list(draws.sites) == ["z"]
