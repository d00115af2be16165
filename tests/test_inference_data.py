"""What ArviZ gets: the arrays of either ArviZ, then the draws of a guide and what they weigh."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from pyro_vae import (
    Encoder,
    GlobalParameters,
    Guide,
    ImportanceSampling,
    __version__,
    evaluate,
    likelihoods,
    log_weights,
    models,
)
from pyro_vae.evidence.weights import conditioned
from pyro_vae.inference_data import to_inference_data
from pyro_vae.inference_data.draws import Labelled, build
from pyro_vae.stats import MIN_TAIL_PARTICLES
from tests.helpers.inference_data import (
    NAMES,
    assert_same,
    facts_guide,
    facts_model,
    group_names,
    round_trip,
    values,
    wide_guide,
)
from tests.helpers.statistics import FACTS, assert_mean

GROUPS = {
    "posterior": {
        "z": Labelled(np.arange(24.0, dtype=np.float32).reshape(2, 3, 4), ("draw", "datum", "l")),
        "x": Labelled(np.arange(6).reshape(2, 3), ("draw", "datum")),
    },
    "log_likelihood": {"y": Labelled(np.zeros((2, 3)), ("draw", "datum"))},
    "diagnostics": {"pareto_k": Labelled(np.array([-np.inf, 0.5, np.nan]), ("datum",))},
    "observed_data": {"y": Labelled(np.ones((3, 2)), ("datum", "feature"))},
    "prior": {"z": Labelled(np.ones((7, 4)), ("draw", "l"))},
    "prior_predictive": {},
}
COORDS = {"datum": np.array(NAMES[:3])}
ATTRS: dict[str, str | int | float] = {"seed": 3, "share": 0.25, "draws": "of the guide"}
OURS = {"inference_library": "pyro_vae", "inference_library_version": __version__}


# Arrays ------------------------------------------------------------------------------------------


def test_arrays_keep_their_names() -> None:
    """Values, axes, labels and attributes are those given; draws are one chain."""
    idata = build(GROUPS, COORDS, ATTRS)
    assert group_names(idata) == set(GROUPS) - {"prior_predictive"}
    for group, variables in GROUPS.items():
        for name, (array, dims) in variables.items():
            found = idata[group][name]
            assert found.dims == (("chain", *dims) if dims[0] == "draw" else dims)
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found.to_numpy().reshape(array.shape), array)
            assert dict(idata[group].attrs) == OURS | ATTRS
    assert dict(idata.attrs) == OURS | ATTRS
    assert idata["posterior"]["datum"].to_numpy().tolist() == NAMES[:3]
    assert idata["posterior"]["draw"].to_numpy().tolist() == [0, 1]
    assert idata["prior"]["draw"].to_numpy().tolist() == list(range(7))


def test_the_container_is_that_of_the_arviz_installed() -> None:
    """An InferenceData before ArviZ 1, a DataTree from then on."""
    arviz = import_module("arviz")
    modern = int(arviz.__version__.split(".")[0]) >= 1
    expected = import_module("xarray").DataTree if modern else arviz.InferenceData
    assert type(build(GROUPS, COORDS, ATTRS)) is expected


def test_arrays_survive_a_file(tmp_path: Path) -> None:
    """NetCDF keeps values to the last bit, with infinities and nan, axes, labels and attributes."""
    idata = build(GROUPS, COORDS, ATTRS)
    assert_same(idata, round_trip(idata, tmp_path / "arrays.nc"))


def test_a_changed_file_is_caught(tmp_path: Path) -> None:
    """The comparison above sees a value, a label and an attribute that differ."""
    idata = build(GROUPS, COORDS, ATTRS)
    read = round_trip(idata, tmp_path / "arrays.nc")
    other = {**GROUPS, "prior": {"z": Labelled(np.full((7, 4), 1 + 1e-15), ("draw", "l"))}}
    for changed in (
        build(other, COORDS, ATTRS),
        build(GROUPS, {}, ATTRS),
        build(GROUPS, COORDS, ATTRS | {"seed": 4}),
    ):
        with pytest.raises(AssertionError):
            assert_same(changed, read)


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (Labelled(np.zeros(3), ("draw", "datum")), "must have 2 axis names for its shape"),
        (Labelled(np.zeros(3), ("z",)), "'z' in the group 'g' has the name of an axis"),
    ],
)
def test_names_that_do_not_fit_are_refused(variable: Labelled, message: str) -> None:
    """One name an axis, and no array with the name of an axis."""
    with pytest.raises(ValueError, match=message):
        build({"g": {"z": variable}}, {}, {})


# Programs ----------------------------------------------------------------------------------------


def several_sites(y: Tensor, exposure: Tensor) -> None:
    """A rate above zero, shares that sum to one, and levels in a plate left of that over data."""
    with pyro.plate("data", len(y), dim=-1):
        rate = pyro.sample("a/rate", dist.Gamma(2.0, 1.0))
        share = pyro.sample("share", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
        with pyro.plate("times", 4, dim=-2):
            level = pyro.sample("level", dist.LogNormal(rate.log(), 0.5))
            mean = exposure * level * share[:, 0]  # (times, data)
            pyro.sample("count", dist.Poisson(mean), obs=y[:, :4].T)
            pyro.sample("size", dist.Normal(level, 1.0), obs=y[:, 4:].T)


@pytest.fixture
def facts_y(float64: None) -> Tensor:
    """Five draws from factor analysis."""
    return FACTS.sample(5)


@pytest.fixture
def vae(float64: None) -> tuple[models.VAE, Guide, Tensor]:
    """A model with random weights, a guide for it, and binary data that all differ."""
    model = models.VAE(nn.Linear(2, 3), likelihoods.Bernoulli(), latent_dim=2)
    guide = Guide(model, Encoder(nn.Linear(3, 4)))
    numbers = torch.arange(5)[:, None] // torch.tensor([4, 2, 1]) % 2
    return model, guide, numbers.to(torch.float64)  # 0 to 4, as three bits


def test_log_densities_equal_closed_forms(facts_y: Tensor) -> None:
    """Each is the density of the very draw that stands beside it, in nats."""
    idata = to_inference_data(facts_model, wide_guide, facts_y, num_samples=50)
    z = values(idata, "posterior", "z")
    likelihood = MultivariateNormal(z @ FACTS.loadings.T, FACTS.noise_variance.diag())
    exact = FACTS.posterior(facts_y)
    log_q = MultivariateNormal(exact.loc, scale_tril=exact.scale_tril * 1.3).log_prob(z)
    log_prior = MultivariateNormal(torch.zeros(2), torch.eye(2)).log_prob(z)
    log_likelihood = likelihood.log_prob(facts_y)
    for group, name, expected in (
        ("log_likelihood", "y", log_likelihood),
        ("sample_stats", "log_weight", log_prior + log_likelihood - log_q),
    ):
        torch.testing.assert_close(values(idata, group, name), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(values(idata, "observed_data", "y"), facts_y, rtol=0, atol=0)


def test_exact_posterior_weighs_the_evidence(facts_y: Tensor) -> None:
    """With q = p(z | y) every log weight is log p(y), there is no tail, and all draws count."""
    idata = to_inference_data(facts_model, facts_guide, facts_y, num_samples=50)
    evidence = FACTS.log_evidence(facts_y).expand(50, 5)
    weights = values(idata, "sample_stats", "log_weight")
    torch.testing.assert_close(weights, evidence, rtol=0, atol=1e-10)
    assert bool((values(idata, "diagnostics", "pareto_k") == -torch.inf).all())
    torch.testing.assert_close(values(idata, "diagnostics", "ess"), torch.full((5,), 50.0))
    assert idata.attrs["share_reliable"] == 1


def test_draws_are_those_of_the_evidence(facts_y: Tensor) -> None:
    """The weights of `log_weights` and the diagnostics of `evaluate`, to the last bit."""
    idata = to_inference_data(facts_model, wide_guide, facts_y, num_samples=50, seed=7)
    weights = log_weights(facts_model, wide_guide, facts_y, num_samples=50, seed=7)
    result = evaluate(facts_model, wide_guide, facts_y, ImportanceSampling(50), seed=7)
    for group, name, expected in (
        ("sample_stats", "log_weight", weights),
        ("diagnostics", "pareto_k", result.log_marginal.pareto_k),
        ("diagnostics", "ess", result.log_marginal.ess),
    ):
        torch.testing.assert_close(values(idata, group, name), expected, rtol=0, atol=1e-12)


def test_draws_have_the_mean_of_the_guide(vae: tuple[models.VAE, Guide, Tensor]) -> None:
    """Of every datum its own."""
    model, guide, y = vae
    z = values(to_inference_data(model, guide, y, num_samples=2000), "posterior", "z")
    assert_mean(z, guide.mean(y))


def test_draws_of_another_datum_are_caught(facts_y: Tensor) -> None:
    """The same check fails when the data stand in another order than their draws."""
    idata = to_inference_data(facts_model, facts_guide, facts_y, num_samples=2000)
    z, mean = values(idata, "posterior", "z"), FACTS.posterior(facts_y).loc
    assert_mean(z, mean)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(z, mean.flip(0))


def test_simulated_data_are_of_the_model(vae: tuple[models.VAE, Guide, Tensor]) -> None:
    """Given its z each y has the mean of p(y | z); latents of the prior are as they should be."""
    model, guide, y = vae
    idata = to_inference_data(
        model,
        guide,
        y,
        num_samples=2000,
        num_prior_samples=4000,
        num_predictive_samples=1500,
        seed=5,
    )
    z, simulated = values(idata, "posterior", "z"), values(idata, "posterior_predictive", "y")
    assert simulated.shape == (1500, 5, 3)
    assert_mean(simulated - model.decode(z[:1500]), 0.0)
    z, simulated = values(idata, "prior", "z"), values(idata, "prior_predictive", "y")
    assert simulated.shape == (4000, 5, 3)
    assert_mean(z, 0.0)
    assert_mean(z.square(), 1.0)
    assert_mean(simulated - model.decode(z), 0.0)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean((simulated - model.decode(z.flip(0))) * z[..., :1], 0.0)


def test_no_stream_is_used_twice(float64: None) -> None:
    """The noise of y is independent of that of z, and of that of an equal datum."""
    model = models.VAE(nn.Linear(2, 2), likelihoods.Gaussian(), latent_dim=2)
    guide = Guide(model, GlobalParameters())
    idata = to_inference_data(model, guide, torch.zeros(2, 2), num_samples=2000)
    z = values(idata, "posterior", "z")
    noise = values(idata, "posterior_predictive", "y") - model.decode(z)
    assert_mean(noise * z, 0.0)
    for pair in (z, noise):
        assert_mean(pair[:, 0] * pair[:, 1], 0.0)
        with pytest.raises(AssertionError, match="resolution"):
            assert_mean(pair[:, 0] * pair[:, 0], 0.0)


@pytest.fixture(params=["facts", "vae"])
def case(
    request: pytest.FixtureRequest, vae: tuple[models.VAE, Guide, Tensor], facts_y: Tensor
) -> tuple[Any, Any, Tensor]:
    """A program with a guide program, and a model with a guide of ours."""
    return vae if request.param == "vae" else (facts_model, wide_guide, facts_y)


def test_order_and_chunks_do_not_matter(
    case: tuple[Any, Any, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A datum has the same draws, data and densities wherever it stands and however work is cut."""
    model, guide, y = case
    whole = to_inference_data(model, guide, y, num_samples=40, names=NAMES)
    order = [3, 0, 4, 2]  # one is left out
    names = [NAMES[row] for row in order]
    monkeypatch.setattr(
        "pyro_vae.evidence.weights._FAST_ROWS", 7
    )  # a datum at a time, 7 draws at a time
    cut = to_inference_data(model, guide, y[order], num_samples=40, names=names)
    assert group_names(cut) == group_names(whole)
    for group in group_names(cut):
        for name in cut[group].data_vars:
            expected = values(whole, group, name, datum=names)
            torch.testing.assert_close(values(cut, group, name), expected)


