r"""All randomness: named streams, row keys, and counter-based noise.

The user passes a seed. A cryptographic hash of the seed and a *name* gives a stream
(:func:`stream`). Streams with different names are unrelated, and so are streams of consecutive
seeds. So two quantities drawn with one seed are independent if and only if their streams have
different names.

A Monte Carlo estimate of a datum must not depend on the datum's position, or on how the rows were
cut into chunks. So every row has a key of its own (:func:`row_keys`), computed from the stream,
from the numbers in the row, and from the number of equal rows before it. Noise for many rows at
once (:func:`normals`) is counter-based. The row's key determines a start :math:`s` and an odd
increment :math:`\gamma`. With a bijective mixing function, the sequence of SplitMix64 is

.. math:: u_i = \operatorname{mix}(s + i \gamma \bmod 2^{64}), \qquad i = 0, 1, \ldots

Each element of the sequence can be computed without the others. So all rows are drawn at once, in
any order, in pieces of any size. Programs that make their own draws use torch's generator, which
:func:`seeded` and :func:`forked` set.

References:
    | Fast Splittable Pseudorandom Number Generators (Steele, Lea & Flood, 2014)
    | https://doi.org/10.1145/2714064.2660195
    | Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., 2011)
    | https://doi.org/10.1145/2063384.2063405
"""

import hashlib
import inspect
import math
import os
import random
import struct
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

DIGEST_ROWS = 4096  # rows hashed at a time; fewer if they are wide
_DIGEST_NUMBERS = 2**21  # largest number of entries hashed at a time: 16 MB in float64
_POSITIVE = 2**63 - 1  # largest seed: fits a signed integer, and any generator accepts it

# SplitMix64: increment, multipliers and shifts of Steele, Lea & Flood (their "variant 13").
_INCREMENT = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, made odd
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_ALTERNATING = 0xAAAAAAAAAAAAAAAA
_FEWEST_TRANSITIONS = 24  # changes between neighbouring bits of an increment; fewer mix poorly
_NORMAL, _UNIFORM = 0, 2  # kinds of numbers; different kinds have different sequences
_AT_ONCE = 2**15  # numbers computed at a time: the buffers stay in the cache of a core

ALONE: Any = threading.RLock()
"""Lock to hold while global state of the process is changed: streams, handlers, modes, settings.

Pyro and torch have only one such state for all threads, so threads take turns. The lock is
re-entrant: a nested call in the same thread does not wait.
"""


_FORK_WAITS = 10.0  # seconds: enough for an evaluation in another thread, not for a training
_waited: list[bool] = []  # whether the lock was acquired before a fork


def _wait_for_others() -> None:
    """Waits, before a fork, until all other threads have restored the random state."""
    _waited.append(ALONE.acquire(timeout=_FORK_WAITS))


def _after_fork() -> None:
    """Releases the lock in the parent after a fork, so that other threads can go on."""
    if _waited.pop():
        ALONE.release()


def _free_in_child() -> None:
    """After a fork, frees in the child the lock and the handlers that the parent's threads held."""
    if _waited.pop():
        ALONE.release()
        return
    ALONE._at_fork_reinit()  # noqa: SLF001 (as in CPython's own modules)
    runtime = pyro.poutine.runtime
    runtime._PYRO_STACK.clear()  # noqa: SLF001 (Pyro has no other way)
    runtime._DIM_ALLOCATOR._stack.clear()  # noqa: SLF001


if sys.platform != "win32":
    os.register_at_fork(
        before=_wait_for_others, after_in_parent=_after_fork, after_in_child=_free_in_child
    )


# Streams


def stream(seed: int, name: str) -> int:
    """The stream for a seed and a name: a number from 0 to 2^63 - 1, which can be used as a seed.

    Arguments:
        seed: Any integer, taken modulo 2^64; or another stream, to make a sub-stream of it.
        name: Name of the quantity to draw, such as `"importance.pilot"`.

    Example:
        >>> stream(0, "pilot") == stream(0, "pilot"), stream(0, "pilot") == stream(1, "pilot")
        (True, False)
    """
    start = (seed % 2**64).to_bytes(8, "little")
    digest = hashlib.blake2b(start + name.encode(), digest_size=8).digest()
    key = int.from_bytes(digest, "little") & _POSITIVE
    _heard(key, name)
    return key


