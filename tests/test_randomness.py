"""Streams, keys that move with rows, and noise made of a key and a counter."""

import ast
import math
import random
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_vae import randomness
from pyro_vae.randomness import (
    DIGEST_ROWS,
    forked,
    generator,
    mixed,
    normals,
    row_digests,
    row_keys,
    seeded,
    stream,
    undisturbed,
    uniforms,
)
from tests.helpers.statistics import FALSE_ALARM, assert_mean

LIKE = torch.zeros(0, dtype=torch.float64)
PACKAGE = Path(randomness.__file__).parent


def test_digests_are_of_numbers() -> None:
    """Neither dtype nor layout nor the sign of a zero or nan plays a part; every number does."""
    y = torch.randint(-3, 4, (20, 6)).float()
    expected = row_digests(y)
    wide = torch.empty(20, 12)
    wide[:, ::2] = y
    for same in (
        y.double(),
        y.half(),
        y.long(),
        y.T.contiguous().T,
        wide[:, ::2],
        y.flip(0).flip(0),
    ):
        assert torch.equal(row_digests(same), expected)
    assert torch.equal(row_digests(y[:, :2], y[:, 2:]), expected)
    assert torch.equal(row_digests(-torch.zeros(1, 2)), row_digests(torch.zeros(1, 2)))
    signed, hole = torch.tensor([[-torch.nan, 1.0]]), torch.tensor([[torch.nan, 1.0]])
    assert torch.equal(row_digests(signed), row_digests(hole))  # on some processors 0 / 0 has one
    changed = y.clone()
    changed[3, 4] = torch.nextafter(changed[3, 4], torch.tensor(9.0))
    assert torch.equal(row_digests(changed) != expected, torch.arange(20) == 3)


def test_digests_and_keys_stay_what_they_are() -> None:
    """Numbers that depend on a seed can be repeated by later versions."""
    y = torch.tensor([[0.5, -1.0], [0.5, -1.0]])
    digest = row_digests(y)[0].item()
    assert digest == int.from_bytes(_blake2b(np.array([0.5, -1.0], "<f8")), "little", signed=True)
    stem = (
        int.from_bytes(blake2b(b"\7" + bytes(7) + b"x", digest_size=8).digest(), "little") % 2**63
    )
    parts = [np.array([stem, digest, nth], "<i8") for nth in range(2)]
    keys = [int.from_bytes(_blake2b(part), "little") % 2**63 for part in parts]
    assert row_keys(7, "x", y).tolist() == keys


def _blake2b(values: np.ndarray) -> bytes:
    return blake2b(values.tobytes(), digest_size=8).digest()


def test_keys_move_with_their_rows() -> None:
    """A key follows its row through a permutation and into any chunk."""
    y, x = torch.randn(50, 3), torch.randn(50)
    keys = row_keys(0, "x", y, x)
    order = torch.randperm(50)
    assert torch.equal(row_keys(0, "x", y[order], x[order]), keys[order])
    assert torch.equal(
        torch.cat([row_keys(0, "x", y[i : i + 7], x[i : i + 7]) for i in range(0, 50, 7)]), keys
    )
    assert len(keys.unique()) == 50
    assert not (row_keys(1, "x", y, x) == keys).any()
    assert not (row_keys(0, "x", y) == keys).any()  # what stands beside y is part of the datum


def test_equal_rows_get_keys_of_their_own() -> None:
    """However the rows are ordered, a row and its twins have the same set of keys between them."""
    y = torch.tensor([[1.0], [2.0], [1.0], [3.0], [1.0], [2.0]])
    keys = row_keys(0, "x", y)
    assert len(keys.unique()) == 6
    order = torch.randperm(6)
    permuted = row_keys(0, "x", y[order])
    for value in (1, 2, 3):
        twins = (y == value).flatten()
        assert torch.equal(keys[twins], permuted[twins[order]])  # first twin, second twin, ...


def test_more_rows_than_are_hashed_at_a_time() -> None:
    """The digest of a row does not depend on where the hashing is cut."""
    y = torch.arange(DIGEST_ROWS + 3.0)
    digests = row_digests(y)
    assert torch.equal(digests[-3:], row_digests(y[-3:]))
    assert len(digests.unique()) == len(y)


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64 - 1])
def test_keys_fit_a_generator(seed: int) -> None:
    """Any integer is a seed, and what comes out is one for torch."""
    keys = row_keys(seed, "x", torch.randn(1000, 2))
    assert keys.dtype == torch.int64
    assert (keys >= 0).all()
    torch.Generator().manual_seed(int(keys[0]))


def test_digests_need_rows_that_match() -> None:
    """Tensors of one batch have the same number of rows."""
    with pytest.raises(ValueError, match="same number of rows"):
        row_digests(torch.zeros(2), torch.zeros(3))


def drawn() -> tuple[float, ...]:
    """A draw from each of the three generators that a program may use."""
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002


