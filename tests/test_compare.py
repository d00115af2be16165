"""Guides side by side, where every number of the table has a closed form, and what is saved."""

import copy
import csv
import itertools
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib import pyplot
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import storage
from pyro_vae.comparisons import Candidate, Comparison, figures
from pyro_vae.comparisons.columns import COLUMNS, Row
from pyro_vae.comparisons.results import gain_of_refining
from pyro_vae.programs.pieces import take_rows
from tests.helpers.programs import Program
from tests.helpers.statistics import FactorAnalysis

FEATURES, LATENTS = 6, 2
SIGMA = 0.7


def linear_vae(facts: FactorAnalysis) -> pv.models.VAE:
    """Factor analysis as a VAE with a linear decoder."""
    decoder = nn.Linear(LATENTS, FEATURES, dtype=torch.float64)
    with torch.no_grad():
        decoder.weight.copy_(facts.loadings)
        decoder.bias.copy_(facts.mean)
    return pv.models.VAE(decoder, pv.likelihoods.Gaussian(SIGMA), LATENTS)


@pytest.fixture
def facts() -> FactorAnalysis:
    """Loadings whose posterior is correlated, so that the mean-field gap is not zero."""
    generator = torch.Generator().manual_seed(1)
    loadings = 0.5 * torch.randn(FEATURES, LATENTS, generator=generator, dtype=torch.float64)
    variance = torch.full((FEATURES,), SIGMA**2, dtype=torch.float64)
    return FactorAnalysis(loadings, torch.zeros(FEATURES, dtype=torch.float64), variance)


def global_gap(facts: FactorAnalysis, y: Tensor, test: Tensor) -> Tensor:
    r"""Mean gap on `test` of the best global diagonal q for `y`, by datum, in nats.

    q has mean :math:`\bar m` and variances :math:`1 / P_{ii}`, and the gap of datum n is the
    mean-field gap and :math:`(m_n - \bar m)^\top P (m_n - \bar m) / 2`.
    """
    away = facts.posterior(test).loc - facts.posterior(y).loc.mean(dim=0)
    precision = facts.posterior_precision
    return facts.mean_field_gap() + torch.einsum("ni,ij,nj->n", away, precision, away).mean() / 2


def gap_of(facts: FactorAnalysis) -> float:
    """The mean-field gap, the same for all data."""
    return float(facts.mean_field_gap())


def is_near(row: Row, column: str, expected: float, slack: float = 0.0) -> bool:
    """Within five of its standard errors, and what a short training leaves of an optimum."""
    return abs(row.number(column) - expected) <= 5 * row.error(column) + slack


@pytest.mark.slow
def test_fixed_model_reaches_the_closed_forms(facts: FactorAnalysis) -> None:
    """Log p, and the ELBO of all three guides, against factor analysis; and their order."""
    y, test = facts.sample(200), facts.sample(100)
    model = linear_vae(facts)
    before = copy.deepcopy(model.state_dict())
    encoder = nn.Linear(FEATURES, 2 * LATENTS, dtype=torch.float64)
    guides = {
        "amortized": pv.Encoder(encoder),
        "per-datum": pv.LocalParameters(len(y)),
        "global": pv.GlobalParameters(),
    }
    optimizer = partial(torch.optim.Adam, lr=1e-2)
    table = pv.compare(
        model, guides, y, test,
        train_model=False, num_epochs=40, batch_size=30, optimizer=optimizer,
        evaluation=pv.ImportanceSampling(500), progress=False,
    )  # fmt: skip
    amortized, local, surrogate = table.rows()
    exact, gap = float(facts.log_evidence(test).mean()), gap_of(facts)
    lost = float(global_gap(facts, y, test)) - gap
    for row, amortization in ((local, 0.0), (surrogate, lost)):
        assert is_near(row, "amortization", amortization, 0.02)
        assert is_near(row, "approximation", gap, 1e-4)
    for row in (amortized, local):
        assert is_near(row, "log_p", exact)
        assert is_near(row, "elbo", exact - gap, 0.01)
    assert is_near(surrogate, "elbo", exact - gap - lost, 0.02)
    lead = local.number("train_elbo") - amortized.number("train_elbo")
    assert lead >= -3 * amortized.error("train_elbo")
    assert amortized.number("elbo") > surrogate.number("elbo")
    assert surrogate.number("active_units") == 0
    assert abs(surrogate.number("mutual_information")) < 1e-5
    assert amortized.number("active_units") == LATENTS
    assert amortized.number("ceiling") == pytest.approx(math.log(100))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert encoder.weight.grad is None, "compare trains copies"


