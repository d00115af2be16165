"""Two quantities that are said to be independent share no draw: every stream is listened to.

Torch's random operations are seen where they are dispatched, with the state of their generator;
noise made of keys is recorded where it is made. Two draws that start from the same state, or from
the same key and counter, are the same numbers.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_vae as pv
from pyro_vae.diagnostics import simulation_based_calibration, surgery
from pyro_vae.evidence import annealing, bidirectional, cross_check, importance
from pyro_vae.gaps import decomposition
from pyro_vae.inference_data import to_inference_data
from pyro_vae.queries import measures
from pyro_vae.queries.measures import MutualInformation, dependence
from pyro_vae.queries.tails import outliers
from pyro_vae.randomness import listening, row_keys, stream

# The same draws by design: programs run to be read, or twice on the same numbers; points over which
# fits from several starts are held against one another.
SAME = {"structure", "missing", "simulate", "fit.points", "fit.judge", "fit.near", "fit.starts"}


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


def shared_streams(call: Callable[[], object]) -> set[str]:
    """Names of the streams from which the same numbers were drawn twice."""
    listener = Listener()
    with listening() as heard, listener:
        call()
    assert heard.drawn or listener.starts, "nothing was drawn"
    keys = [seed for (seed, _), times in Counter(listener.starts).items() if times > 1]
    keys += [key for (key, _, _), times in Counter(heard.drawn).items() if times > 1]
    return {heard.names.get(key, f"no stream ({key})") for key in keys} - SAME


MODEL = pv.models.VAE(torch.nn.Linear(3, 4), pv.likelihoods.Gaussian(), latent_dim=3)
GUIDE = pv.Guide(MODEL, pv.GlobalParameters(), example=torch.zeros(1, 4))
Y = torch.linspace(-1, 1, 12).reshape(3, 4)
ANNEALED = pv.AnnealedImportanceSampling(num_chains=4, num_temperatures=10)
UNTIL = pv.ImportanceSampling(40, until=importance.Until(0.05, 500))


def evidence(estimator: Any) -> Callable[[], object]:
    """A call of log_marginal_likelihood."""
    return lambda: estimator_result(estimator)


def estimator_result(estimator: Any) -> object:
    """Without the warning that draws are few."""
    with evidence_prepared() as (program, posterior, batch):
        return estimator(program, posterior, batch, seed=0, progress=False)


def evidence_prepared() -> Any:
    """Model, guide and data, made ready."""
    return pv.evidence.prepared(MODEL, GUIDE, Y, 0)


CALLS: dict[str, Callable[[], object]] = {
    "elbo": lambda: pv.elbo(MODEL, GUIDE, Y),
    "evaluate": lambda: pv.evaluate(MODEL, GUIDE, Y, pv.ImportanceSampling(50)),
    "importance sampling": evidence(pv.ImportanceSampling(50)),
    "an error to be met": evidence(UNTIL),
    "defensive": evidence(pv.ImportanceSampling(50, proposal=pv.Defensive())),
    "tightest": evidence(pv.Tightest(50).sampled),
    "annealing": evidence(ANNEALED),
    "inference_gap": lambda: pv.inference_gap(
        MODEL, GUIDE, Y, estimator=pv.ImportanceSampling(50), num_samples=50
    ),
    "cross_check": lambda: cross_check(MODEL, GUIDE, Y),
    "bidirectional": lambda: bidirectional(MODEL, None, Y, ANNEALED),
    "dependence": lambda: dependence(MODEL, measure=MutualInformation(20, 20, 3)),
    "outliers": lambda: outliers(MODEL, GUIDE, Y, 20, pv.ImportanceSampling(50)),
    "calibration": lambda: simulation_based_calibration(MODEL, GUIDE, Y, 20, 9),
    "surgery": lambda: surgery(MODEL, GUIDE, Y, 10),
    "to_inference_data": lambda: to_inference_data(MODEL, GUIDE, Y, num_samples=30),
}
COMMON = {"inference_gap": {"importance"}}  # the guide and q* are held against common draws


@pytest.mark.parametrize("name", CALLS)
def test_no_stream_is_drawn_from_twice(name: str) -> None:
    """Within one call, but where the same draws are meant."""
    assert shared_streams(CALLS[name]) <= COMMON.get(name, set())


def one_stream(seed: int, name: str) -> int:
    """A wrong twin: parts of a seed are that seed."""
    return seed


def one_key(seed: int, name: str, *batch: torch.Tensor) -> torch.Tensor:
    """A wrong twin: all that annealing draws for a row has one key."""
    return row_keys(seed, "annealing", *batch)


def simulated(seed: int, name: str) -> int:
    """A wrong twin: data and the latents that weigh them are drawn from one stream."""
    return stream(seed, "simulate" if name == "dependence.latents" else name)


@pytest.mark.parametrize(
    ("name", "module", "attribute", "wrong", "caught"),
    [
        ("an error to be met", importance, "stream", one_stream, "importance"),
        ("annealing", annealing, "row_keys", one_key, "annealing"),
        ("bidirectional", annealing, "row_keys", one_key, "annealing"),
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
    """Pilot and estimate, annealing and its pilot, forwards and backwards."""
    monkeypatch.setattr(module, attribute, wrong)
    assert caught in shared_streams(CALLS[name])


def test_evidence_from_the_draws_of_the_bound_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The evidence would be a third use of the draws that guide and q* have in common."""
    counts = []
    for wrong in (stream, one_stream):
        monkeypatch.setattr(decomposition, "stream", wrong)
        with listening() as heard:
            CALLS["inference_gap"]()
        drawn = [key for key, *_ in heard.drawn if heard.names[key] == "importance"]
        counts.append(max(Counter(drawn).values()))
    assert counts == [2, 3]


def test_data_that_weigh_themselves_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents that made the data weigh them: in `dependence`, the same state a third time."""
    listeners = []
    for wrong in (stream, simulated):
        monkeypatch.setattr(measures, "stream", wrong)
        with Listener() as listener:
            CALLS["dependence"]()
        listeners.append(max(Counter(listener.starts).values()))
    assert listeners == [2, 3]  # simulated, simulated once more to be checked, and weighed with
