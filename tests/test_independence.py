"""Two quantities that are said to be independent share no draw: every stream is listened to.

Torch's random operations are seen where they are dispatched, with the state of their generator;
noise made of keys is recorded where it is made. Draws are shared where two start from the same
state, where two ranges of a key's sequence overlap, and where two functions ask for one key.
"""

import copy
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_vae as pv
from pyro_vae import data
from pyro_vae.defaults import Architecture
from pyro_vae.diagnostics import (
    Latents,
    collapse,
    gradient_noise,
    leave_one_out,
    mutual_information,
    out_of_distribution,
    posterior_calibration,
    predictive_check,
    prior_match,
    prior_variance,
    rate_distortion,
    simulation_based_calibration,
    surgery,
    two_sample_test,
)
from pyro_vae.evidence import (
    annealing,
    bidirectional,
    cross_check,
    importance,
    tightest,
)
from pyro_vae.evidence.weights import conditioned
from pyro_vae.guides import row_fits
from pyro_vae.inference_data import marginal, marginal_log_likelihood, to_inference_data
from pyro_vae.programs import Program, simulate
from pyro_vae.queries import explain, measures, reconstruction_draws, similarity
from pyro_vae.queries.imputation import impute
from pyro_vae.queries.measures import (
    Correlation,
    MutualInformation,
    RankCorrelation,
    dependence,
)
from pyro_vae.queries.tails import outliers
from pyro_vae.randomness import Heard, listening, normals, row_keys, stream
from tests.helpers.public import modules, public
from tests.helpers.shared_sites import population


class Common(NamedTuple):
    """Draws that are shared by design, for the reason that stands beside them.

    Arguments:
        asker: The only function that may ask for the stream, by its full name.
        times: How often the same numbers may be drawn.
    """

    asker: str
    times: float = math.inf


# Whatever the call.
COMMON = {
    # Programs are run to be read, and what they draw is thrown away.
    "structure": Common("programs.structure._run"),
    "missing": Common("programs.structure._features_of"),
    "rows together.latents": Common("programs.mixing._log_joint_of"),
    "evidence.unkeyed": Common("evidence.weights.conditioned"),
    "fit.tensors": Common("training.steps.Steps._find_tensors"),
    # Copies of the model start from the same values, under every guide.
    "weights.parameters.0": Common("programs.copies.Copies._leaves"),
    "weights.parameters.1": Common("programs.copies.Copies._leaves"),
    # Run again on what it simulated, the program must draw the same.
    "simulate": Common("programs.simulation.simulate", times=2),
    # Where a fit starts is no estimate; data and starts are held against one another over the same
    # points and fresh draws, and the ELBO there is said to be common to them.
    "fit.starts": Common("evidence.saturation.PriorDraws.of"),
    "fit.near": Common("evidence.fitted.match_moments"),
    "fit.points": Common("guides.optimization.Problem.of"),
    "fit.judge": Common("guides.row_fits.fit_parameters"),
    "lattice": Common("guides.reparameterization.lattice_noise"),
    # Ranges that are searched for modes are in no estimate, and are the same in every search.
    "quadrature.range": Common("evidence.seeking._prior_draws"),
    # Points that decide whether an estimate is doubted, or its error enlarged, are in no estimate.
    "unreached": Common("evidence.unreached._points"),
    "unreached.prior": Common("evidence.saturation.PriorDraws.of"),
}
WEIGHTS = Common("evidence.importance.ImportanceSampling.sampling", times=2)
# Several models or guides are held against one another over the same draws.
COMPARED = {
    "fit": Common("training.fitting.fit", times=2),
    "closed form.directions": Common("guides.closed_form._direction"),
    "closed form.prior": Common("evidence.exact._require_quadratic_at_prior_draws"),
    "information": Common("diagnostics.information.mutual_information", times=2),
}
LATENTS = Common("queries.traversal.traverse", times=2)
COMMON_TO = {
    # The densities of a pair and of its rows are said to share draws.
    "similarity": {"importance": WEIGHTS},
    "TableVAE.similarity": {"importance": WEIGHTS},
    # The validation ELBO of every epoch is said to have the same draws.
    "fit": {"importance": WEIGHTS},
    "fit, per datum": {"importance": WEIGHTS},
    # No part of a page is said to be independent of another.
    "TableVAE.report": {"importance": WEIGHTS, "latents": LATENTS},
    "inference_gap": {"importance": WEIGHTS},  # ELBOs of the guide and of q*
    "rate_distortion": COMPARED | {"importance": WEIGHTS._replace(times=3)},  # the start, two betas
    "compare": COMPARED | {"importance": WEIGHTS._replace(times=7)},
}


