"""Arguments of public functions: malformed ones are refused at the call, in words; good ones pass.

The signatures themselves are the table: what is malformed is made from each annotation, and every
function, class and method that `dir(pv)` and its modules show is called with it.
"""

import functools
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_type_hints

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae._annotations import COUNT, Interval, kind_of
from pyro_vae._arguments import _EXAMPLES, Reader, check_public, checked
from tests.helpers.public import public

NAN = math.nan
MALFORMED: dict[Any, list[Any]] = {
    int: ["3", 2.5, True, np.True_, NAN, 1j, [1], int, torch.tensor(2)],
    float: ["0.1", True, NAN, 1j, [0.5], float, torch.tensor([0.5, 0.5])],
    bool: ["no", 1, 0.0, bool],
    str: [3, b"x", ["x"], str],
}


PUBLIC = public()
# scikit-learn's estimators keep what they are given, and check it when they are fitted.
UNCHECKED = ("pyro_vae.sklearn.",)


def cases() -> Iterator[tuple[str, str, Any]]:
    """Function, argument and a malformed value, for annotations that are one plain type."""
    for name, function in PUBLIC.items():
        for parameter in inspect.signature(function).parameters.values():
            union = isinstance(parameter.annotation, UnionType)
            kinds = {*get_args(parameter.annotation)} if union else {parameter.annotation}
            plain = kinds - {type(None)}
            many = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if many or not plain or not plain <= MALFORMED.keys():
                continue
            for value in MALFORMED[min(plain, key=[float, int, bool, str].index)]:
                if type(value) not in plain or value != value:
                    yield name, parameter.name, value


def refusal(function: Callable[..., Any], argument: str, value: Any) -> str:
    """What is said to a malformed argument; empty if it was taken."""
    first = [None] if "self" in inspect.signature(function).parameters else []
    try:
        function(*first, **{argument: value})
    except Exception as error:
        return str(error)
    return ""


def test_every_malformed_argument_is_refused() -> None:
    """By name, with what was expected, what came and what to do, before anything else is seen."""
    bad = [
        (name, argument, value, text)
        for name, argument, value in cases()
        if not name.startswith(UNCHECKED)
        for text in [refusal(PUBLIC[name], argument, value)]
        if not (f"`{argument}` must be " in text and "; got " in text and ": " in text)
        and not (
            value != value and re.search("[,;] got ", text)
        )  # a class may say it in its own words
    ]
    assert not bad, f"{len(bad)} of {len(list(cases()))}, such as {bad[:10]}"


def test_the_signatures_are_many() -> None:
    """What is looked at is the library: a twin of the test above that fails if it sees nothing."""
    assert len(PUBLIC) > 300
    assert len(list(cases())) > 1000


@pytest.mark.parametrize("name", ["num_samples", "batch_size", "latent_dim", "seed", "memory"])
def test_one_word_has_one_range(name: str) -> None:
    """A number is refused below its range wherever the name stands."""
    asked = [f for f in PUBLIC.values() if name in inspect.signature(f).parameters]
    assert asked
    for function in asked:
        annotation = inspect.signature(function).parameters[name].annotation
        if annotation in (int, float):
            assert "must be" in refusal(function, name, annotation(-1)), function


def test_defaults_are_in_range() -> None:
    """The default of every argument passes its own check."""
    for function in PUBLIC.values():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.annotation in (int, float) and parameter.default is not parameter.empty:
                default = np.array(parameter.default)[()]  # another object than the default
                text = refusal(function, parameter.name, default)
                assert f"`{parameter.name}` must be" not in text, function


