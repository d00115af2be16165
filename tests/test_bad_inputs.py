"""Malformed inputs, made from the signatures: each is refused by us, with what to do.

The arguments that the one mechanism checks get values that their own check must refuse; data, which
are checked where they are read, are malformed in a valid call of every function that takes them.
"""

import functools
import inspect
import math
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae import _annotations as annotations
from pyro_vae import _arguments as arguments
from tests.helpers.public import public

PUBLIC = public()
# scikit-learn's estimators keep what they are given, and check it when they are fitted. What is
# saved is registered by decorators, in the layer below the mechanism.
UNCHECKED = ("pyro_vae.sklearn.", "pyro_vae.registry.")
# What a remedy says.
REMEDY = re.compile(
    r"; .*(pass|call|convert|put|use|help\(\)|drop|fill|give|make|check|write|leave|take|fit)"
    r"|: (pass|use|convert|drop|check|make|take|call|select|fit|write|rename|give|change)"
    r"|: (leave|wrap|choose|correct)"
)


class Nothing:
    """An object that fits nowhere."""


def misfits(kind: annotations.Kind) -> list[Any]:
    """Values that a check must refuse, by its kind."""
    nothing = [Nothing(), Nothing]
    if isinstance(kind, annotations.Number):
        low, high = kind.interval.low, kind.interval.high
        below = [low - 1] if math.isfinite(low) else []
        above = [high + 1] if math.isfinite(high) else []
        ends = [low, high] if kind.interval.is_open else []
        outside = [*below, *above, *(end for end in ends if math.isfinite(end))]
        return [*nothing, "3", 1j, [[1]], *map(kind.kind, outside)]
    if isinstance(kind, annotations.Items):
        return [*nothing, {"a": 1}, *([[Nothing()], [[Nothing()]]] if kind.item else [])]
    if isinstance(kind, annotations.Tuple):
        return [*nothing, (), (Nothing(),) * 9]
    if isinstance(kind, annotations.Dictionary):
        return [*nothing, [1], *([{"a": Nothing()}] if kind.value else [])]
    if isinstance(kind, annotations.DataOrNumber):
        return [True, np.True_, 0, -3, 1.5]
    if isinstance(kind, annotations.Either):
        return _misfits_of_all(kind)
    if kind.conversion:
        odd = [torch.zeros(()), torch.zeros(2, dtype=torch.complex64)]
        return [*nothing, *(value for value in odd if not _takes(kind, value))]
    takes_classes = kind.expected == "a function" or getattr(kind, "cls", None) is type
    return nothing[:1] if takes_classes else nothing


def _misfits_of_all(kind: annotations.Either) -> list[Any]:
    """Values that none of several kinds takes."""
    values = [value for part in kind.kinds for value in misfits(part)]
    return [value for value in values if not any(_takes(part, value) for part in kind.kinds)]


def _takes(kind: annotations.Kind, value: Any) -> bool:
    try:
        kind.take(value)
    except annotations.Misfit:
        return False
    return True


class Case(NamedTuple):
    """A call with one malformed argument."""

    name: str
    argument: str
    value: Any
    call: Callable[[], Any]

    def __str__(self) -> str:
        return f"{self.name}({self.argument}={arguments.shown(self.value)})"


def argument_cases() -> Iterator[Case]:
    """Every argument of every public function that is checked at the call."""
    for name, function in PUBLIC.items():
        if name.startswith(UNCHECKED):
            continue
        tensors = name.rpartition(".")[-1] not in arguments._INNER
        reader = arguments.Reader(inspect.unwrap(function), tensors=tensors)
        first = [None] if "self" in reader.parameters else []
        for argument, kind in reader.kinds.items():
            for value in misfits(kind) if argument != "self" else []:
                call = functools.partial(function, *first, **{argument: value})
                yield Case(name, argument, value, call)


