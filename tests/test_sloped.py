"""Compiled densities and slopes against those of the program, on the same latents."""

import importlib
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.evidence.annealing import Start, StartFromPrior
from pyro_vae.guides import fit_parameters
from pyro_vae.programs import Captured, Program, capture, evaluating, graphs, sloped
from tests.helpers.conformance import PROGRAMS, REPRESENTATIVE
from tests.helpers.graphs import branching, coins, images, shared_level

MODULE: Any = importlib.import_module("pyro_vae.programs.sloped")  # the function hides it
# These read the indices of a plate that is a loop.
LOOPS = {"loops"}
EVERY = [("dependent", 3), ("covariate", 3)] + [
    pytest.param(name, 2048, marks=[] if name in REPRESENTATIVE else pytest.mark.slow)
    for name in PROGRAMS
]


pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be trusted")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run as they were captured: compiling takes seconds, and changes roundings alone."""
    monkeypatch.setattr(Captured, "compiled", lambda captured, *args: captured)


def given(program: Program) -> Program:
    """With values for what all data share."""
    values = {site.name: site.constrain(torch.zeros(site.size))[0] for site in program.global_sites}
    return program.given(values) if values else program


def compared(program: Program, fast: Program, z: Tensor, batch: Any, tolerance: float) -> None:
    """Both densities, and the gradient of a sum in which each has weights of its own."""
    answers = []
    weights = torch.randn(
        2, *z.shape[:2], dtype=z.dtype, generator=torch.Generator().manual_seed(0)
    )
    for either in (program, fast):
        leaf = z.clone().requires_grad_()
        densities = either.log_densities(leaf, *batch)
        total = sum((w * d).sum() for w, d in zip(weights, densities, strict=True))
        answers.append([*densities, *torch.autograd.grad(total, leaf)])
        with torch.no_grad():
            answers[-1] += either.log_densities(z, *batch)
    for mine, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("float64", "user_param_store", "uncompiled")
@pytest.mark.parametrize(("name", "rows"), EVERY)
def test_every_program(name: str, rows: int) -> None:
    """In a piece that has to be filled up, and in pieces that are too few for all draws."""
    case = PROGRAMS[name]
    batch = case.data()
    program = given(Program(case.program, *batch))
    fast = sloped(program, asked=True, rows=rows)
    z = torch.randn(4, len(batch[0]), program.latent_dim)
    if name in LOOPS:
        with pytest.warns(UserWarning, match="not compiled"):
            compared(program, fast, z, batch, 1e-12)
        return
    with evaluating(case.program):
        compared(program, fast, z, batch, 1e-10)
    assert graphs._KEPT[case.program].graphs


@pytest.mark.slow
def test_compiled() -> None:
    """By the compiler, in float32."""
    model, y = images()
    program = Program(model, y)
    with evaluating(model):
        z = torch.randn(4, len(y), 3)
        compared(program, sloped(program, asked=True), z, (y,), 1e-5)
    assert len(graphs._KEPT[model].graphs) == 2


@pytest.mark.usefixtures("uncompiled")
def test_a_fit_is_the_same() -> None:
    """Where the rows go does not depend on it, beyond the tolerance; from bad starts, too."""
    model, y = images(40)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(20, (16,))))
    start = guide.prior_parameters().detach().repeat(len(y), 1)
    fits = [
        fit_parameters(guide.program, guide.family, (y,), start, pv.FitRows(compile=compile))
        for compile in (False, True)
    ]
    assert bool(fits[0].converged.all() & fits[1].converged.all())
    torch.testing.assert_close(fits[1].elbo, fits[0].elbo, rtol=0, atol=1e-4)
    assert graphs._KEPT[model].graphs


@pytest.mark.usefixtures("float64", "uncompiled")
@pytest.mark.parametrize("start", [StartFromPrior(), pv.StartFromGuide()], ids=["prior", "guide"])
def test_chains_are_the_same(start: Start) -> None:
    """Trajectories take their gradients from it: in float64 they end where they did."""
    model, y = images()
    guide = pv.Guide(model.double(), pv.Encoder(pv.nets.MLPEncoder(20, (16,)).double()))
    values = [
        pv.log_marginal_likelihood(
            model,
            guide,
            y.double(),
            pv.AnnealedImportanceSampling(4, 20, start=start, compile=compile),
        ).value
        for compile in (False, True)
    ]
    torch.testing.assert_close(values[1], values[0], rtol=0, atol=1e-8)
    assert graphs._KEPT[model].graphs


