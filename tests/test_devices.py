"""What users call makes its tensors where they belong: on the device of what they meet.

On every machine: under a default device without memory, on which a tensor lands that was not put
anywhere, and cannot be used with the data. Where there is another device, with the model on it:
`make bench DEVICE=cuda` runs these.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.guides.posteriors import SitesPosterior
from pyro_vae.likelihoods.codes import Codes
from pyro_vae.programs import Program
from pyro_vae.results import Result, combined

DEVICE = os.environ.get("DEVICE", "cuda")
pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be trusted", "ignore:.*NaN")
elsewhere = pytest.mark.skipif(
    DEVICE != "cpu" and not torch.cuda.is_available(), reason=f"there is no device {DEVICE}"
)
DATA, FEATURES, LATENTS = 24, 5, 2
Fitted = tuple[Any, Any, Tensor]


def vae(likelihood: Any = None) -> tuple[pv.models.VAE, pv.Guide]:
    """Model and guide, on the CPU."""
    torch.manual_seed(0)
    decoder = pv.nets.MLPDecoder(LATENTS, FEATURES, hidden=(8,))
    model = pv.models.VAE(decoder, likelihood or pv.likelihoods.Gaussian(0.5), LATENTS)
    net = pv.nets.MissingIndicator(pv.nets.MLPEncoder(2 * FEATURES, hidden=(8,)))
    return model, pv.Guide(model, pv.Encoder(net))


@pytest.fixture
def fitted() -> Fitted:
    """Model, guide and data."""
    return (*vae(), torch.randn(DATA, FEATURES))


def moved(given: Fitted) -> Fitted:
    """With the programs on the device."""
    model, guide, y = given
    return model.to(DEVICE), guide.to(DEVICE), y


def place_of(model: Any) -> torch.device:
    """The device of a model."""
    return next(iter(model.parameters())).device


def trained(map: Any = None, family: Any = None, **options: Any) -> Callable[[Fitted], Any]:
    """Training, two epochs of it."""

    def train(given: Fitted) -> Any:
        model, _, y = given
        with torch.device("cpu"):
            made = pv.Encoder(pv.nets.MLPEncoder(FEATURES, hidden=(8,))) if map is None else map()
            guide = pv.Guide(model, made, **({} if family is None else {"family": family}))
        own = place_of(model)
        result = pv.fit(model, guide, y, num_epochs=2, batch_size=8, device=own, **options)
        return torch.tensor(result.history.elbo, device="cpu")

    return train


def log_p(estimator: Any) -> Callable[[Fitted], Tensor]:
    """Evidence by an estimator."""
    return lambda given: pv.log_marginal_likelihood(*given, estimator).value


def of(function: Any, **options: Any) -> Callable[[Fitted], Any]:
    """A function of a model, a guide and data."""
    return lambda given: function(*given, **options)


def with_holes(given: Fitted) -> Any:
    """Data of which some are missing."""
    model, guide, y = given
    return pv.impute(model, guide, y.where(y < 1.0, torch.nan), num_samples=20)


def compared(given: Fitted) -> Any:
    """Two maps."""
    model, _, y = given
    with torch.device("cpu"):
        net = pv.nets.MLPEncoder(FEATURES, hidden=(8,))
        maps = {"encoder": pv.Encoder(net), "rows": pv.LocalParameters(16)}
    return pv.compare(
        model, maps, y[:16], y[16:], num_epochs=2, estimator=pv.ImportanceSampling(50)
    )


def beside_draws(function: Any) -> Callable[[Fitted], Any]:
    """A test of the guide beside draws of the posterior."""

    def tested(given: Fitted) -> Any:
        model, guide, y = given
        return function(model, guide, y[:2], pv.posterior_draws(model, guide, y[:2]))

    return tested


QUICK = pv.ImportanceSampling(60, compile=False)
CASES: dict[str, Callable[[Fitted], Any]] = {
    "fit": trained(compile=False),
    "fit, compiled": trained(compile=True),
    "fit, rows": trained(lambda: pv.LocalParameters(DATA)),
    "fit, global": trained(pv.GlobalParameters),
    "fit, full rank": trained(family=pv.FullRankNormal()),
    "fit, flow": trained(family=pv.NormalizingFlow(pv.AffineAutoregressive())),
    "fit, IWAE": trained(objective=pv.IWAE(4)),
    "fit, products": trained(precision=pv.BFloat16Products()),
    "importance": log_p(QUICK),
    "importance, compiled": log_p(pv.ImportanceSampling(3000, compile=True)),
    "defensive": log_p(pv.ImportanceSampling(60, proposal=pv.Defensive(0.2))),
    "fitted": log_p(pv.ImportanceSampling(60, proposal=pv.Fitted())),
    "until": log_p(pv.ImportanceSampling(60, until=pv.ErrorTarget(0.1, 500))),
    "annealing": log_p(pv.AnnealedImportanceSampling(4, 20)),
    "tempering": log_p(pv.TemperedSMC(32)),
    "quadrature": log_p(pv.Quadrature(1e-2)),
    "tightest": log_p(pv.Tightest(500)),
    "elbo": of(pv.elbo),
    "evaluate": of(pv.evaluate, estimator=QUICK),
    "gaps": of(pv.inference_gap, estimator=QUICK),
    "compare": compared,
    "encode": of(pv.encode),
    "reconstruct": of(pv.reconstruct),
    "traverse": lambda given: pv.traverse(*given[:2], given[2]),
    "impute": with_holes,
    "outliers": of(pv.outliers, estimator=QUICK),
    "marginal": of(pv.marginal, columns=[0, 1]),
    "conditional": of(pv.conditional, columns=[0], on=[1, 2]),
    "conditional density": of(pv.conditional_density, column=0),
    "marginal likelihood": of(pv.marginal_log_likelihood),
    "dependence": of(pv.dependence),
    "posterior draws": of(pv.posterior_draws, num_samples=20),
    "inference data": of(pv.to_inference_data, num_samples=20),
    "bidirectional": of(pv.bidirectional),
    "cross check": of(pv.cross_check),
    "collapse": of(pv.diagnostics.collapse),
    "information": of(pv.diagnostics.mutual_information),
    "calibration": of(pv.diagnostics.simulation_based_calibration),
    "predictive": of(pv.diagnostics.predictive_check),
    "leave one out": of(pv.diagnostics.leave_one_out),
    "prior match": of(pv.diagnostics.prior_match),
    "out of distribution": lambda g: pv.diagnostics.out_of_distribution(*g, reference=g[2]),
    "surgery": of(pv.diagnostics.surgery),
    "rates": of(pv.diagnostics.rate_distortion, betas=(1.0,), num_epochs=1),
    "two samples": beside_draws(pv.diagnostics.two_sample_test),
    "calibration near data": beside_draws(pv.diagnostics.posterior_calibration),
    "explain": lambda g: pv.queries.explain(*g[:2], g[2]),
    "similarity": of(pv.queries.similarity, estimator=QUICK),
    "gradient noise": lambda g: pv.diagnostics.gradient_noise(pv.AnalyticELBO(), *g),
    "sample": lambda g: g[0].sample(10, seed=0),
    "draws": lambda g: g[1].sample(g[2].to(place_of(g[0])), num_samples=3),
    "mean": lambda g: g[1].mean(g[2].to(place_of(g[0]))),
}


QUICKEST = ("fit", "importance", "evaluate", "outliers", "two samples", "surgery")
UNPLACED = {
    "fit, compiled": "a compiler makes such tensors",
    "importance, compiled": "a compiler makes such tensors",
    "fit, flow": "Pyro makes such tensors",
}
WALK = [
    pytest.param(name, marks=[] if name in QUICKEST else pytest.mark.slow)
    for name in CASES
    if name not in UNPLACED
]


def adam_counts_elsewhere() -> bool:
    """Whether torch's own Adam, as in 2.11, keeps its counter of steps on the default device."""
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    with torch.device("meta"):
        optimizer = torch.optim.Adam([weight])
        try:
            optimizer.step()
        except RuntimeError:
            return True
    return False