def by_hand(y: Tensor) -> None:
    """A guide without parameters: the prior."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))


def coins(y: Tensor) -> None:
    """A program whose only latent site is discrete."""
    with pyro.plate("data", len(y)):
        side = pyro.sample("side", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(side, 1.0), obs=y)


def small(
    model: nn.Module, guides: dict[str, object], *, augment: Any = None, **options: object
) -> Comparison:
    """A comparison of two epochs, on batches that are changed."""
    y = torch.randn(24, 3)
    train = y[:16] if augment is None else pv.data.Augmented(y[:16], augment)
    given = {"num_epochs": 2, "evaluation": pv.ImportanceSampling(40), "progress": False, **options}
    return pv.compare(model, guides, train, y[16:], **given)  # type: ignore[arg-type]


def test_all_kinds_of_candidates() -> None:
    """Maps, maps with a family, a guide of the model, and a program by hand; from one start."""
    model = Program()
    start = model.net.weight.detach().clone()
    guide = pv.Guide(model, pv.GlobalParameters(), example=torch.zeros(1, 3))
    table = small(
        model,
        {
            "map": pv.Encoder(nn.Linear(3, 2)),
            "pair": (pv.LocalParameters(16), pv.DiagonalNormal()),
            "guide": guide,
            "by hand": by_hand,
        },
    )
    assert [row.guide for row in table.rows()] == ["map", "pair", "guide", "by hand"]
    assert torch.equal(model.net.weight, start), "the model given is not trained"
    weights = [result.model.net.weight for result in table.results.values()]
    assert all(not torch.equal(weight, start) for weight in weights)
    assert all(math.isfinite(row.number("log_p")) for row in table.rows())
    assert "reconstructions" not in table.plot(), "the program cannot decode"
    text = table.summary()
    assert "by hand" in text
    assert "only log p can be compared" in text


def test_same_seed_same_table() -> None:
    """Everything is seeded, and every guide starts from the same weights."""
    model, maps = Program(), {"a": pv.GlobalParameters(), "b": pv.GlobalParameters()}
    y = torch.randn(20, 3)
    tables = [
        pv.compare(
            model, maps, y[:12], y[12:], num_epochs=2,
            evaluation=pv.ImportanceSampling(40), progress=False,
        ).rows()
        for _ in range(2)
    ]  # fmt: skip
    for first, again in zip(*tables, strict=True):
        for key in ("elbo", "log_p"):
            assert first.number(key) == again.number(key)
    assert tables[0][0].number("log_p") == tables[0][1].number("log_p")


def test_log_scale_puts_densities_into_the_units_of_the_data() -> None:
    """It is added to log densities, and to nothing else."""
    model, y = Program(), torch.randn(20, 3)
    rows = [
        pv.compare(
            model, {"a": pv.GlobalParameters()}, y[:12], y[12:], num_epochs=1,
            evaluation=pv.ImportanceSampling(40), log_scale=scale, progress=False,
        ).rows()[0]
        for scale in (0.0, -7.0)
    ]  # fmt: skip
    plain, shifted = rows
    for name in ("elbo", "train_elbo", "log_p"):
        assert shifted.number(name) == pytest.approx(plain.number(name) - 7)
    assert shifted.number("distortion") == pytest.approx(plain.number("distortion") + 7)
    assert shifted.number("rate") == plain.number("rate")


def test_cards_of_saved_models_are_in_the_units_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As is the table beside them: ELBOs and log p, of training and of held-out data."""
    monkeypatch.setattr(Comparison, "pictures", {})
    monkeypatch.setattr(Comparison, "to_inference_data", lambda _: {})
    table = small(Program(), {"a": pv.GlobalParameters()})
    words = r"training ELBO (\S+) nats|ELBO = (\S+) ±|distortion (\S+) ±|log p\(y\) = (\S+) ±"
    found = []
    for one in (table, replace(table, log_scale=-7.0, train_log_scale=-9.0)):
        about = storage.read_about(one.save(tmp_path / "out") / "models" / "a")
        said = f"{about['training']}\n{about['evaluation']}"
        found.append([float(max(groups)) for groups in re.findall(words, said)])
    shifts = np.subtract(found[1], found[0])
    np.testing.assert_allclose(shifts, [-9, -7, 7, -7], atol=2e-3)  # of rounded numbers