def test_another_seed_gives_other_draws(vae: tuple[models.VAE, Guide, Tensor]) -> None:
    """Or the test above would pass with constants; and the caller's stream does not move."""
    model, guide, y = vae
    before = torch.random.get_rng_state()
    one, two = (to_inference_data(model, guide, y, num_samples=40, seed=seed) for seed in (0, 1))
    for group, name in (("posterior", "z"), ("posterior_predictive", "y"), ("prior", "z")):
        assert not torch.equal(values(one, group, name), values(two, group, name))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_several_sites_have_their_names_and_supports(float64: None) -> None:
    """Constrained values under the names of the sites, from which the likelihood follows."""
    y = torch.cat([torch.rand(5, 4).mul(9).round(), torch.randn(5, 4)], dim=1)
    exposure = torch.rand(5) + 0.5
    guide = Guide(several_sites, GlobalParameters(), example=(y, exposure))
    idata = to_inference_data(several_sites, guide, (y, exposure), num_samples=30)
    axes = {name: array.dims[3:] for name, array in idata["posterior"].data_vars.items()}
    assert axes == {"a.rate": (), "share": ("share_dim",), "level": ("level_dim",)}
    rate, share, level = (values(idata, "posterior", name) for name in axes)
    assert bool((rate > 0).all())
    torch.testing.assert_close(share.sum(dim=-1), torch.ones(30, 5))
    mean = exposure[:, None] * level * share[..., :1]
    counts = dist.Poisson(mean).log_prob(y[:, :4])
    sizes = dist.Normal(level, 1.0).log_prob(y[:, 4:])
    expected = (counts + sizes).sum(dim=-1)
    torch.testing.assert_close(values(idata, "log_likelihood", "observed"), expected)
    torch.testing.assert_close(values(idata, "observed_data", "count"), y[:, :4])
    torch.testing.assert_close(values(idata, "observed_data", "size"), y[:, 4:])
    simulated = values(idata, "posterior_predictive", "count")
    assert simulated.shape == (30, 5, 4)
    total = (simulated - mean).sum() / mean.expand_as(simulated).sum().sqrt()
    assert abs(total) < 5  # a sum of Poisson counts: a false alarm in a million
    assert_mean(values(idata, "posterior_predictive", "size") - level, 0.0)
    assert idata["prior"]["level"].dims == ("chain", "draw", "datum", "level_dim")
    assert idata["prior_predictive"]["size"].shape == (1, 30, 5, 4)