class Trusted(NamedTuple):
    """Draws of the posterior, as a caller brings them."""

    z: torch.Tensor
    ess: torch.Tensor
    doubts: Any = {}  # noqa: RUF012 (not changed)


class Listener(TorchDispatchMode):
    """Notes the state of the generator before each random operation."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[tuple[int, bytes]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            generator = kwargs.get("generator") or torch.default_generator
            state = generator.get_state().numpy().tobytes()
            self.starts.append((generator.initial_seed(), state))
        return func(*args, **kwargs)


def most_times(ranges: Iterable[tuple[int, int]]) -> int:
    """In how many of the ranges the most common number is."""
    ends = sorted((place, step) for one in ranges for place, step in zip(one, (1, -1), strict=True))
    depth = most = 0
    for _, step in ends:
        depth += step
        most = max(most, depth)
    return most


def uses(listener: Listener, heard: Heard) -> dict[int, int]:
    """How often each key was drawn from at one place: by torch's generator, or as a counter.

    What one key gives to both is counted together: though these are other numbers, two quantities
    that are apart have two keys.
    """
    ordered, counted = Counter[int](), Counter[int]()
    for (key, _), times in Counter(listener.starts).items():
        ordered[key] = max(ordered[key], times)
    for (key, _), ranges in groupby(sorted(heard.drawn), key=lambda drawn: drawn[:2]):
        counted[key] = max(counted[key], most_times(part[2:] for part in ranges))
    return ordered + counted


def shared_streams(call: Callable[[], object]) -> dict[str, tuple[int, set[str]]]:
    """Streams from which the same numbers were drawn, or for which two functions asked.

    By name: how often, and who asked.
    """
    listener = Listener()
    with listening() as heard, listener:
        call()
    assert heard.drawn or listener.starts, "nothing was drawn"
    found: dict[str, tuple[int, set[str]]] = {}
    for key, times in uses(listener, heard).items():
        name, askers = heard.names.get(key, f"no stream ({key})"), heard.askers[key]
        if times > 1 or len(askers) > 1:
            most, others = found.get(name, (0, set()))
            found[name] = max(times, most), askers | others
    return found


DECODER = torch.nn.Linear(3, 4)
with torch.no_grad():  # a posterior narrower than an untrained guide, which needs further rungs
    DECODER.weight.copy_(3 * torch.eye(4, 3))
MODEL = pv.models.VAE(DECODER, pv.likelihoods.Gaussian(), latent_dim=3)
GUIDE = pv.Guide(MODEL, pv.GlobalParameters(), example=torch.zeros(1, 4))
ENCODER = pv.Guide(MODEL, pv.Encoder(torch.nn.Linear(4, 6)), example=torch.zeros(1, 4))
Y = torch.linspace(-1, 1, 12).reshape(3, 4)
HOLES = torch.where(torch.eye(3, 4) > 0, torch.nan, Y)
SHARED = pv.Guide(population, pv.GlobalParameters(), example=torch.zeros(1))
FEW = pv.ImportanceSampling(50)
ANNEALED = pv.AnnealedImportanceSampling(num_chains=4, num_temperatures=10)
CLIMBING = pv.Tightest(50, tempering=pv.TemperedSMC(2, 8)).sampled
# With so few draws no datum looks good, so that nobody asks such a guide for its density once more.
FEWER = pv.Tightest(20, tempering=pv.TemperedSMC(2, 8)).sampled
NEARLY_CONSTANT = torch.nn.Linear(3, 4)
with torch.no_grad():  # a posterior near the prior
    NEARLY_CONSTANT.weight.mul_(0.1)
FLAT = pv.models.VAE(NEARLY_CONSTANT, pv.likelihoods.Gaussian(), latent_dim=3)
LOCAL = pv.Guide(MODEL, pv.LocalParameters(3), example=torch.zeros(1, 4))
GIVEN = pv.models.ConditionalVAE(
    pv.nets.Concatenated(torch.nn.Linear(5, 4)), pv.likelihoods.Gaussian(), 3, 2
)
WALK = pv.models.NormalGiven(torch.nn.Linear(2, 2), 0.4)
SERIES = pv.models.SequentialVAE(WALK, torch.nn.Linear(2, 3), pv.likelihoods.Gaussian(), 2, 4)
TIMES = torch.linspace(-1, 1, 24).reshape(2, 4, 3)
FRAME: dict[str, list[Any]] = {
    "a": [0.1 * row * row for row in range(12)],
    "b": [5.0 - row + row % 3 for row in range(12)],
    "c": ["no", "yes", "no"] * 4,
}
HOLED = {"a": [None, None, None], "b": [5.0, 2.0, 3.0], "c": ["no", "yes", "no"]}
TABLE = pv.TableVAE.of(FRAME, Architecture(hidden=(4,)))
TRUSTED = Trusted(torch.linspace(-1, 1, 450).reshape(50, 3, 3), torch.full((3,), 1000.0))
MUTUAL = MutualInformation(20, 20, 3)
UNTIL = pv.ImportanceSampling(40, until=importance.ErrorTarget(0.05, 500))


def two_sites(y: torch.Tensor) -> None:
    """A program with two latent sites, of which one is no transformation of normals."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
        pyro.sample("y", dist.Normal(z, scale), obs=y)