def answer(annotation: Any, value: Any, interval: Interval | None = None) -> Any:
    """What a function of one argument gets to see."""

    def function(argument: Any) -> Any:
        return argument

    function.__annotations__["argument"] = (
        annotation if interval is None else Annotated[annotation, interval]
    )
    return checked(function)(argument=value)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, np.int64(3), 3),
        (int, np.uint8(3), 3),
        (float, np.float32(0.5), 0.5),
        (float, 2, 2.0),
        (float, Fraction(1, 2), 0.5),
        (float | int, 2, 2),
        (bool, np.True_, True),
        (tuple[int, ...], [4, np.int64(5)], (4, 5)),
        (tuple[int, ...], (), ()),
        (tuple[int, int] | None, [8, 8], (8, 8)),
        (Sequence[int], np.array([0, 2]), [0, 2]),
        (Sequence[int], torch.tensor([0, 2]), [0, 2]),
        (Sequence[str], ("a", "b"), ("a", "b")),
        (float | None, None, None),
        (Literal["a", "b"], "b", "b"),
    ],
)
def test_what_is_meant_is_taken(annotation: Any, value: Any, expected: Any) -> None:
    """NumPy's numbers, whole numbers for others, and lists for tuples; each arrives as is asked."""
    taken = answer(annotation, value)
    assert taken == expected
    assert type(taken) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Sequence[str], "abc"),
        (Sequence[str], ["a", 3]),
        (Sequence[int], [0.5]),
        (Sequence[int], [True]),
        (Sequence[int], {1, 2}),
        (Sequence[int], torch.zeros(2, 2, dtype=torch.int64)),
        (tuple[int, int], (1, 2, 3)),
        (dict[str, int], [("a", 1)]),
        (dict[str, int], {1: 1}),
        (dict[str, int], {"a": 1.5}),
        (Tensor, [1.0]),
        (Tensor, np.ones(3)),
        (torch.nn.Module, torch.nn.ReLU),
        (torch.nn.Module | None, "relu"),
        (Callable[..., Any], torch.nn.Linear),
        (Callable[..., Any], None),
        (type[torch.nn.Module], torch.nn.ReLU()),
        (float, math.inf),
        (float, 10**400),
    ],
)
def test_what_cannot_be_meant_is_refused(annotation: Any, value: Any) -> None:
    """Strings are no sequences of names, truth values no numbers, classes no objects of theirs."""
    with pytest.raises((TypeError, ValueError), match=r"`argument` must be .*; got .*: "):
        answer(annotation, value)


def test_a_range_of_its_own() -> None:
    """An annotation may name another range than the argument's name does."""
    assert answer(int, 2, Interval(2)) == 2
    with pytest.raises(ValueError, match=r"a whole number of at least 2; got 1 \(int\)"):
        answer(int, 1, Interval(2))


def test_types_and_values_are_told_apart() -> None:
    """A wrong type is a `TypeError`, a number out of range a `ValueError`."""
    with pytest.raises(TypeError):
        pv.ImportanceSampling("5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`num_samples` must be a whole number of at least 1"):
        pv.encode(None, None, torch.ones(1, 1), num_samples=0)  # type: ignore[arg-type]


def test_a_constructor_speaks_first() -> None:
    """What a class says of a number out of range is more than what its name says."""
    with pytest.raises(
        ValueError, match=r"for a family without correlations use DiagonalNormal\(\)"
    ):
        pv.LowRankNormal(0)
    with pytest.raises(TypeError, match="`rank` must be a whole number"):
        pv.LowRankNormal("2")  # type: ignore[arg-type]


def test_an_inherited_constructor_is_checked() -> None:
    """It names the class that was called, not the one that the constructor is from."""
    with pytest.raises(TypeError, match=r"^Gaussian: `sigma` must be"):
        pv.likelihoods.Gaussian("a")  # type: ignore[arg-type]


def test_a_network_is_no_map() -> None:
    """The remedy is the map of this network, not another network."""
    net = torch.nn.Linear(10, 4)
    model = pv.models.VAE(torch.nn.Linear(2, 10), pv.likelihoods.Gaussian(), 2)
    with pytest.raises(TypeError, match=r"`map` must be .*, as in map=pv\.Encoder\(net\)$"):
        pv.Guide(model, net)  # type: ignore[arg-type]
    assert len(pv.Guide(model, pv.Encoder(net)).mean(torch.zeros(3, 10))) == 3