def generator(seed: int) -> torch.Generator:
    """Returns a new generator on the CPU with this seed, for sequential draws."""
    return torch.Generator("cpu").manual_seed(seed % 2**64)


def seeded(key: int) -> None:
    """Seeds Python, NumPy and torch, from which programs draw; call it inside :func:`undisturbed`.

    Arguments:
        key: A stream or the key of a row.
    """
    random.seed(key)
    np.random.seed(key % 2**32)  # noqa: NPY002 (programs may draw from it)
    # torch.manual_seed formats a stack trace in every call, which takes 1.6 ms, more than a draw.
    torch.default_generator.manual_seed(key)
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        torch.manual_seed(key)


@contextmanager
def forked(seed: int, name: str) -> Iterator[None]:
    """Inside the block, Python, NumPy, torch and Pyro are seeded by `stream(seed, name)`.

    Afterwards the caller's random state is restored.
    """
    key = stream(seed, name)
    with undisturbed():
        seeded(key)
        yield


def forked_if(seed: int | None, name: str) -> AbstractContextManager[None]:
    """Does the same as :func:`forked`; if `seed` is None, draws use the caller's random state."""
    return nullcontext() if seed is None else forked(seed, name)


@contextmanager
def undisturbed() -> Iterator[Callable[[], None]]:
    """Restores the random state of Python, NumPy and torch after the block.

    Yields a function that restores the state within the block, so that draws can be repeated.
    Entering and leaving the block takes about 50 microseconds.
    """
    with ALONE:
        again = partial(set_random_state, random_state())
        try:
            yield again
        finally:
            again()


def random_state() -> tuple[dict[str, Any], list[Tensor]]:
    """Returns the state of the random streams of Python, NumPy and torch, on all devices."""
    return pyro.util.get_rng_state(), streams_of_torch()


def set_random_state(state: tuple[dict[str, Any], list[Tensor]]) -> None:
    """Restores a state that :func:`random_state` returned."""
    on_cpu, of_torch = state
    pyro.util.set_rng_state(on_cpu)
    restore_streams(of_torch)


def streams_of_torch() -> list[Tensor]:
    """Returns the states of torch's generators: the CPU's first, then one for each GPU."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *gpus]


def restore_streams(state: list[Tensor]) -> None:
    """Sets torch's generators back to states that :func:`streams_of_torch` returned."""
    torch.set_rng_state(state[0])
    if state[1:]:
        torch.cuda.set_rng_state_all(state[1:])


# Keys of rows


def check_rows(batch: Sequence[Tensor]) -> None:
    """Refuses tensors with different numbers of rows, or without rows.

    Raises:
        ValueError: If there is no tensor or no row, or the numbers of rows differ.
    """
    shapes = [tuple(tensor.shape) for tensor in batch]
    if not shapes or () in shapes:
        raise ValueError(
            "the leftmost axis of every tensor of a batch must index the data; "
            f"got shapes {shapes}: use y[None] for a single datum; if all data share a number, "
            "pass the number to model and guide directly, as in lambda y: model(y, 0.5)"
        )
    if len(set(map(len, batch))) > 1:
        raise ValueError(
            "the tensors of a batch must have the same number of rows, one per datum; "
            f"got {[shape[0] for shape in shapes]} (shapes {shapes}): select the same rows from "
            "all tensors"
        )
    if not all(map(torch.numel, batch)):
        raise ValueError(
            f"a batch must have at least one row with at least one value; got shapes {shapes}: "
            "check the filter or slice that selected the rows"
        )