def test_a_figure_that_cannot_be_drawn_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a warning: all results of hours of training had been lost with it."""
    monkeypatch.setattr(Comparison, "to_inference_data", lambda _: {})
    good, bad = figures._figure(1.0, 1.0), figures._figure(1.0, 1.0)
    bad.text(0.5, 0.5, "$_$")  # as a guide may be called
    drawings = {"good": lambda _: good, "bad": lambda _: bad}
    monkeypatch.setattr(figures, "drawings_of", lambda _: drawings)
    table = small(Program(), {"a": pv.GlobalParameters()})
    with pytest.warns(UserWarning, match=r"figure 'bad' is left out, because it cannot be drawn"):
        table.save(tmp_path / "out")
    assert (tmp_path / "out" / "good.png").is_file()
    assert (tmp_path / "out" / "models" / "a").is_dir()


def test_each_set_of_data_has_the_log_scale_of_its_own_rows() -> None:
    """Other entries may be missing in training data than in held-out data."""
    model, y = Program(), torch.randn(20, 3)
    plain, shifted = (
        pv.compare(
            model, {"a": pv.GlobalParameters()}, y[:12], y[12:], num_epochs=1,
            evaluation=pv.ImportanceSampling(40), log_scale=scale, progress=False,
        ).rows()[0]
        for scale in (0.0, lambda rows: rows[:, 0])
    )  # fmt: skip
    for name, rows in {"elbo": y[12:], "log_p": y[12:], "train_elbo": y[:12]}.items():
        shift = float(rows[:, 0].mean())
        assert shifted.number(name) == pytest.approx(plain.number(name) + shift), name


def test_training_data_are_evaluated_as_each_batch_was_changed() -> None:
    """Under a binarization drawn anew, grey rows are never evaluated; a table still knows them."""
    y = torch.randn(24, 3)
    table = pv.compare(
        Program(), {"table": pv.LocalParameters(16), "global": pv.GlobalParameters()},
        pv.data.Augmented(y[:16], torch.full_like(y[:1], 5.0).expand_as), y[16:], num_epochs=1,
        evaluation=pv.ImportanceSampling(40), progress=False,
    )  # fmt: skip
    result = table.results["global"]
    changed = pv.elbo(result.model, result.guide, torch.full((16, 3), 5.0), 100)
    torch.testing.assert_close(result.train_bound.elbo.value, changed.elbo.value)
    raw = pv.elbo(result.model, result.guide, y[:16], 100)
    assert not torch.allclose(result.train_bound.elbo.value, raw.elbo.value, rtol=0.1)


def test_pictures_of_a_model_with_covariates_and_a_prior_of_its_own() -> None:
    """The decoder takes the covariates of the rows shown, and prior draws are the model's."""
    net = nn.Linear(2 + 1, 3)
    nn.init.eye_(net.weight)
    nn.init.zeros_(net.bias)
    prior = pv.models.MixtureOfNormals(1, 2)
    with torch.no_grad():
        prior.loc.fill_(100.0)
    model = pv.models.ConditionalVAE(
        pv.nets.Concatenated(net), pv.likelihoods.Gaussian(), 2, 1, prior
    )
    y, x = torch.randn(24, 3), torch.full((24, 1), 7.0)
    guides = {"amortized": pv.Encoder(pv.nets.Concatenated(nn.Linear(4, 4)))}
    table = pv.compare(
        model, guides, (y[:16], x[:16]), (y[16:], x[16:]), train_model=False, num_epochs=1,
        evaluation=pv.ImportanceSampling(40), progress=False,
    )  # fmt: skip
    result = table.results["amortized"]
    batch = take_rows(table.test, slice(4))
    means = figures._decoded(result, batch, result.means[:4])
    torch.testing.assert_close(means[:, :2], result.means[:4])
    drawn = figures._decoded(result, batch)
    assert float((drawn[:, :2] - 100).abs().max()) < 20
    assert bool((drawn[:, 2] == 7).all())
    assert "reconstructions" in table.plot()


def test_a_single_held_out_row_has_a_table() -> None:
    """It has no active units, and no identity to be informed about."""
    y = torch.randn(17, 3)
    table = pv.compare(
        Program(), {"global": pv.GlobalParameters()}, y[:16], y[16:], num_epochs=1,
        evaluation=pv.ImportanceSampling(40), progress=False,
    )  # fmt: skip
    assert math.isnan(table.rows()[0].number("active_units"))
    assert "no information" not in table.summary()