@pytest.mark.usefixtures("uncompiled")
def test_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unasked it is compiled once the program has made so many bytes; never, if refused."""
    model, y = images()
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(20, (16,))))
    start = guide.prior_parameters().detach().repeat(len(y), 1)
    for limit, compile, expected in ((1e9, None, 0), (1e3, False, 0), (1e3, None, 2)):
        monkeypatch.setattr(MODULE, "_BYTES", limit)
        fit_parameters(guide.program, guide.family, (y,), start, pv.FitRows(compile=compile))
        assert len(graphs._KEPT[model].graphs) == expected


@pytest.mark.usefixtures("uncompiled")
def test_graphs_follow_the_weights() -> None:
    """A graph that was kept sees weights that have moved."""
    model, y = images()
    program = Program(model, y)
    z = torch.randn(4, len(y), 3)
    with evaluating(model):
        compared(program, sloped(program, asked=True), z, (y,), 1e-5)
        kept = dict(graphs._KEPT[model].graphs)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.5)
        compared(program, sloped(program, asked=True), z, (y,), 1e-5)
    assert graphs._KEPT[model].graphs == kept


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("validated", [True, False])
def test_a_change_that_no_tensor_shows_is_caught(validated: bool) -> None:  # noqa: FBT001
    """A fixed sigma is a number in the graph: the graph is dropped, the answer right."""
    model = pv.models.VAE(nn.Linear(2, 4), pv.likelihoods.Gaussian(0.5), latent_dim=2)
    y = model.sample(4, seed=0)
    program = Program(model, y)
    z = torch.randn(3, 4, 2)
    with evaluating(model), pyro.validation_enabled(validated):
        compared(program, sloped(program, asked=True), z, (y,), 1e-5)
        model.likelihood.sigma.sigma = 1.0  # type: ignore[union-attr]
        with pytest.warns(UserWarning, match="differ from those of the program"):
            compared(program, sloped(program, asked=True), z, (y,), 0)
    assert not graphs._KEPT[model].graphs


@pytest.mark.usefixtures("uncompiled")
def test_missing_entries() -> None:
    """Data with and without holes have graphs of their own."""
    model = pv.models.VAE(nn.Linear(2, 4), pv.likelihoods.Gaussian(0.5), latent_dim=2)
    y = model.sample(4, seed=0)
    holes = y.masked_fill(torch.rand_like(y) < 0.3, torch.nan)
    program = Program(model, y)
    with evaluating(model):
        for data in (y, holes, y):
            compared(program, sloped(program, asked=True), torch.randn(3, 4, 2), (data,), 1e-5)
    assert len(graphs._KEPT[model].graphs) == 4


@pytest.mark.usefixtures("uncompiled")
def test_latents_that_all_data_share() -> None:
    """Their values are arguments of the graph, not parts of it."""
    y, program = torch.randn(4, 2), Program(shared_level, torch.randn(4, 2))
    for level in (0.0, 3.0):
        fixed = program.given({"level": torch.tensor(level)})
        compared(fixed, sloped(fixed, asked=True), torch.randn(3, 4, 2), (y,), 1e-5)
    assert len(graphs._KEPT[shared_level].graphs) == 2


@pytest.mark.usefixtures("uncompiled")
def test_data_are_validated_still() -> None:
    """Data outside of the support are refused, of whatever row."""
    y = torch.zeros(4, 2)
    fast = sloped(Program(coins, y), asked=True)
    z = torch.randn(3, 4, 2)
    fast.log_joint(z, y)
    y[-1, -1] = 0.5
    with pytest.raises(ValueError, match="support"):
        fast.log_joint(z, y)


@pytest.mark.usefixtures("uncompiled")
def test_a_long_program_is_left_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unasked it is not compiled, and not captured a second time; asked it is."""
    model, y = images()
    program, z = Program(model, y), torch.randn(3, len(y), 3)
    monkeypatch.setattr(MODULE, "_BYTES", 0.0)
    monkeypatch.setattr(graphs, "_MOST_OPERATIONS", 5)
    captured = []

    def counted(*args: Any, **how: Any) -> Captured:
        captured.append(0)
        return capture(*args, **how)

    monkeypatch.setattr(graphs, "capture", counted)
    with evaluating(model):
        for _ in range(3):
            compared(program, sloped(program, asked=None), z, (y,), 1e-6)
        assert len(captured) == 2  # with slopes and without
        compared(program, sloped(program, asked=True), z, (y,), 1e-5)
    assert len(graphs._KEPT[model].graphs) == 2


@pytest.mark.usefixtures("uncompiled")
def test_a_program_that_counts_is_given_up() -> None:
    """What differs from call to call agrees with no graph: unasked it is tried twice in all."""
    calls = []

    def model(y: Tensor) -> None:
        calls.append(0)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z, float(len(calls))).to_event(1), obs=y)

    y = torch.rand(4, 2)
    program = Program(model, y)
    graphs._KEPT[model] = graphs._Kept(work=1e12)
    for tries in (1, 2, 2, 2):
        sloped(program, asked=None).log_joint(torch.randn(3, 4, 2), y)
        assert graphs._KEPT[model].disagreements == tries
    assert not graphs._KEPT[model].graphs


def test_what_cannot_be_compiled() -> None:
    """A branch on the data: one line that says where, and the answer as it is written."""
    y = torch.rand(4, 2)
    program = Program(branching, y)
    with pytest.warns(UserWarning, match=r"not compiled: .*reads a number out of a tensor"):
        compared(program, sloped(program, asked=True), torch.randn(3, 4, 2), (y,), 0)