def by_hand(y: torch.Tensor) -> None:
    """A guide of it, written by hand."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y / 2, 1.0))
        pyro.sample("scale", dist.Gamma(2.0, 1.0))


def evidence(
    estimator: Any, model: Any = MODEL, guide: Any = GUIDE, data: torch.Tensor = Y
) -> Callable[[], object]:
    """A call of an estimator, without the warning that draws are few."""

    def call() -> object:
        with conditioned(model, guide, data, 0) as inference:
            return estimator(inference, seed=0, progress=False)

    return call


def by_eye(y: torch.Tensor) -> None:
    """A guide of :data:`MODEL`, written by hand, whose mean is not known."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Gumbel(y[:, :3], 1.0).to_event(1))


def trained(guide: pv.Guide) -> object:
    """A copy of the model and the guide, trained for two epochs."""
    model, guide = copy.deepcopy((MODEL, guide))
    return pv.fit(model, guide, Y, num_epochs=2, batch_size=2, validation=Y + 1, progress=False)


def reported() -> None:
    """The report of a table."""
    with TemporaryDirectory() as folder:
        TABLE.report(Path(folder) / "report.html", FRAME, 10, 20)


def compared() -> object:
    """Two maps, trained for an epoch."""
    maps = {"global": pv.GlobalParameters(), "per datum": pv.LocalParameters(3)}
    return pv.compare(MODEL, maps, Y, Y + 1, num_epochs=1, evaluation=FEW, progress=False)