@pytest.mark.parametrize("name", WALK)
def test_every_tensor_is_put_somewhere(name: str, fitted: Fitted) -> None:
    """With a default device that has no memory, as with any that a user sets."""
    if name.startswith(("fit", "compare")) and adam_counts_elsewhere():
        pytest.skip("torch's Adam makes such tensors")
    with torch.device("meta"):
        result = CASES[name](fitted)
        if isinstance(result, Result):
            result.summary()


def test_a_tensor_put_nowhere_is_caught(fitted: Fitted) -> None:
    """The wrong twin."""
    _, _, y = fitted
    with torch.device("meta"), pytest.raises((RuntimeError, NotImplementedError)):
        (y + torch.zeros(FEATURES)).tolist()


class ByHand(torch.nn.Module):
    """A program with a discrete latent, for which rows are repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.locs = torch.nn.Parameter(torch.tensor([-1.0, 1.0]))

    def forward(self, y: Tensor) -> None:
        """The program."""
        with pyro.plate("data", len(y)):
            c = pyro.sample("c", pyro.distributions.Bernoulli(y.new_full((), 0.5)))
            z = pyro.sample("z", pyro.distributions.Normal(y.new_zeros(()), 1.0))
            loc = torch.stack([self.locs[c.long()], z], dim=-1).sum(dim=-1)
            pyro.sample("y", pyro.distributions.Normal(loc, 1.0), obs=y)


class Linear(ByHand):
    """Without it: linear and normal."""

    def forward(self, y: Tensor) -> None:
        """The program."""
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", pyro.distributions.Normal(self.locs[0], 1.0))
            pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)


class Tied(ByHand):
    """A guide with parameters for two rows."""

    def forward(self, y: Tensor) -> None:
        """The program."""
        with pyro.plate("data", len(y)):
            pyro.sample("z", pyro.distributions.Normal(self.locs, 1.0))


def test_programs_by_hand_are_put_somewhere() -> None:
    """In closed form, under a guide tied to rows, and with rows repeated for discrete values."""
    y, z = torch.tensor([0.5, -1.0]), torch.zeros(1, 2, 1)
    linear, tied, discrete = Linear(), Tied(), ByHand()
    guide = pv.Guide(linear, pv.ExactPosterior(), example=y)
    with torch.device("meta"):
        values = [
            guide.mean(y),
            pv.log_marginal_likelihood(linear, guide, y, pv.ClosedForm()).value,
            pv.elbo(linear, tied, y).value,
            Program(discrete, y).log_joint(z, y),
        ]
    assert all(bool(value.isfinite().all()) for value in values)


def walk(y: Tensor) -> None:
    """A series of normal steps, each observed with noise."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z0", pyro.distributions.Normal(y.new_zeros(()), 1.0))
        pyro.sample("y0", pyro.distributions.Normal(z, 1.0), obs=y[:, 0])
        z = pyro.sample("z1", pyro.distributions.Normal(z, 1.0))
        pyro.sample("y1", pyro.distributions.Normal(z, 1.0), obs=y[:, 1])