@pytest.mark.without_type_checks("the check itself draws from Python's random numbers")
def test_a_fork_leaves_the_stream() -> None:
    """The same draws inside every time; the caller's stream goes on as if nothing had been."""
    with undisturbed():
        after = drawn()
    inside = []
    for _ in range(2):
        with forked(3, "x"):
            inside.append(drawn())
    assert inside[0] == inside[1] != after
    assert drawn() == after


@pytest.mark.without_type_checks("the check itself draws from Python's random numbers")
def test_a_state_returns_as_often_as_asked() -> None:
    """Inside the block by the function that it is given, and after it, also after an error."""
    inside = []
    with suppress(ValueError), undisturbed() as again:
        for _ in range(2):
            inside.append(drawn())
            again()
        seeded(3)
        raise ValueError
    assert inside == [drawn()] * 2


# Noise made of a key and a counter


def bits(*values: int) -> Tensor:
    """Unsigned 64-bit integers as torch has them."""
    return torch.tensor([value - 2**64 if value >= 2**63 else value for value in values])


def test_splitmix64() -> None:
    """Known answers: the generator of Java and of many others, seeds 0 and 1234567."""
    increment = 0x9E3779B97F4A7C15
    states = bits(*((seed + n * increment) % 2**64 for seed in (0, 1234567) for n in (1, 2, 3)))
    expected = bits(
        *(0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F),
        *(6457827717110365317, 3203168211198807973, 9817491932198370423),
    )
    assert torch.equal(mixed(states), expected)


def test_noise_stays_what_it_is() -> None:
    """The first numbers of a key, computed with Python's integers: later versions repeat them."""

    def mix(z: int) -> int:
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> shift)) * factor % 2**64
        return z ^ (z >> 31)

    key, increment = 7, 0x9E3779B97F4A7C15
    start, step = (mix((key + n * increment) % 2**64) for n in (1, 2))
    step |= 1
    assert bin(step ^ (step >> 1)).count("1") >= 24
    words = [mix((start + n * step) % 2**64) for n in range(3)]
    expected = []
    for word in words:
        radius = math.sqrt(-2 * math.log(((word >> 32) + 0.5) * 2.0**-32))
        angle = 2 * math.pi * (word % 2**32) * 2.0**-32
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    found = normals(torch.tensor([key]), 3, 2, LIKE).flatten()
    torch.testing.assert_close(found, torch.tensor(expected, dtype=LIKE.dtype), rtol=0, atol=1e-14)