CALLS: dict[str, Callable[[], object]] = {
    "elbo": lambda: pv.elbo(MODEL, GUIDE, Y),
    "elbo, refined": lambda: pv.elbo(MODEL, ENCODER.refined(2), Y),
    "evaluate": lambda: pv.evaluate(MODEL, GUIDE, Y, FEW),
    "ImportanceSampling": evidence(FEW),
    "ImportanceSampling, target error": evidence(UNTIL),
    "ImportanceSampling, defensive": evidence(pv.ImportanceSampling(50, proposal=pv.Defensive())),
    "ImportanceSampling, fitted": evidence(pv.ImportanceSampling(50, proposal=pv.Fitted())),
    "Tightest": evidence(CLIMBING),
    "posterior_draws": lambda: pv.posterior_draws(
        MODEL, GUIDE, Y, num_samples=20, ladder=pv.Tightest(50, tempering=pv.TemperedSMC(2, 8))
    ),
    "AnnealedImportanceSampling": evidence(ANNEALED),
    "ImportanceSampling, several sites": evidence(FEW, two_sites, by_hand, Y[:, 0]),
    "Tightest, several sites": evidence(FEWER, two_sites, by_hand, Y[:, 0]),
    "marginal_log_likelihood": lambda: marginal_log_likelihood(
        population, SHARED, Y[:, 0], num_samples=3, estimator=FEW
    ),
    "predictive_check, shared sites": lambda: predictive_check(
        population, SHARED, Y[:, 0], num_samples=9
    ),
    "predictive_check": lambda: predictive_check(MODEL, GUIDE, Y, num_samples=9),
    "predictive_check, of the guide": lambda: predictive_check(
        MODEL, GUIDE, Y, num_samples=9, latents=Latents.GUIDE
    ),
    "inference_gap": lambda: pv.inference_gap(MODEL, GUIDE, Y, estimator=FEW, num_samples=50),
    "cross_check": lambda: cross_check(MODEL, GUIDE, Y),
    "bidirectional": lambda: bidirectional(MODEL, None, Y, ANNEALED),
    "dependence, MutualInformation": lambda: dependence(MODEL, measure=MUTUAL),
    "impute": lambda: impute(MODEL, None, HOLES, 10, estimator=pv.ImportanceSampling(50)),
    "outliers": lambda: outliers(MODEL, GUIDE, Y, 20, FEW),
    "outliers, fitted": lambda: outliers(
        MODEL, None, Y, 20, pv.ImportanceSampling(50, proposal=pv.Fitted())
    ),
    "simulation_based_calibration": lambda: simulation_based_calibration(MODEL, GUIDE, Y, 20, 9),
    "two_sample_test": lambda: two_sample_test(MODEL, GUIDE, Y, TRUSTED, num_samples=50),
    "posterior_calibration": lambda: posterior_calibration(MODEL, GUIDE, Y, TRUSTED, 5, 9),
    "out_of_distribution": lambda: out_of_distribution(MODEL, GUIDE, Y, 40, num_samples=9),
    "surgery": lambda: surgery(MODEL, GUIDE, Y, 10),
    "rate_distortion": lambda: rate_distortion(
        MODEL, GUIDE, Y, (0.5, 2.0), held_out=Y + 1, num_epochs=1, num_samples=20, progress=False
    ),
    "compare": compared,
    "to_inference_data": lambda: to_inference_data(MODEL, GUIDE, Y, num_samples=30),
    "log_marginal_likelihood": lambda: pv.log_marginal_likelihood(MODEL, GUIDE, Y),
    "log_weights": lambda: pv.log_weights(MODEL, GUIDE, Y, num_samples=20),
    "ClosedForm": evidence(pv.ClosedForm()),
    "ParticleFilter": evidence(pv.ParticleFilter(2, 8), SERIES, SERIES, TIMES),
    "Quadrature": evidence(pv.Quadrature()),
    "TemperedSMC": evidence(pv.TemperedSMC(2, 4), FLAT, GUIDE, Y[:1]),
    "conditional": lambda: pv.conditional(FLAT, None, Y, [0, 1], [2], FEW),
    "conditional_density": lambda: pv.conditional_density(FLAT, None, Y, 0, Y[0], estimator=FEW),
    "marginal": lambda: pv.marginal(FLAT, None, Y, [0, 1], FEW),
    "dependence, Correlation": lambda: dependence(MODEL, measure=Correlation(50)),
    "dependence, RankCorrelation": lambda: dependence(MODEL, measure=RankCorrelation(50, 5)),
    "encode": lambda: pv.encode(MODEL, by_eye, Y, 5),
    "explain": lambda: explain(MODEL, GUIDE, Y),
    "reconstruct": lambda: pv.reconstruct(two_sites, by_hand, Y[:, 0]),
    "reconstruction_draws": lambda: reconstruction_draws(MODEL, GUIDE, Y, 5),
    "similarity": lambda: similarity(MODEL, GUIDE, Y, estimator=FEW),
    "traverse": lambda: pv.traverse(MODEL, GUIDE, Y),
    "collapse": lambda: collapse(MODEL, GUIDE, Y, 5),
    "gradient_noise": lambda: gradient_noise(pv.STL(), MODEL, GUIDE, Y, num_repeats=5),
    "leave_one_out": lambda: leave_one_out(MODEL, GUIDE, Y, 20),
    "mutual_information": lambda: mutual_information(MODEL, GUIDE, Y, 20),
    "prior_match": lambda: prior_match(MODEL, GUIDE, Y.repeat(4, 1), num_permutations=19),
    "prior_variance": lambda: prior_variance(MODEL, GUIDE, Y),
    "fit": lambda: trained(GUIDE),
    "fit, per datum": lambda: trained(LOCAL),
    "Guide.extended": lambda: LOCAL.extended(Y),
    "Guide.fit_rows": lambda: LOCAL.fit_rows(Y),
    "Guide.sample": lambda: GUIDE.sample(Y, 3, seed=0),
    "Guide.sample_globals": lambda: SHARED.sample_globals(3),
    "ConditionalVAE.sample_given": lambda: GIVEN.sample_given(Y[:, :2], num_samples=2, seed=0),
    "Generative.sample": lambda: MODEL.sample(5, seed=0),
    "SequentialVAE.forecast": lambda: SERIES.forecast(torch.zeros(3, 8), 2, seed=0),
    "simulate": lambda: simulate(Program(two_sites, Y[:, 0]), (Y[:, 0],), 0),
    "Architecture": lambda: pv.TableVAE.of(FRAME, Architecture(seed=1)),
    "FixedDraw": lambda: data.FixedDraw().fixed(Y.abs()),
    "digits": data.digits,
    "from_frame": lambda: data.from_frame(FRAME),
    "split_rows": lambda: data.split_rows(10),
    "TableVAE.conditional_density": lambda: TABLE.conditional_density("c", FRAME),
    "TableVAE.dependence": lambda: TABLE.dependence(MUTUAL),
    "TableVAE.embed": lambda: pv.TableVAE.of(FRAME, guide="per-datum").embed(FRAME),
    "TableVAE.evaluate": lambda: TABLE.evaluate(FRAME, FEW),
    "TableVAE.explain": lambda: TABLE.explain(FRAME),
    "TableVAE.impute": lambda: TABLE.impute(HOLED, 10),
    "TableVAE.log_marginal_likelihood": lambda: TABLE.log_marginal_likelihood(FRAME),
    "TableVAE.outliers": lambda: TABLE.outliers(FRAME, 20),
    "TableVAE.report": reported,
    "TableVAE.sample": lambda: TABLE.sample(5),
    "TableVAE.similarity": lambda: TABLE.similarity(FRAME),
    "TableVAE.traverse": lambda: TABLE.traverse(FRAME),
}