def taking_some(y: Tensor) -> None:
    """A program that takes a part of all its data in each call."""
    with pyro.plate("data", len(y), subsample_size=4) as rows:
        z = pyro.sample("z", pyro.distributions.Normal(y.new_zeros(()), 1.0))
        pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y[rows])


def test_particles_subsamples_and_rounds_are_put_somewhere() -> None:
    """Draws of a particle filter and of a plate's rows, and the rounds that EM plots."""
    y, whole = torch.tensor([[0.5, 1.0], [-1.0, 0.0]]), torch.linspace(-1, 1, 12)
    guide = pv.Guide(walk, pv.GlobalParameters(), example=y)
    table = pv.Guide(taking_some, pv.LocalParameters(12), example=whole)
    linear = pv.models.LinearGaussian(1, 2)
    with torch.device("meta"), pyro.settings.context(module_local_params=True):
        value = pv.log_marginal_likelihood(walk, guide, y, pv.ParticleFilter(64)).value
        loss = pv.IWAE(2).loss(taking_some, table, whole)
        linear.fit_em(y.repeat(4, 1)).plot()
    assert bool(value.isfinite().all())
    assert math.isfinite(float(loss))


def test_rows_of_a_tied_posterior_are_picked_on_the_processor() -> None:
    """Their positions may be on another device than torch's default."""
    prior = pyro.distributions.Normal(torch.zeros(3), 1.0)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
            pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)

    posterior = SitesPosterior(Program(model, torch.zeros(3)), {"z": prior}, -1)
    rows = torch.tensor([2, 0])
    with torch.device("meta"):
        assert len(posterior.rows(rows)) == 2


def test_a_table_with_a_device_takes_rows_from_others() -> None:
    """As `extended` does, whose new rows are fitted on the guide's device."""
    parts = [pv.LocalParameters(2), pv.LocalParameters(1)]
    table = pv.LocalParameters(3)
    table.device = torch.device("meta")
    for map in (table, *parts):
        map.setup(4, torch.zeros(4))
    table.take(*parts)
    assert table.table.device.type == "meta"
    assert table.table.shape == (3, 4)