@pytest.mark.parametrize("draw", [normals, uniforms])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_noise_belongs_to_its_key_and_place(
    draw: object, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to the other rows, their order, the pieces, or how many numbers are made at a time."""
    assert callable(draw)
    keys = torch.randint(2**62, (9,))
    whole = draw(keys, 11, size, LIKE)
    order = torch.randperm(9)
    assert torch.equal(draw(keys[order], 11, size, LIKE), whole[:, order])
    parts = [draw(keys, 4, size, LIKE), draw(keys, 7, size, LIKE, first=4)]
    assert torch.equal(torch.cat(parts), whole)
    for at_once in (1, 8, 30):
        monkeypatch.setattr(randomness, "_AT_ONCE", at_once)
        torch.testing.assert_close(draw(keys, 11, size, LIKE), whole, rtol=0, atol=1e-14)
    assert not torch.equal(draw(keys, 11, size, LIKE, first=1), whole)
    single = draw(keys, 11, size, torch.zeros(0))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), whole, rtol=0, atol=1e-5)


def noise_of_keys(keys: Tensor, count: int) -> Tensor:
    """Normals, `(count, keys)`."""
    return normals(keys, count, 2, LIKE).movedim(2, 1).reshape(-1, len(keys))


def shared_starts(keys: Tensor, count: int) -> Tensor:
    """A wrong twin: every key has the same sequence, from its own place on."""
    start = torch.arange(len(keys))  # keys that were counted up
    noise = normals(torch.zeros(1, dtype=torch.int64), count + len(keys), 2, LIKE)[:, 0]
    return torch.stack([noise[own : own + count] for own in start], dim=-1).flatten(0, 1)


def unmixed(keys: Tensor, count: int) -> Tensor:
    """A wrong twin: the counter is multiplied, and not mixed."""
    steps = torch.arange(1, 2 * count + 1)[:, None] * (2 * keys + 1) * 0x9E3779B97F4A7C15 % 2**62
    return torch.special.ndtri((steps.double() + 0.5) / 2**62)


def assert_independent(noise: Tensor) -> None:
    """Correlations between columns, at lags up to 4, and of squares: all 0 within chance.

    Each is normal with the error 1 over the root of the number of rows, to first order.
    """
    count, columns = noise.shape
    worst, number = 0.0, 0
    for values in (noise, (noise.square() - 1) / math.sqrt(2)):
        for lag in range(5):
            products = values[lag:].T @ values[: count - lag] / math.sqrt(count - lag)
            if lag == 0:
                products = products - torch.diag(products.diagonal())
            worst, number = max(worst, float(products.abs().max())), number + columns**2
    limit = stats.norm.isf(FALSE_ALARM / 2 / number)
    assert worst < limit, f"a correlation of {worst:.1f} errors, at most {limit:.1f} by chance"


KEYS = {
    "counted": torch.arange(24),
    "one bit": torch.cat([torch.zeros(1, dtype=torch.int64), 2 ** torch.arange(23)]),
    "high bits": 2 ** torch.arange(39, 63),
}


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_noise_is_normal_and_independent(keys: Tensor) -> None:
    """Moments, distribution and correlations of noise whose keys are as alike as can be."""
    noise = noise_of_keys(keys, 20_000)
    assert_independent(noise)
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (6, 15.0)):
        assert_mean(noise.pow(power), moment)
    p = [stats.kstest(column, "norm").pvalue for column in noise.T.numpy()]
    assert min(p) > FALSE_ALARM / len(p)
    tails = (noise.abs() > 3.5).double().flatten()
    assert_mean(tails, 2 * stats.norm.sf(3.5))


@pytest.mark.parametrize("wrong", [shared_starts, unmixed])
def test_shared_sequences_are_caught(wrong: object) -> None:
    """The same check fails for sequences that overlap, and for counters that are not mixed."""
    assert callable(wrong)
    with pytest.raises(AssertionError, match="a correlation of"):
        assert_independent(wrong(KEYS["counted"], 20_000))


def test_uniforms() -> None:
    """Uniform, inside (0, 1), and other numbers than those that normals of the key are made of."""
    keys = torch.arange(20)
    uniform = uniforms(keys, 10_000, 2, LIKE).movedim(1, 0).flatten(1)
    p = [stats.kstest(row, "uniform").pvalue for row in uniform.numpy()]
    assert min(p) > FALSE_ALARM / len(p)
    noise = normals(keys, 10_000, 2, LIKE).movedim(1, 0).flatten(1)
    assert_independent(torch.cat([torch.special.ndtri(uniform), noise]).T)
    single = uniforms(keys, 100_000, 1, torch.zeros(0))
    assert single.min() > 0
    assert single.max() < 1


# Streams


def test_streams_have_names() -> None:
    """Seeds that are counted up, streams of streams and names: no two are the same."""
    names = [f"{a}.{b}" for a in "abc" for b in range(100)]
    keys = [stream(seed, name) for seed in range(-50, 50) for name in names]
    keys += [stream(stream(seed, "a.0"), name) for seed in range(50) for name in names]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**63 for key in keys)
    assert stream(3, "x") == stream(3 + 2**64, "x")


def test_a_seed_for_programs() -> None:
    """Torch's own generator, inside a fork; and a generator of one's own."""
    state = torch.get_rng_state()
    with forked(0, "x"):
        first, others = torch.randn(3), drawn()[:2]
        seeded(stream(0, "x"))
        assert torch.equal(torch.randn(3), first)
        assert drawn()[:2] == others
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.randn(3, generator=generator(stream(0, "x"))), first)
    with forked(0, "y"):
        assert not torch.equal(torch.randn(3), first)


SEEDING = {
    *("manual_seed", "set_rng_seed", "default_generator", "SeedSequence", "default_rng"),
    *("fork_rng", "get_rng_state", "set_rng_state", "get_rng_state_all", "set_rng_state_all"),
    *("getstate", "setstate", "get_state", "set_state"),
}
# `compare` is told to run several times: under the user's seed and those that follow it.
COUNTED = {("comparisons/running.py", "seed + number")}
PARAMETERS = {("storage/store.py", "get_state"), ("storage/store.py", "set_state")}  # no generator


def breaches(source: str) -> list[str]:
    """Seeds and states set, arithmetic on seeds, and streams without a name, in a module's text."""
    nodes = list(ast.walk(ast.parse(source)))
    found = [n.attr for n in nodes if isinstance(n, ast.Attribute) and n.attr in SEEDING]
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"generator", "seeded"}:
            found += [ast.unparse(node) for a in node.args if ast.unparse(a).endswith("seed")]
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Add):
            changed = node.left if isinstance(node, ast.BinOp) else node.target
            if ast.unparse(changed).endswith("seed"):
                found.append(ast.unparse(node))
    return found


def test_seeding_has_one_place() -> None:
    """No other module seeds or restores a generator, or makes one seed of another."""
    found = {
        (str(file.relative_to(PACKAGE)), what)
        for file in PACKAGE.rglob("*.py")
        if file != Path(randomness.__file__)
        for what in breaches(file.read_text())
    }
    assert found == COUNTED | PARAMETERS


@pytest.mark.parametrize(
    "source",
    [
        *("torch.manual_seed(3)", "seed += 0x9E3779B9", "f(self.seed + _A)", "g.manual_seed(3)"),
        *("generator(seed)", "seeded(self.seed)", "np.random.SeedSequence([seed, 1])"),
        *("torch.random.fork_rng()", "pyro.util.set_rng_state(state)", "np.random.set_state(s)"),
    ],
)
def test_seeding_elsewhere_is_caught(source: str) -> None:
    """Calls and sums are seen in the syntax tree, however they are written."""
    assert breaches(source)
    assert "manual_seed" in breaches((PACKAGE / "randomness.py").read_text())