def shared_without_reason(name: str) -> set[str]:
    """Streams that a call shares and that nothing above excuses."""
    excused = COMMON | COMMON_TO.get(name, {})
    return {
        stream_name
        for stream_name, (times, askers) in shared_streams(CALLS[name]).items()
        if (common := excused.get(stream_name)) is None
        or askers != {common.asker}
        or times > common.times
    }


# Parts of the estimators and measures above, which are listened to with them.
PARTS = {
    "AnnealedImportanceSampling.works",
    *("ImportanceSampling.sampling", "ParticleFilter.populations", "TemperedSMC.populations"),
    *("Tightest.sampled", "Tightest.sampled_with_sources"),
    *("Correlation", "MutualInformation", "RankCorrelation"),
}
READING = {"load"}  # reads a file; its draws are those of `from_frame` and `FixedDraw`


def with_seed() -> set[str]:
    """Public functions, constructors and methods that take a seed, and objects called with one."""
    found = {call.__qualname__: call for call in public().values()}
    for module in (pv, *modules()):
        for name, value in vars(module).items():
            if inspect.isclass(value) and not getattr(value, "_is_protocol", False):
                found[name] = value.__call__
    seeded = {name for name, call in found.items() if "seed" in inspect.signature(call).parameters}
    return {name.removesuffix(".__init__") for name in seeded}