def test_the_examples_of_remedies_are_taken() -> None:
    """What a refusal tells people to pass runs, and each function with that argument takes it."""
    model = pv.models.VAE(torch.nn.Linear(2, 10), pv.likelihoods.Gaussian(), 2)
    guide = pv.Guide(model, pv.GlobalParameters())
    readers = [
        Reader(inspect.unwrap(function), tensors=False)
        for name, function in PUBLIC.items()
        # A schedule takes the optimizer, not what makes it; a likelihood is given further data.
        if not name.endswith((".constant", ".check_given"))
    ]
    for name, example in _EXAMPLES.items():
        names = {"pv": pv, "torch": torch, "functools": functools, "model": model, "guide": guide}
        names["x"] = np.zeros((3, 10))
        value = eval(example, names)
        takers = [reader for reader in readers if reader.kinds.get(name)]
        assert takers
        for reader in takers:
            assert reader.take(name, value) is not None, (name, reader.function)


@pytest.mark.parametrize(
    ("x", "remedy"),
    [
        (np.array(5), "num_samples=x.item()"),
        (torch.tensor(0), "num_samples=1000, the default"),  # 0 would be refused in turn
        (torch.tensor(2.5), "num_samples=1000, the default"),
        (torch.tensor(5, device="meta"), "num_samples=1000, the default"),  # it has no values
        (torch.tensor([5.0]).to_sparse(), "num_samples=1000, the default"),  # cannot be listed
    ],
)
def test_a_plain_value_is_a_remedy_where_it_is_taken(x: Any, remedy: str) -> None:
    """The code in the message is run on the value."""

    def double(num_samples: int = 1000) -> int:
        return 2 * num_samples

    with pytest.raises(TypeError, match=re.escape(remedy)):
        checked(double)(num_samples=x)
    value = eval(remedy.partition("=")[2].partition(",")[0], {"x": x})
    assert checked(double)(num_samples=value) == 2 * value


def test_data_are_no_plain_value() -> None:
    """An array in place of a reader is put into one."""
    rows = np.arange(6.0).reshape(3, 2)
    with pytest.raises(TypeError, match=re.escape("reader=pv.data.OnDisk(x)")):
        next(iter(pv.data.chunks(rows)))  # type: ignore[arg-type]
    assert len(next(iter(pv.data.chunks(pv.data.OnDisk(rows))))[0]) == 3


def test_a_function_without_the_check_is_caught() -> None:
    """The wrong twin: what `check_public` does not reach takes anything, and is found out."""

    def double(num_samples: int) -> int:
        return 2 * num_samples

    assert refusal(double, "num_samples", 0) == ""
    assert "`num_samples` must be" in refusal(checked(double), "num_samples", 0)


@pytest.mark.parametrize(
    "module",
    [
        "__main__",
        "pyro_vae.cli.options",
        "pyro_vae.comparisons.running",
        "pyro_vae.sklearn",
        "pyro_vae.tables",
    ],
)
def test_calls_from_modules_that_check_nothing_are_checked(module: str) -> None:
    """Callbacks and the command line pass new values; a checked module passes what was checked."""

    def halved(num_samples: int) -> int:
        return num_samples // 2

    def called_from(name: str) -> Callable[..., int]:
        namespace = {"__name__": name, "halved": checked(halved)}
        return eval("lambda number: halved(number)", namespace)

    assert called_from("pyro_vae.evidence.weights")(0) == 0
    with pytest.raises(ValueError, match="`num_samples` must be"):
        called_from(module)(0)
    assert get_type_hints(checked(halved)) == {"num_samples": int, "return": int}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 2.5),
        ("callbacks", ["x"]),
        ("checkpoint", 3),
        ("compile", "yes"),
        ("device", "gpu"),
        ("num_epochs", 0),
        ("precision", "bf16"),
    ],
)
def test_options_of_others_are_checked(name: str, value: Any) -> None:
    """What `compare` and a table's model pass on to `fit` was given to them unread."""
    y, guides = torch.randn(6, 3), {"global": pv.GlobalParameters()}
    model = pv.models.VAE(torch.nn.Linear(1, 3), pv.likelihoods.Gaussian(), 1)
    with pytest.raises((TypeError, ValueError), match=f"(?i){name}"):
        pv.compare(model, guides, y, y, **{name: value})
    with pytest.raises((TypeError, ValueError), match=f"(?i){name}"):
        pv.TableVAE.of({"a": [0.1, 0.7, 0.4], "b": [1.5, 0.2, 0.3]}).fit(**{name: value})