def verdict(case: Case) -> str:
    """What is wrong with how a malformed input is answered; empty if nothing is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case.call()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        text = f"{type(error).__name__}: {error}"
        if "pyro_vae" not in last.replace("\\", "/").rpartition("/")[0] or "/tests/" in last:
            return f"{case}: foreign, {text[:200]} ({last})"
        return "" if REMEDY.search(str(error)) else f"{case}: no remedy, {text[:300]}"
    return f"{case}: accepted"


# Data, malformed in calls that are valid otherwise

Y = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))


def vae() -> tuple[Any, pv.Guide]:
    """A model of three features and a guide."""
    torch.manual_seed(0)
    model = pv.models.VAE(pv.nets.MLPDecoder(2, 3, (4,)), pv.likelihoods.Gaussian(), 2)
    return model, pv.Guide(model, pv.Encoder(pv.nets.MissingIndicator(pv.nets.MLPEncoder(6, (4,)))))


def valid() -> dict[str, Any]:
    """An argument for each name that signatures use, small enough for a quick call."""
    few = pv.ImportanceSampling(30)
    return {
        "data": Y, "train": Y, "test": Y, "reference": Y, "validation": Y, "held_out": Y,
        "guides": {"a": pv.GlobalParameters()}, "betas": (1.0,), "estimator": few,
        "evaluation": few, "num_epochs": 1, "num_samples": 30, "progress": False,
        "columns": [0], "on": [1], "num_draws": 5, "fitting": pv.FitRows(max_steps=2),
        "num_repeats": 3, "num_simulations": 4, "objective": pv.IWAE(2), "num_prior_samples": 10,
    }  # fmt: skip


def malformed_data() -> dict[str, Any]:
    """Data that no call can take."""
    return {
        "None": None, "a word": "digits", "a number": 3.0, "a list": [[1.0, 2.0, 3.0]],
        "a dict": {"y": Y}, "no tensor": (), "a generator": (row for row in Y), "a set": {1.0},
        "an object": Nothing(), "a class": Nothing, "complex": Y.to(torch.complex64),
        "booleans": Y > 0, "sparse": Y.to_sparse(), "no rows": Y[:0], "no columns": Y[:, :0],
        "other columns": torch.zeros(24, 5), "one axis": torch.zeros(24), "a scalar": Y[0, 0],
        "float64": Y.double(), "half": Y.half(), "meta": Y.to("meta"),
        "a row of nan": Y.index_fill(0, torch.tensor([1]), math.nan),
        "infinite": Y.index_fill(0, torch.tensor([1]), math.inf),
        "objects": np.array([[1, 2, None]] * 24, dtype=object), "words": np.full((24, 3), "a"),
        "dates": np.full((24, 3), "2020-01-01", dtype="datetime64[D]"),
        "a record": np.zeros(24, dtype=[("a", float)]),
        "unequal": (Y, Y[:5]), **exotic(),
    }  # fmt: skip


def exotic() -> dict[str, Any]:
    """Tensors of kinds that torch itself warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(Y, 0.1, 0, torch.quint8)
        return {"quantized": quantized, "nested": torch.nested.nested_tensor([Y[0], Y[1]])}


DATA = ("data", "train", "test", "validation", "held_out", "reference")
# Arguments in which a function differs from others of the same name.
OWN: dict[str, dict[str, Any]] = {
    "bidirectional": {"estimator": pv.AnnealedImportanceSampling(2, num_temperatures=3)},
    "explain": {"columns": None},
    "marginal": {"columns": [0, 1, 2]},
}

# What is no fault: an argument that may be left out, and data of which only the shape is read.
TAKEN = {
    "fit(validation, None",
    "rate_distortion(held_out, None",
    "outliers(reference, None",
    "out_of_distribution(reference, None",
    *(
        f"dependence(data, {kind}"
        for kind in ("None", "float64", "half", "a row of nan", "infinite")
    ),
}