def test_every_public_call_with_a_seed_is_listened_to() -> None:
    """A new function with a seed is added to the calls; none is there that is gone."""
    assert with_seed() == {name.split(",")[0] for name in CALLS} | PARTS | READING


@pytest.mark.parametrize("name", CALLS)
def test_no_stream_is_drawn_from_twice(name: str) -> None:
    """Within one call, but where the same draws are meant."""
    assert not shared_without_reason(name)


def one_stream(seed: int, name: str) -> int:
    """A wrong twin: parts of a seed are that seed."""
    return seed


def named(wrong: str) -> Callable[..., torch.Tensor]:
    """A wrong twin: keys of rows whatever they are for, in the stream of something else."""

    def keys(seed: int, name: str, *batch: torch.Tensor) -> torch.Tensor:
        return row_keys(seed, wrong, *batch)

    return keys


def simulated(seed: int, name: str) -> int:
    """A wrong twin: data and the latents that weigh them are drawn from one stream."""
    return stream(seed, "simulate" if name == "dependence.latents" else name)


@pytest.mark.parametrize(
    ("name", "module", "attribute", "wrong", "caught"),
    [
        # The pilot, and the draws after it.
        ("ImportanceSampling, target error", importance, "stream", one_stream, "importance"),
        ("AnnealedImportanceSampling", annealing, "row_keys", named("annealing"), "annealing"),
        ("bidirectional", annealing, "row_keys", named("annealing"), "annealing"),
        ("inference_gap", pv.gaps, "stream", one_stream, "importance"),  # and the bounds
        # Data that weigh themselves.
        ("dependence, MutualInformation", measures, "stream", simulated, "simulate"),
        ("ImportanceSampling, fitted", row_fits, "row_keys", named("importance"), "importance"),
        pytest.param(
            "Tightest, several sites",
            tightest,
            "stream",
            one_stream,
            "importance",  # second run
            marks=pytest.mark.slow,
        ),
        ("Tightest", tightest, "stream", one_stream, "importance"),  # the guide, then a fit
        ("marginal_log_likelihood", marginal, "stream", one_stream, "importance"),  # global draws
    ],
)
def test_shared_draws_are_caught(
    name: str,
    module: Any,
    attribute: str,
    wrong: Any,
    caught: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An estimate, and what is said to be independent of it."""
    monkeypatch.setattr(module, attribute, wrong)
    assert caught in shared_without_reason(name)


def test_overlapping_ranges_are_caught() -> None:
    """Draws that start elsewhere in a key's sequence, and reach into what was drawn before."""
    keys, like = row_keys(0, "x", Y), torch.zeros(0)
    apart = shared_streams(lambda: [normals(keys, 4, 3, like, first=first) for first in (0, 4)])
    assert not apart
    into = shared_streams(lambda: [normals(keys, 4, 3, like, first=first) for first in (0, 3)])
    assert into