def test_tables_are_read_on_the_processor() -> None:
    """And split, binarized, cut into chunks and compared with the rows of the training."""
    table = {"length": [1.0, 2.5, None, 4.0, 3.5] * 6, "count": [0, 3, 1, 7, 2] * 6}
    with torch.device("meta"):
        data = pv.data.from_frame(table)
        grey = pv.data.FixedDraw().fixed(torch.full((3, 2), 0.5, device="cpu"))
        labels = pv.data.squares(4, side=2, num_test=2).train_labels
        lengths = [len(y) for (y,) in pv.data.chunks(pv.data.OnDisk(np.zeros((10, 2**18))))]
    assert lengths == [4, 4, 2]
    assert labels is not None
    assert labels.tolist() == [0, 1, 0, 1]
    assert torch.equal(grey, pv.data.FixedDraw().fixed(torch.full((3, 2), 0.5)))
    torch.testing.assert_close(data.train, pv.data.from_frame(table).train, equal_nan=True)
    vae = pv.TableVAE.of(data)
    with torch.device("meta"):
        seen = vae.trained_on(table)
        value = vae.evaluate(table, QUICK).log_marginal.value
        saved = {"center": [1.0, 2.0], "scale": [2.0, 2.0], "log_scale": 0.0, "names": None}
        encoded = pv.data.Scaling.from_json(saved).encode(np.ones((3, 2)))
    assert int(seen.sum()) == len(data.train)
    assert bool(value.isfinite().all())
    assert encoded.tolist() == [[0.0, -0.5]] * 3


def test_refusals_and_the_mean_of_codes_put_their_numbers_somewhere() -> None:
    """The loss that stands for one that was refused, and what stands for a missing mean."""

    def heavy(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", pyro.distributions.Normal(y.new_zeros(1), 1.0).to_event(1))
            pyro.sample("y", pyro.distributions.Cauchy(z, 1.0).to_event(1), obs=y)

    y = torch.randn(DATA, 1)
    prior = pv.Guide(heavy, pv.GlobalParameters(), example=y)
    codes = Codes(torch.tensor([[0.1, 0.2, 0.7]]).log())
    model, guide = vae()
    with torch.no_grad():
        next(model.decoder.parameters()).fill_(torch.nan)
    with torch.device("meta"):
        assert codes.mean.item() == pytest.approx(1.6)
        with pytest.raises(ValueError, match="site 'y' has no mean"):
            pv.queries.reconstruct(heavy, prior, y)
        with pytest.raises(FloatingPointError, match="the loss is nan"):
            pv.fit(
                model, guide, y.expand(DATA, FEATURES), num_epochs=1, progress=False,
                compile=False,
            )  # fmt: skip


def test_units_of_rows_are_used_where_the_densities_are(
    fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a table are on the processor, and the model may be on another device."""
    model, guide, y = fitted
    found = combined([pv.evaluate(*fitted, QUICK)], lambda parts, _: parts[0].to("meta"))
    monkeypatch.setattr("pyro_vae.tables.evaluate", lambda *_, **__: found)
    table = pv.TableVAE(model, guide, pv.data.Scaling(), holes=True)
    assert table.evaluate(y).log_marginal.value.device.type == "meta"


@elsewhere
@pytest.mark.parametrize("name", CASES)
def test_runs_there(name: str, fitted: Fitted) -> None:
    """Without an error, and with finite numbers where it gives numbers."""
    result = CASES[name](moved(fitted))
    if isinstance(result, Tensor):
        assert bool(result.isfinite().all())


@elsewhere
def test_the_same_numbers(fitted: Fitted) -> None:
    """Draws hang on seed and content, not on the device: log p agrees to rounding."""
    here = log_p(QUICK)(fitted)
    there = log_p(QUICK)(moved(fitted))
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)


@elsewhere
def test_saved_there(fitted: Fitted, tmp_path: Path) -> None:
    """What is saved there is loaded anywhere."""
    model, guide, _ = moved(fitted)
    pv.save(tmp_path / "save", model=model, guide=guide)
    for device in ("cpu", DEVICE):
        loaded = pv.load(tmp_path / "save", device=device)
        assert next(loaded.model.parameters()).device.type == device


@elsewhere
def test_closed_form() -> None:
    """Of a linear model."""
    model = pv.models.LinearGaussian(LATENTS, FEATURES).to(DEVICE)
    guide = pv.Guide(model, pv.ExactPosterior(), family=pv.FullRankNormal())
    value = pv.log_marginal_likelihood(
        model, guide, torch.randn(4, FEATURES), pv.ClosedForm()
    ).value
    assert bool(value.isfinite().all())