def test_a_plate_that_subsamples(facts_y: Tensor) -> None:
    """More data than its size, as held-out data may be: the same as from a plain plate."""

    def subsampled(y: Tensor) -> None:
        with pyro.plate("data", 4, subsample_size=len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
            noise = dist.Normal(z @ FACTS.loadings.T + FACTS.mean, FACTS.noise_variance.sqrt())
            pyro.sample("y", noise.to_event(1), obs=y)

    one, two = (
        to_inference_data(model, wide_guide, facts_y, num_samples=40)
        for model in (facts_model, subsampled)
    )
    for group in group_names(one):
        for name in one[group].data_vars:
            torch.testing.assert_close(values(one, group, name), values(two, group, name))


def test_images_and_scalars_have_axes() -> None:
    """Axes of an image are numbered; a scalar site has none of its own."""
    decoder = nn.Sequential(nn.Linear(2, 6), nn.Unflatten(1, (1, 2, 3)))
    model = models.VAE(decoder, likelihoods.Gaussian(), latent_dim=2)
    guide = Guide(model, GlobalParameters())
    idata = to_inference_data(model, guide, torch.zeros(4, 1, 2, 3), num_samples=30)
    features = ("feature_0", "feature_1", "feature_2")
    assert idata["observed_data"]["y"].dims == ("datum", *features)
    assert idata["posterior_predictive"]["y"].dims == ("chain", "draw", "datum", *features)
    assert idata["prior_predictive"]["y"].dims == ("chain", "draw", "datum", *features)

    def scalar(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    guide = Guide(scalar, GlobalParameters(), example=torch.zeros(2))
    idata = to_inference_data(scalar, guide, torch.zeros(4), num_samples=30)
    assert idata["posterior"]["x"].dims == ("chain", "draw", "datum")
    assert idata["observed_data"]["y"].dims == ("datum",)


def test_a_site_called_as_its_axis() -> None:
    """A vector called `latent` cannot lie along an axis `latent`."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("latent", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("feature", dist.Normal(z, 1.0).to_event(1), obs=y)

    guide = Guide(model, GlobalParameters(), example=torch.zeros(2, 2))
    idata = to_inference_data(model, guide, torch.zeros(4, 2), num_samples=30)
    assert idata["posterior"]["latent"].dims == ("chain", "draw", "datum", "latent_dim")
    assert idata["observed_data"]["feature"].dims == ("datum", "feature_dim")


def test_predictive_draws_fit_into_memory(
    vae: tuple[models.VAE, Guide, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default as many as the budget holds, and at least one; all that are asked for; or none."""
    model, guide, y = vae

    def draws(asked: int | None = None) -> int:
        idata = to_inference_data(model, guide, y, num_samples=40, num_predictive_samples=asked)
        if "posterior_predictive" not in group_names(idata):
            return 0
        return int(idata["posterior_predictive"].sizes["draw"])

    assert draws() == 40
    monkeypatch.setattr("pyro_vae.inference_data.draws._PREDICTIVE_BYTES", 12 * y.nbytes)
    assert draws() == 12
    assert draws(30) == 30
    idata = to_inference_data(model, guide, y, num_samples=40, num_predictive_samples=7)
    assert idata["prior_predictive"].sizes["draw"] == 7
    assert draws(0) == 0
    monkeypatch.setattr("pyro_vae.inference_data.draws._PREDICTIVE_BYTES", 1)
    assert draws() == 1
    idata = to_inference_data(model, guide, y, num_samples=40, num_prior_samples=0)
    assert not {"prior", "prior_predictive"} & group_names(idata)


def test_attributes_say_what_the_draws_are(facts_y: Tensor) -> None:
    """Of the guide and not of the posterior; on the whole and on every group."""
    idata = to_inference_data(facts_model, wide_guide, facts_y, num_samples=50, seed=2)
    for attrs in (idata.attrs, idata["posterior"].attrs, idata["observed_data"].attrs):
        assert attrs["inference_library"] == "pyro_vae"
        assert attrs["inference_library_version"] == import_module("pyro_vae").__version__
        assert (attrs["num_samples"], attrs["seed"]) == (50, 2)
        assert "guide" in attrs["draws"]
        assert "not from the exact posterior" in attrs["draws"]
        assert 0 <= attrs["share_reliable"] <= 1


def narrow_guide(y: Tensor) -> None:
    """The exact posterior, but 0.1 times as wide where the first feature is above its mean."""
    posterior = FACTS.posterior(y)
    width = torch.where(is_narrow(y), 0.1, 1.0)[:, None, None]
    with pyro.plate("data", len(y)):
        tril = posterior.scale_tril * width
        pyro.sample("z", dist.MultivariateNormal(posterior.loc, scale_tril=tril))


def is_narrow(y: Tensor) -> Tensor:
    """Whether the narrow guide is too narrow."""
    return y[:, 0] > FACTS.mean[0]


@pytest.mark.parametrize("num_samples", [2000, MIN_TAIL_PARTICLES - 1])
def test_reliable_is_the_verdict_on_the_evidence(facts_y: Tensor, num_samples: int) -> None:
    """Of importance sampling with the same draws; its share is an attribute."""
    y = torch.cat([facts_y, 2 * FACTS.mean - facts_y])  # on both sides of the mean
    idata = to_inference_data(facts_model, narrow_guide, y, num_samples=num_samples, seed=3)
    with conditioned(facts_model, narrow_guide, y, 3) as inference:
        expected = ImportanceSampling(num_samples)(inference, seed=3, progress=False).reliable
    found = values(idata, "diagnostics", "reliable")
    assert found.tolist() == expected.tolist()
    assert idata.attrs["share_reliable"] == float(expected.double().mean())
    is_enough = num_samples >= MIN_TAIL_PARTICLES  # to fit a tail
    assert found.tolist() == (~is_narrow(y) & is_enough).tolist()


# ArviZ -------------------------------------------------------------------------------------------


def test_draws_survive_a_file(case: tuple[Any, Any, Tensor], tmp_path: Path) -> None:
    """Every group, to the last bit."""
    model, guide, y = case
    idata = to_inference_data(model, guide, y, num_samples=40, names=NAMES)
    assert_same(idata, round_trip(idata, tmp_path / "draws.nc"))


def test_arviz_summarizes(vae: tuple[models.VAE, Guide, Tensor]) -> None:
    """One row per latent and datum, with the mean of its draws."""
    model, guide, y = vae
    idata = to_inference_data(model, guide, y, num_samples=200, names=NAMES)
    table = import_module("arviz").summary(idata, var_names=["z"], round_to=6)
    assert list(table.index) == [f"z[{name}, {latent}]" for name in NAMES for latent in (0, 1)]
    mean = values(idata, "posterior", "z").double().mean(dim=0).flatten()
    found = torch.tensor([float(entry) for entry in table["mean"]], dtype=torch.float64)
    torch.testing.assert_close(found, mean, rtol=0, atol=1e-5)


def plots_of(arviz: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """What is drawn, by which function and with which arguments, in either ArviZ."""
    latents: dict[str, Any] = {"var_names": ["z"]}
    if int(arviz.__version__.split(".")[0]) < 1:
        return {
            "trace": ("plot_trace", latents),
            "forest": ("plot_forest", latents),
            "density": ("plot_density", latents),
            "posterior": ("plot_posterior", latents),
            "prior and posterior": ("plot_dist_comparison", latents),
            "predictive": ("plot_ppc", {"num_pp_samples": 20}),
            "prior predictive": ("plot_ppc", {"num_pp_samples": 20, "group": "prior"}),
            "predictive p-values": ("plot_bpv", {}),
        }
    return {
        "trace": ("plot_trace", latents),
        "forest": ("plot_forest", latents),
        "density": ("plot_dist", latents),
        "prior and posterior": ("plot_prior_posterior", latents),
        "predictive": ("plot_ppc_dist", {"num_samples": 20}),
        "prior predictive": ("plot_ppc_dist", {"num_samples": 20, "group": "prior_predictive"}),
        "predictive statistic": ("plot_ppc_tstat", {"t_stat": "mean"}),
    }


@pytest.mark.filterwarnings("ignore")  # of ArviZ and matplotlib: none of them is ours
def test_arviz_plots() -> None:
    """Latents, their prior, and data of both kinds are drawn as they are, nothing renamed."""
    model = models.VAE(nn.Linear(2, 3), likelihoods.Gaussian(), latent_dim=2)
    guide = Guide(model, Encoder(nn.Linear(3, 4)))
    idata = to_inference_data(model, guide, torch.randn(3, 3), num_samples=100, names=NAMES[:3])
    arviz, pyplot = import_module("arviz"), import_module("matplotlib.pyplot")
    for title, (function, arguments) in plots_of(arviz).items():
        getattr(arviz, function)(idata, **arguments)
        figure = pyplot.gcf()
        figure.canvas.draw()
        drawn = [line for ax in figure.axes for line in [*ax.lines, *ax.collections, *ax.patches]]
        texts = [text.get_text() for ax in figure.axes for text in ax.findobj(pyplot.Text)]
        pyplot.close("all")
        assert len(drawn) >= 2, title
        if title == "forest":
            assert any("cedar" in text for text in texts), texts


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"names": NAMES[:3]}, "`names` must be 5 names, one per datum; got 3"),
        ({"names": ["a", "b", "a", "c", "d"]}, "`names` must all be different.*'a' 2 times"),
        ({"num_samples": 1}, "at least 2 for a standard error; got 1"),
        ({"num_predictive_samples": 41}, "at most num_samples=40, .* got 41"),
        (
            {"num_predictive_samples": -1},
            "`num_predictive_samples` must be a whole number of at least 0",
        ),
        ({"num_prior_samples": -1}, "`num_prior_samples` must be a whole number of at least 0"),
    ],
)
def test_bad_arguments(
    vae: tuple[models.VAE, Guide, Tensor], asked: dict[str, Any], message: str
) -> None:
    """What was expected, and what came."""
    model, guide, y = vae
    with pytest.raises(ValueError, match=message):
        to_inference_data(model, guide, y, **{"num_samples": 40, **asked})