def functions_of_data() -> dict[str, Callable[..., Any]]:
    """Public functions of a model and data that a table of arguments is enough for."""
    known = {"model", "guide", *valid()}
    found = {}
    for name, function in PUBLIC.items():
        parameters = inspect.signature(function).parameters
        lacking = [p for p in parameters.values() if p.default is p.empty and p.name not in known]
        many = [p for p in lacking if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if {"model"} <= parameters.keys() and not many and parameters.keys() & {*DATA}:
            found[name] = function
    return found


def given_to(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of a valid call, for a model and a guide of its own."""
    model, guide = vae()
    table = {"model": model, "guide": guide, **valid(), **OWN.get(name.rpartition(".")[-1], {})}
    return {key: table[key] for key in inspect.signature(function).parameters if key in table}


def data_cases() -> Iterator[Case]:
    """Every kind of malformed data in every argument of data."""
    for name, function in functions_of_data().items():
        for argument in inspect.signature(function).parameters.keys() & {*DATA}:
            for kind, value in malformed_data().items():

                def call(
                    n: str = name, f: Any = function, a: str = argument, v: Any = value
                ) -> Any:
                    return f(**given_to(n, f) | {a: v})

                yield Case(name, f"{argument}, {kind}", value, call)


def is_taken(case: Case) -> bool:
    """Whether it is answered by right."""
    return f"{case.name.rpartition('.')[-1]}({case.argument}" in TAKEN


def test_every_checked_argument_is_refused() -> None:
    """In our words: at the call, with what was expected, what came and what to do."""
    cases = list(argument_cases())
    assert len(cases) > 5000
    bad = [answer for answer in map(verdict, cases) if answer]
    assert not bad, f"{len(bad)} of {len(cases)}: {bad[:10]}"


@pytest.mark.without_type_checks("passes data of wrong types, which the check refuses first")
def test_malformed_data_are_refused() -> None:
    """A sample: each kind in a few functions."""
    assert_refused([case for number, case in enumerate(quick_cases()) if number % 13 == 0])


def test_further_data_are_named() -> None:
    """Where a function takes several data, the error says which: also for other columns."""
    further = [case for case in data_cases() if not re.match("data|train", case.argument)]
    cases = [case for case in further if not is_taken(case)]
    assert len(cases) > 100
    unnamed = [f"{case}: {refusal(case)}" for case in cases if not is_named(case)]
    assert not unnamed, unnamed[:10]


def refusal(case: Case) -> str:
    """The error with which an input is refused."""
    try:
        case.call()
    except (TypeError, ValueError) as error:
        return str(error)
    return "accepted"


def is_named(case: Case) -> bool:
    """Whether the error has the name of the argument."""
    return case.argument.partition(",")[0] in refusal(case)


@pytest.mark.slow
def test_all_malformed_data_are_refused() -> None:
    """Each kind in every function and every argument of data."""
    cases = list(data_cases())
    assert len(cases) > 1000
    assert_refused(cases)


def quick_cases() -> Iterator[Case]:
    """Those of functions that do not train first."""
    for case in data_cases():
        if not re.search("compare|rate_distortion|bidirectional|cross_check", case.name):
            yield case


def assert_refused(cases: list[Case]) -> None:
    """No error from inside another package, no wrong acceptance, no message without a remedy."""
    bad = [answer for case in cases if not is_taken(case) for answer in [verdict(case)] if answer]
    assert not bad, f"{len(bad)} of {len(cases)}: {bad[:10]}"


@pytest.mark.parametrize("name", ["elbo", "encode", "inference_gap", "marginal", "explain", "fit"])
def test_the_calls_are_valid_without_the_fault(name: str) -> None:
    """So that it is the malformed argument that is refused."""
    full, function = next(
        (full, f) for full, f in functions_of_data().items() if full.endswith(f".{name}")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert function(**given_to(full, function)) is not None


def test_faults_are_seen() -> None:
    """Wrong twins: what takes anything, fails elsewhere, or says no remedy."""

    def mute() -> None:
        pv._arguments.checked(lambda: None)()
        raise ValueError("no")

    for call, answer in [
        (lambda: None, "accepted"),
        (lambda: torch.zeros(2) @ torch.zeros(3), "foreign"),
        (mute, "foreign"),
    ]:
        assert answer in verdict(Case("f", "x", 1, call))