def test_a_folder_repeats_the_run(tmp_path: Path) -> None:
    """Table, pictures, ArviZ files, models that load, and what was asked for."""
    decoder = pv.nets.MLPDecoder(2, 4, hidden=(5,))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=2)
    y = (torch.rand(30, 4) > 0.5).float()
    table = pv.compare(
        model,
        {"amortized": pv.Encoder(pv.nets.MLPEncoder(4, (5,))), "per datum": pv.LocalParameters(20)},
        y[:20],
        y[20:],
        num_epochs=2,
        evaluation=pv.ImportanceSampling(40),
        labels=torch.arange(10) % 2,
        image_shape=(2, 2),
        about={"command": "by hand"},
        seed=3,
        progress=False,
    )
    folder = table.save(tmp_path / "results")
    written = {path.name for path in folder.iterdir() if path.suffix not in (".png", ".nc")}
    assert written == {"report.html", "table.csv", "summary.txt", "run.json", "models"}
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["log_p"]) for row in rows] == [row.number("log_p") for row in table.rows()]
    run = json.loads((folder / "run.json").read_text())
    assert run["about"]["seed"] == 3
    assert run["about"]["command"] == "by hand"
    assert run["versions"]["pyro-vae"] == pv.__version__
    pictures = {path.stem for path in folder.glob("*.png")}
    assert pictures == {
        *("learning_curves", "comparison", "gaps", "pareto_k"),
        *("reconstructions", "latent_plane", "worst"),
    }
    assert {path.name for path in folder.glob("*.nc")} == {"amortized.nc", "per-datum.nc"}
    loaded = pv.load(folder / "models" / "amortized")
    torch.testing.assert_close(
        loaded.guide.mean(y[20:]), table.results["amortized"].means, rtol=0, atol=1e-6
    )


def test_a_folder_holds_one_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that differ little have files of their own; an older comparison goes, whole or not."""
    for slow in ("plot", "to_inference_data"):  # they take seconds, and name files alike
        monkeypatch.setattr(Comparison, slow, lambda _: {})
    names = ["a b", "A-b", "гайд"]
    table = small(Program(), {name: pv.GlobalParameters() for name in names})
    (tmp_path / "r").mkdir()
    table.save(tmp_path / "r")
    models = {path.name.casefold() for path in (tmp_path / "r" / "models").iterdir()}
    assert len(models) == len(names)
    other = replace(table, results={"new": table.results["a b"]})
    with monkeypatch.context() as patch:
        patch.setattr(storage, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            other.save(tmp_path / "r")
    assert {path.name.casefold() for path in (tmp_path / "r" / "models").iterdir()} == models
    other.save(tmp_path / "r")
    assert [path.name for path in (tmp_path / "r" / "models").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["r"], "nothing is left beside it"
    (tmp_path / "r" / "notes.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"holds other files.*notes\.txt"):
        other.save(tmp_path / "r")


@pytest.mark.parametrize(
    ("blocked", "missing", "extra"),
    [
        ({"matplotlib"}, {".png"}, "plot"),
        ({"h5netcdf", "netCDF4"}, {".nc"}, "netcdf"),
        ({"matplotlib", "h5netcdf", "netCDF4"}, {".png", ".nc"}, "plot,netcdf"),
    ],
)
def test_what_can_be_saved_is_saved(
    blocked: set[str],
    missing: set[str],
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No result is lost for want of an extra; what is missing is said, and how to get it."""
    import_module("arviz")  # ArviZ 0.23 cannot be imported without matplotlib
    table = small(Program(), {"one": pv.GlobalParameters()})
    for package in blocked:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.warns(UserWarning, match=r"was saved without") as warned:
        folder = table.save(tmp_path / "results", fixed=table)
    (message,) = [str(one.message) for one in warned if one.category is UserWarning]
    assert f"pip install 'pyro-vae[{extra}]'" in message
    assert all(f"*{ending}" in message for ending in missing)
    for place in (folder, folder / "fixed_model"):
        found = {path.suffix or path.name for path in place.iterdir()}
        written = {".csv", ".txt", ".json", ".png", ".nc", "models"}
        assert found - {".html", "fixed_model"} == written - missing
        assert list((place / "models" / "one").iterdir())
    assert "log p" in (folder / "report.html").read_text()


def stop(*_: object, **__: object) -> None:
    """Ctrl-C."""
    raise KeyboardInterrupt