def peeking(y: Tensor) -> None:
    """Looks at its data beside its own draws: it cannot make any."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
        loc = torch.cat([z, y[:, :2]], dim=1)
        pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)


def mixture(y: Tensor) -> None:
    """A kind for each datum, which is summed out."""
    with pyro.plate("data", len(y)):
        kind = pyro.sample("kind", dist.Bernoulli(0.3))
        z = pyro.sample("z", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
        loc = z @ FACTS.loadings.T + kind[..., None]
        pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("model", "asked", "reason"),
    [
        (peeking, {"num_predictive_samples": 3}, "data cannot be simulated"),
        (peeking, {"num_prior_samples": 3}, "data cannot be simulated"),
        (mixture, {"num_predictive_samples": 3}, r"the discrete sites \['kind'\]"),
    ],
)
def test_data_asked_of_a_program_that_makes_none(
    facts_y: Tensor, model: Any, asked: dict[str, Any], reason: str
) -> None:
    """It is said why; and where none were asked for, what was left out."""
    with pytest.raises(ValueError, match=f"_samples=3 is not possible: .*{reason}"):
        to_inference_data(model, facts_guide, facts_y, num_samples=40, **asked)
    idata = to_inference_data(model, facts_guide, facts_y, num_samples=40)
    assert "posterior_predictive" not in group_names(idata)
    assert ("prior" in group_names(idata)) == (model is mixture)
    assert re.search(reason, idata.attrs["left_out"])


def test_nan_is_refused(vae: tuple[models.VAE, Guide, Tensor]) -> None:
    """By an encoder that was not told of missing entries; and inf, with its place."""
    model, guide, y = vae
    y[3, 1] = torch.nan
    with pytest.raises(ValueError, match="MissingIndicator"):
        to_inference_data(model, guide, y)
    y[3, 1] = torch.inf
    with pytest.raises(ValueError, match=r"1 inf .* at row 3, column 1"):
        to_inference_data(model, guide, y)


def test_arrays_of_bfloat16_are_those_of_float32(vae: tuple[models.VAE, Guide, Tensor]) -> None:
    """NumPy has no such type, which ended in an error of torch."""
    model, guide, y = vae
    half = y.bfloat16()
    idata = to_inference_data(model.bfloat16(), guide.bfloat16(), half, num_samples=40)
    assert idata["posterior"]["z"].dtype == np.float32
    np.testing.assert_array_equal(idata["observed_data"]["y"].values, y.float().numpy())