def test_wrapping_twice_changes_nothing() -> None:
    """A module may be public under two names: the second finds the work done."""
    before = pv.evidence.elbo
    check_public(vars(pv.evidence))
    assert pv.evidence.elbo is before
    assert inspect.signature(pv.fit).parameters["batch_size"].default == 64
    assert kind_of(int, COUNT) is not None


@pytest.mark.parametrize("device", ["gpu", "meta", "cpu:x", 3, torch.float32])
def test_devices_that_hold_no_numbers_here_are_refused(device: Any) -> None:
    """By `fit`, `load` and tables of rows alike, since all annotate it alike."""
    with pytest.raises((ValueError, TypeError), match=r"`device` must be a device of this machine"):
        pv.LocalParameters(3, device=device)
    pv.LocalParameters(3, device=torch.device("cpu"))


def test_pictures_that_cannot_be_drawn_are_refused_before_training() -> None:
    """Labels of other rows, and images of another size."""
    y, model = torch.randn(6, 4), pv.models.VAE(torch.nn.Linear(1, 4), pv.likelihoods.Gaussian(), 1)
    guides = {"global": pv.GlobalParameters()}
    with pytest.raises(ValueError, match=r"one label per held-out row, 6 in all; got shape \(2,\)"):
        pv.compare(model, guides, y, y, labels=torch.zeros(2))
    with pytest.raises(ValueError, match="a datum of 4 numbers; got 3 x 3"):
        pv.compare(model, guides, y, y, image_shape=(3, 3))


@pytest.mark.parametrize(
    ("call", "unknown", "remedy"),
    [
        (pv.fit, "epochs", "pass `num_epochs`"),
        (pv.fit, "n_epochs", "pass `num_epochs`"),
        (pv.fit, "verbose", "pass `progress`"),
        (pv.fit, "lr", "optimizer=pv.training.adam_with(0.005)"),
        (pv.elbo, "random_state", "pass `seed`"),
        (pv.elbo, "num_smaples", "pass `num_samples`"),
        (pv.ImportanceSampling, "draws", "pass one of num_samples, "),
        (pv.nets.MLPDecoder, "latents", "pass `latent_dim`"),
    ],
)
def test_unknown_arguments_are_refused_with_the_name_that_is_meant(
    call: Callable[..., Any], unknown: str, remedy: str
) -> None:
    """Python 3.11 names no other argument."""
    with pytest.raises(TypeError, match=f"got an unexpected keyword argument '{unknown}'") as error:
        call(**{unknown: 3})
    assert remedy in str(error.value)


TWO = (torch.zeros(3, 2), torch.zeros(3))


def pair(x: Tensor, y: Tensor | None = None) -> None:
    """A regression with a latent per row; without `y` nothing is observed."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x.sum(-1) + z, 1.0), obs=y)


@pytest.mark.parametrize(
    ("call", "arguments", "told"),
    [
        (pv.fit, (pair, pair, *TWO), r"takes 3 .* \(model, guide, data\); got 4: .*tuple"),
        (pv.fit, (pair, pair, TWO, 50), r"got 4: pass options by name, such as num_epochs="),
        (pv.elbo, (pair, pair, *TWO), r"`num_samples` .*tuple, as in data=\(x, y\)$"),
        (pv.evaluate, (pair, pair, *TWO), r"`estimator` .*tuple, as in data=\(x, y\)$"),
        (pv.Guide, (pair, pv.GlobalParameters(), *TWO), r"tuple, as in example=\(x, y\)$"),
        (pv.ImportanceSampling, range(5, 15), r"takes \d position.*; got 10: leave out the rest$"),
    ],
)
def test_tensors_of_the_data_that_were_not_put_into_a_tuple(
    call: Callable[..., Any], arguments: Iterable[Any], told: str
) -> None:
    """The remedy is the tuple, not to make a number of a tensor."""
    with pytest.raises(TypeError, match=told):
        call(*arguments)
    guide = pv.Guide(pair, pv.GlobalParameters(), example=TWO)
    assert len(pv.elbo(pair, guide, TWO, 5)) == 3


def test_an_argument_that_was_left_out() -> None:
    """The program then observes nothing, and the error names it."""
    with pytest.raises(ValueError, match=r"argument `y` was not given: .* \(x, y\)\)$"):
        pv.Guide(pair, pv.GlobalParameters(), example=TWO[0])