def test_differences_are_by_datum() -> None:
    """Of every pair, on the same rows; with the model fixed log p differs by nothing."""
    guides: dict[str, object] = {
        "amortized": pv.Encoder(nn.Linear(3, 2)),
        "global": pv.GlobalParameters(),
    }
    table = small(Program(), guides, train_model=False)
    (difference,) = table.differences()
    first, second = (table.results[name].gap for name in guides)
    assert (difference.first, difference.second) == tuple(guides)
    assert torch.equal(difference.elbo.value, first.elbo.value - second.elbo.value)
    assert float(difference.elbo.mean.value) == pytest.approx(float(difference.elbo.value.mean()))
    assert (difference.log_p.value.abs() <= 5 * difference.log_p.error).all()


@pytest.mark.slow
def test_verdict_names_what_was_found(facts: FactorAnalysis) -> None:
    """A guide that ignores the data is exposed, one per datum loses nothing, and the best leads."""
    y, test = facts.sample(100), facts.sample(60)
    guides: dict[str, Candidate] = {
        "per-datum": pv.LocalParameters(100),
        "global": pv.GlobalParameters(),
    }
    table = pv.compare(
        linear_vae(facts), guides, y, test, train_model=False, num_epochs=10,
        evaluation=pv.ImportanceSampling(200), progress=False,
    )  # fmt: skip
    local, surrogate, ranking = table.verdict.splitlines()
    assert "has no measurable cost" in local
    assert "z carries no information about the datum" in surrogate
    assert "guide.refined(20) would recover 100%" in surrogate
    assert ranking.startswith("ELBO under per-datum is above that under global")
    assert table.verdict in table.summary()