def row_digests(*batch: Tensor) -> Int64[Tensor, " rows"]:
    """A 64-bit digest of the numbers in each row, over all tensors of the batch.

    Rows with equal numbers have equal digests. Every number is hashed as a little-endian float64,
    which represents float32, float16 and integers up to 2^53 exactly. So dtype, device, strides and
    the signs of zeros and nans do not matter. Two different rows have the same digest with
    probability 2^-64.

    Arguments:
        batch: Tensors `(rows, *datum)`; a row consists of its values in all tensors, in order.

    Returns:
        Digests, `(rows,)`, on the CPU.

    Raises:
        ValueError: If there is no tensor or no row, or the numbers of rows differ.

    References:
        | BLAKE2: simpler, smaller, fast as MD5 (Aumasson et al., 2013)
        | https://www.blake2.net/blake2.pdf

    Example:
        >>> one, two, three = row_digests(torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]]))
        >>> bool(one == two), bool(one == three)
        (True, False)
    """
    check_rows(batch)
    width = sum(tensor[:1].numel() for tensor in batch)
    rows = max(1, min(DIGEST_ROWS, _DIGEST_NUMBERS // width))
    parts = [
        _hashed(_row_numbers([tensor[start : start + rows] for tensor in batch]))
        for start in range(0, len(batch[0]), rows)
    ]
    return torch.from_numpy(np.concatenate(parts))


def row_keys(seed: int, name: str, *batch: Tensor) -> Int64[Tensor, " rows"]:
    """A random key for each row, which stays with the row when rows are reordered.

    The key depends only on the stream, on the numbers in the row, and on how many equal rows
    precede it in this batch. So the draws of a row do not depend on its position. Equal rows of one
    batch get different keys, so that their errors are independent. Pass the whole data set in one
    call, before it is cut into chunks: equal rows in different calls can get the same key.

    Arguments:
        seed: Any integer.
        name: Name of the quantity drawn, as in :func:`stream`.
        batch: Tensors `(rows, *datum)`; a row consists of its values in all tensors.

    Returns:
        Keys from 0 to 2^63 - 1, `(rows,)`, on the CPU; each can be used as a seed, too.

    Raises:
        ValueError: If there is no tensor or no row, or the numbers of rows differ.

    Example:
        >>> y = torch.tensor([[1.0], [2.0], [1.0]])
        >>> keys = row_keys(0, "elbo", y)
        >>> bool(keys[0] == keys[2]), bool(row_keys(0, "elbo", y[1:])[0] == keys[1])
        (False, True)
    """
    digests = row_digests(*batch).numpy()
    start = np.full_like(digests, stream(seed, name))
    parts = np.stack([start, digests, _occurrences(digests)], axis=1)  # (rows, 3)
    keys = torch.from_numpy(_hashed(parts.astype("<i8")) & np.int64(_POSITIVE))
    _heard(keys, name)
    return keys


def _row_numbers(batch: Sequence[Tensor]) -> Shaped[np.ndarray, "rows columns"]:
    """Returns all values of each row, from all tensors, as little-endian float64."""
    # First to the CPU, then to float64, which some accelerators lack.
    columns = [tensor.detach().cpu().double().reshape(len(tensor), -1) for tensor in batch]
    joined = torch.cat(columns, dim=1) if len(columns) > 1 else columns[0]
    numbers = joined + 0.0  # -0.0 + 0.0 is 0.0
    numbers.masked_fill_(numbers.isnan(), torch.nan)  # a nan computed as 0 / 0 may have a sign
    return np.ascontiguousarray(numbers.numpy(), dtype="<f8")


def _hashed(rows: Shaped[np.ndarray, "rows columns"]) -> Int64[np.ndarray, " rows"]:
    """Returns the 64-bit BLAKE2 digest of each row's bytes."""
    empty, parts = hashlib.blake2b(digest_size=8), []
    for start in range(0, len(rows), DIGEST_ROWS):  # a million objects at once take longer
        some, digests = rows[start : start + DIGEST_ROWS], []
        for (content,) in struct.iter_unpack(f"{some[:1].nbytes}s", some.data.cast("B")):
            digest = empty.copy()  # takes half the time of creating a new one
            digest.update(content)
            digests.append(digest.digest())
        parts.append(b"".join(digests))
    return np.frombuffer(b"".join(parts), dtype="<i8").astype(np.int64)


def _occurrences(values: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
    """Returns, for each value, how many earlier values are equal to it."""
    ordered, counts = np.sort(values), np.zeros_like(values)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):  # a plain sort takes a tenth of the time of a stable one
        return counts
    places = np.isin(values, repeated).nonzero()[0]
    places = places[np.argsort(values[places], kind="stable")]
    grouped = values[places]
    # Position minus the position of the first equal value.
    counts[places] = np.arange(len(grouped)) - np.searchsorted(grouped, grouped)
    return counts


# Counter-based noise


def normals(
    keys: Int64[Tensor, " rows"], num: int, size: int, like: Tensor, *, first: int = 0
) -> Float[Tensor, "num rows size"]:
    r"""Standard normal numbers for many rows, from one key per row, by the Box-Muller transform.

    .. math:: \epsilon_{2j}, \epsilon_{2j+1} = \sqrt{-2 \log u}\, (\cos 2 \pi v, \sin 2 \pi v)

    Here :math:`u` and :math:`v` are numbers between 0 and 1, made from the upper and lower 32 bits
    of one element of the row's sequence. Each normal number depends on the row's key, the index of
    the draw, the number's position in the draw, and `size`. It does not depend on other rows, on
    the number of draws, or (up to rounding) on the dtype.

    Arguments:
        keys: Row keys, `(rows,)`.
        num: Draws per row.
        size: Numbers per draw.
        like: A tensor with the desired dtype and device.
        first: Index of the first draw in the row's sequence of draws.

    References:
        | A Note on the Generation of Random Normal Deviates (Box & Muller, 1958)
        | https://doi.org/10.1214/aoms/1177706645

    Example:
        >>> keys = torch.tensor([3, 4])
        >>> some = normals(keys, 5, 2, torch.zeros(0))
        >>> bool((normals(keys[1:], 2, 2, torch.zeros(0), first=3) == some[3:, 1:]).all())
        True
    """
    noise = like.new_empty(num, len(keys), size)
    for part, bits in _pieces(keys, num, (size + 1) // 2, noise, kind=_NORMAL, first=first):
        upper = _shifted(bits, 32).double().add_(0.5).mul_(2.0**-32)  # never 0
        radius = upper.log_().mul_(-2).to(noise.dtype).sqrt_()
        angle = bits.bitwise_and_(2**32 - 1).double().mul_(2 * math.pi * 2.0**-32).to(noise.dtype)
        part[..., 0::2] = radius * angle.cos()
        part[..., 1::2] = (radius * angle.sin())[..., : size // 2]
    return noise


def uniforms(
    keys: Int64[Tensor, " rows"], num: int, size: int, like: Tensor, *, first: int = 0
) -> Float[Tensor, "num rows size"]:
    """Uniform numbers in (0, 1) for many rows, with the arguments of :func:`normals`.

    In float64 the numbers have 53 random bits; for other dtypes these numbers are rounded.
    """
    noise = like.new_empty(num, len(keys), size)
    for part, bits in _pieces(keys, num, size, noise, kind=_UNIFORM, first=first):
        part.copy_(_shifted(bits, 11).double().add_(0.5).mul_(2.0**-53))
    # In other dtypes the largest numbers may have been rounded to 1.
    return noise.clamp_(max=1 - torch.finfo(noise.dtype).eps / 2)


def _pieces(
    keys: Tensor, num: int, size: int, noise: Tensor, *, kind: int, first: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields pairs: a part of `noise` to fill, and 64 random bits for each number of this part."""
    _drawn(keys, kind, first * size, (first + num) * size)
    starts, increments = (part.to(noise.device) for part in _sequences(keys, kind))
    rows_at_once = max(1, _AT_ONCE // size)
    for row in range(0, len(keys), rows_at_once):
        rows = slice(row, row + rows_at_once)
        step = increments[rows, None]
        places = torch.arange(size, device=noise.device)
        base = starts[rows, None] + (first * size + places) * step  # (rows, size)
        draws_at_once = max(1, _AT_ONCE // base.numel())
        for draw in range(0, num, draws_at_once):
            part = noise[draw : draw + draws_at_once, rows]
            draws = torch.arange(draw, draw + len(part), device=noise.device) * size
            yield part, mixed(torch.addcmul(base, draws[:, None, None], step))


def _sequences(keys: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    """Returns the start and the increment of each key's sequence; the increment is odd."""
    start, step = (mixed(keys.cpu() + _signed((kind + n) * _INCREMENT)) for n in (1, 2))
    step |= 1
    changes = step ^ _shifted(step, 1)
    transitions = ((changes[:, None] >> torch.arange(64, device=step.device)) & 1).sum(dim=1)
    return start, torch.where(transitions < _FEWEST_TRANSITIONS, step ^ _signed(_ALTERNATING), step)


def mixed(bits: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """Applies the mixing function of SplitMix64, a bijection of 64 bits, in place.

    Example:
        >>> state = torch.tensor([-7046029254386353131])  # the first state for seed 0
        >>> hex(int(mixed(state)) % 2**64)
        '0xe220a8397b1dcdaf'
    """
    for shift, factor in _MIX:
        bits ^= _shifted(bits, shift)
        bits *= _signed(factor)
    bits ^= _shifted(bits, 31)
    return bits


def _shifted(bits: Tensor, shift: int) -> Tensor:
    """Shifts 64 bits to the right and fills up with zeros; torch's shift copies the sign bit."""
    return (bits >> shift).bitwise_and_((1 << (64 - shift)) - 1)


def _signed(value: int) -> int:
    """Returns the signed integer with the same 64 bits as `value`."""
    return (value + 2**63) % 2**64 - 2**63


# Listening


@dataclass
class Heard:
    """A record of all streams and row keys that were made, and of the noise made from row keys.

    Arguments:
        names: For each stream or key, the name of the quantity.
        askers: For each stream or key, the functions that requested it.
        drawn: One entry per key and request for counter-based noise: the key, the kind of numbers,
            and the positions in the key's sequence where the numbers start and end.
    """

    names: dict[int, str] = field(default_factory=dict)
    askers: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    drawn: list[tuple[int, int, int, int]] = field(default_factory=list)


_LISTENERS: list[Heard] = []


@contextmanager
def listening() -> Iterator[Heard]:
    """Records all streams and keys inside the block, for tests of independence."""
    heard = Heard()
    _LISTENERS.append(heard)
    try:
        yield heard
    finally:
        _LISTENERS.remove(heard)


def _heard(keys: Tensor | int, name: str) -> None:
    """Adds streams or row keys to the records that :func:`listening` makes."""
    for listener in _LISTENERS:
        for key in [keys] if isinstance(keys, int) else keys.tolist():
            listener.names[key] = name
            listener.askers[key].add(_asker())


def _asker() -> str:
    """Returns the name of the function, outside this module, that requests a stream or keys."""
    frame = inspect.currentframe()
    while frame is not None:
        module = frame.f_globals["__name__"]
        if module.startswith(f"{__package__}.") and module != __name__:
            # Before Python 3.12 a comprehension is a function of its own.
            function = frame.f_code.co_qualname.removesuffix(".<locals>.<listcomp>")
            return f"{module.removeprefix(f'{__package__}.')}.{function}"
        frame = frame.f_back
    return "a caller"


def _drawn(keys: Tensor, kind: int, start: int, stop: int) -> None:
    """Adds a request for noise to the records that :func:`listening` makes."""
    for listener in _LISTENERS:
        listener.drawn.extend((key, kind, start, stop) for key in keys.tolist())