def test_a_comparison_is_a_table_in_a_notebook() -> None:
    """A heading and a row per guide with as many cells, the verdict, and one picture."""
    table = small(Program(), {"a <b>": pv.GlobalParameters(), "other": pv.GlobalParameters()})
    page = table._repr_html_()
    rows = [re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", row) for row in page.split("<tr>")[1:]]
    assert [row[0] for row in rows] == ["guide", "a &lt;b&gt;", "other"]
    assert {len(row) for row in rows} == {sum(bool(column.short) for column in COLUMNS)}
    assert "its map" in page
    assert page.count("<img") == 1
    assert not pyplot.get_fignums()


def test_the_result_of_a_guide_is_short() -> None:
    """In a line, and in a notebook: numbers and a verdict in place of modules and tensors."""
    table = small(Program(), {"amortized": pv.Encoder(nn.Linear(3, 2))})
    result = table.results["amortized"]
    line, page = repr(result), result._repr_html_()
    assert line.startswith("<GuideResult: Its map ")
    assert len(line.splitlines()) == 1
    assert "ELBO = " in page
    assert result.plot().figure.axes
    pyplot.close("all")
    for text in (line, page):
        assert "tensor(" not in text
        assert "Linear(" not in text


@pytest.mark.parametrize(
    ("gained", "cost", "said"),
    [
        ((0.16, 0.001), (0.2, 0.001), "would recover 80% of this cost"),
        ((0.201, 0.001), (0.2, 0.001), "would recover 100% of this cost"),
        ((0.3, 0.001), (0.2, 0.001), "more than this cost at test time (0.3000 ± 0.0010 nats)"),
        ((0.001, 0.001), (0.2, 0.001), "would not change the ELBO measurably"),
        ((-0.001, 0.001), (0.2, 0.001), "would not change the ELBO measurably"),
        ((-0.106, 0.009), (0.0076, 0.0012), "would lower the ELBO by 0.1060 ± 0.0090 nats"),
        ((math.inf, 0.01), (math.inf, 0.01), "would raise the ELBO by inf ± 0.0100 nats at test"),
        ((7.5, 0.01), (math.inf, 0.01), "would raise the ELBO by 7.5000 ± 0.0100 nats"),
    ],
)
def test_refining_is_said_as_it_is(
    gained: tuple[float, float], cost: tuple[float, float], said: str
) -> None:
    """A share is given only between 0 and 1: 16 draws of two modes overfit, and lose."""
    first, second = (pv.Estimate(*map(torch.tensor, pair)) for pair in (gained, cost))
    assert said in gain_of_refining(first, second)


def test_a_guide_that_the_model_rules_out_is_below_the_others() -> None:
    """An ELBO of minus infinity could not be distinguished from any other."""
    guides: dict[str, object] = {"out": pv.GlobalParameters(), "in": pv.GlobalParameters()}
    table = small(Program(), guides, train_model=False)
    gap = table.results["out"].gap
    infinite = pv.Estimate(torch.full_like(gap.elbo.value, -math.inf), gap.elbo.error)
    out = replace(table.results["out"], gap=replace(gap, elbo=infinite))
    verdict = replace(table, results={**table.results, "out": out}).verdict
    assert "ELBO under in is above that under out: the difference is inf nats" in verdict


def test_seeds_start_afresh() -> None:
    """Each further run has weights of its own; the first is the same as alone."""
    guides: dict[str, object] = {"amortized": pv.Encoder(nn.Linear(3, 2))}
    table, alone = small(Program(), guides, num_seeds=3), small(Program(), guides)
    weights = [
        one.results["amortized"].guide.map.net.weight.detach() for one in (table, *table.others)
    ]
    assert [one.about["seed"] for one in (table, *table.others)] == [0, 1, 2]
    assert not torch.allclose(weights[0], weights[1], atol=0.01)
    assert not torch.allclose(weights[1], weights[2], atol=0.01)
    values = [float(one.results["amortized"].gap.mean.elbo.value) for one in (table, *table.others)]
    assert table.rows()[0].number("elbo_spread") == pytest.approx(float(torch.tensor(values).std()))
    assert math.isnan(alone.rows()[0].number("elbo_spread"))
    assert "between the 3 seeds" in table.verdict


def stop_in(training: int, epochs: int) -> Callable[[Tensor], Tensor]:
    """Changes no batch; Ctrl-C in the first batch of the training of this number, from 0.

    A training calls it once before the first epoch, and once an epoch, since all data are one
    batch; the bound on its data does so once more.
    """
    calls = itertools.count()

    def augment(y: Tensor) -> Tensor:
        if next(calls) == training * (epochs + 2) + 1:
            raise KeyboardInterrupt
        return y

    return augment


@pytest.mark.slow
def test_an_interrupt_begins_no_further_run() -> None:
    """What there is by then is kept; the spread is between runs that were not interrupted."""
    guides: dict[str, object] = {"a": pv.GlobalParameters(), "b": pv.GlobalParameters()}
    cases = [  # the training that is interrupted, guides of every run, runs that are complete
        (0, [["a"]], 0),
        (2, [["a", "b"], ["a"]], 1),
        (5, [["a", "b"], ["a", "b"], ["a", "b"]], 2),
    ]
    for training, names, complete in cases:
        table = small(Program(), guides, num_seeds=3, augment=stop_in(training, 2))
        runs = (table, *table.others)
        assert [list(run.results) for run in runs] == names
        assert [run.interrupted for run in runs] == [False] * (len(runs) - 1) + [True]
        assert len(table.complete) == complete
        assert math.isnan(table.rows()[0].number("elbo_spread")) == (complete < 2)
        assert ("between the 2 seeds" in table.verdict) == (complete == 2)


def test_what_cannot_be_compared() -> None:
    """No guides, no run, nothing latent that is not summed out, and a guide of another model."""
    y = torch.randn(8, 3)
    with pytest.raises(ValueError, match="`guides` must have at least one entry"):
        small(Program(), {})
    for name in ("", " \u200b", "a\nb", "\ud800"):
        with pytest.raises(ValueError, match="one line of visible text; got "):
            small(Program(), {name: by_hand})
    with pytest.raises(ValueError, match=r"cannot write `about\['x'\]` as JSON"):
        small(Program(), {"a": by_hand}, about={"x": object()})
    for number in (0, -1):
        with pytest.raises(ValueError, match=rf"`num_seeds` must be .* at least 1; got {number}"):
            small(Program(), {"a": by_hand}, num_seeds=number)
    with pytest.raises(ValueError, match="no latent is left to draw"):
        pv.compare(coins, {"a": by_hand}, y[:, 0], y[:, 0])
    stranger = pv.Guide(Program(), pv.GlobalParameters(), example=y)
    with pytest.raises(ValueError, match=r"got a pv\.Guide of another model"):
        small(Program(), {"a": stranger})


class Diverging(nn.Module):
    """An encoder, the answers of which are infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), 1e30))

    def forward(self, y: Tensor) -> Tensor:
        """The same for every row."""
        return (self.weight * self.weight).expand(len(y), 2)


def test_an_error_names_its_guide() -> None:
    """Of several, whether it cannot be built or cannot be trained."""
    model = Program()
    fine = pv.GlobalParameters()
    with pytest.raises(ValueError, match=r"^guide 'few': LocalParameters has 7 rows"):
        small(model, {"fine": fine, "few": pv.LocalParameters(7)})
    with pytest.raises(FloatingPointError, match=r"^guide 'steep': the loss is"):
        small(model, {"fine": fine, "steep": pv.Encoder(Diverging())})
