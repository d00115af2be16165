"""Checkpoints: the full state of a training run, written atomically to one file.

The file is in the safetensors format: tensors, and JSON in its header. Loading the file runs no
code. The file holds everything that later steps depend on: weights and buffers, the tables of
per-row parameters, the optimizer and the schedule, the random streams, the history, the best state
so far, and which steps were compiled. So a resumed run ends with the same results, bit for bit, as
a run that was never stopped. The file also describes the options, the data and the programs of the
run. A run that differs in any of these cannot resume from the file. With several processes, the
first process writes the states of all processes, all taken after the same step. At any time the
file is complete: either the old checkpoint or the new one.
"""

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .. import distributed
from .._types import Batch, ProgramLike
from ..data import RowReader
from ..formatting import count_of
from ..programs.modes import modules_of
from ..writing import require_file_place, whole_file
from .rows import InMemory

FILE = "fit.safetensors"
FORMAT = "pyro_vae.fit"
FORMAT_VERSION = 3

_SOME_ROWS = 1000  # evenly spaced rows read from data on disk: enough to tell files apart


@dataclass(frozen=True)
class Checkpoint:
    """Where the state of training is saved, and how often.

    Arguments:
        folder: A folder that only this run uses; created if it does not exist.
        seconds: Seconds between writes. A crash loses at most the work since the last write.
            A checkpoint is always written when training ends, even on Ctrl-C and SIGTERM.

    Raises:
        ValueError: If the time is negative, or the name of the folder is empty.
    """

    folder: str | Path
    seconds: float | int = 30

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"`seconds` must be at least 0; got {self.seconds}")
        if not str(self.folder).strip():
            raise ValueError(
                "`folder` must be the name of a folder; got an empty name: pass one such as 'run-1'"
            )

    @property
    def path(self) -> Path:
        """Path of the checkpoint file."""
        return Path(self.folder) / FILE


class Keeper:
    """Writes checkpoints when they are due, and reads the existing checkpoint.

    Arguments:
        checkpoint: Where, and how often, to write.
        identity: Descriptions, each with a name, of the options, data and programs of the run in
            this process. A checkpoint with different descriptions is refused; the error gives the
            names of those that differ.

    Raises:
        ValueError: If no file can be written to the checkpoint's folder.
    """

    def __init__(self, checkpoint: Checkpoint, identity: Mapping[str, str]) -> None:
        self.checkpoint, self._mine = checkpoint, dict(identity)
        if distributed.rank() == 0:
            require_file_place(checkpoint.path)
        self._written = time.perf_counter()

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint is due; when checkpoints are written does not affect the results."""
        return time.perf_counter() - self._written >= self.checkpoint.seconds

    def write(self, state: object) -> None:
        """Writes the states of all processes, replacing the last checkpoint."""
        tensors: dict[str, Tensor] = {}
        with distributed.fail_together():
            record = encoded(state, tensors, "state")
        everyones = distributed.to_first((record, tensors))
        with distributed.fail_together():
            if distributed.rank() == 0:
                self._write(everyones)
        self._written = time.perf_counter()

    def _write(self, everyones: list[tuple[Any, dict[str, Tensor]]]) -> None:
        record = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "identity": self.identity,
            "states": [state for state, _ in everyones],
        }
        tensors = {
            f"{process}.{name}": value
            for process, (_, own) in enumerate(everyones)
            for name, value in own.items()
        }
        header = {"pyro_vae": json.dumps(record)}
        with whole_file(self.checkpoint.path) as new:
            new.write_bytes(safetensors.torch.save(tensors, header))

    def read(self) -> Any:
        """Returns the saved state of this process; `None` if there is no checkpoint.

        Raises:
            ValueError: If the file is damaged or from another run; the error says what differs.
        """
        self.identity = _joined(distributed.everyones(self._mine))
        with distributed.fail_together():
            found = self._read() if distributed.rank() == 0 else None
        found = distributed.from_first(found)
        return None if found is None else decoded(*found[distributed.rank()])

    def _read(self) -> list[tuple[Any, dict[str, Tensor]]] | None:
        """Reads the saved states of all processes; returns `None` if there is no checkpoint."""
        path = self.checkpoint.path
        if not path.exists():
            return None
        remedy = f"pass another folder, or delete '{path}' to start from scratch"
        try:
            with safetensors.safe_open(str(path), "pt") as file:
                record = json.loads((file.metadata() or {})["pyro_vae"])
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            known = (record["format"], record["format_version"]) == (FORMAT, FORMAT_VERSION)
            states = _separated(record["states"], tensors) if known else []
            identity = record["identity"]
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(
                f"file '{path}' is not a checkpoint of pyro_vae, or is damaged ({error}): {remedy}"
            ) from error
        if not known:
            raise ValueError(
                f"checkpoint '{path}' was written by another version of pyro_vae: {remedy}"
            )
        self._require_same(identity, remedy)
        return states

    def _require_same(self, found: Mapping[str, str], remedy: str) -> None:
        mine = self.identity
        names = [name for name in {**found, **mine} if found.get(name) != mine.get(name)]
        if names:
            differing = ", ".join(
                f"{name} ({_short(found.get(name))} in the checkpoint, "
                f"{_short(mine.get(name))} in this run)"
                for name in names
            )
            if set(names) <= {"num_epochs", "scheduler"}:
                remedy = (
                    "to train for longer, repeat the earlier call, which restores its result, and "
                    f"then call `fit` again with another folder; or {remedy}"
                )
            raise ValueError(
                f"checkpoint '{self.checkpoint.path}' belongs to a different run; the two runs "
                f"differ in {differing}: {remedy}"
            )


def _joined(identities: list[dict[str, str]]) -> dict[str, str]:
    """Merges the descriptions of all processes: lists the distinct values under each name."""
    values = {name: dict.fromkeys(one[name] for one in identities) for name in identities[0]}
    return {"processes": str(len(identities))} | {n: " | ".join(v) for n, v in values.items()}


def _separated(
    states: list[Any], tensors: Mapping[str, Tensor]
) -> list[tuple[Any, dict[str, Tensor]]]:
    """Pairs the state of each process with its tensors; refuses states that cannot be decoded."""
    own: list[dict[str, Tensor]] = [{} for _ in states]
    for key, value in tensors.items():
        process, _, name = key.partition(".")
        own[int(process)][name] = value
    for state, found in zip(states, own, strict=True):
        decoded(state, found)
    return list(zip(states, own, strict=True))


def encoded(value: object, tensors: dict[str, Tensor], name: str) -> Any:
    """Encodes a state as JSON; the tensors in the state are added to `tensors`, by name.

    Raises:
        TypeError: If the state contains an object, such as a function, that is not a tensor and
            cannot be written as JSON.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype | torch.device | torch.Size):
        return list(value) if isinstance(value, torch.Size) else str(value)
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(value, np.ndarray):
        array = torch.from_numpy(value.astype(np.int64))  # the state of a NumPy stream
        return {"array": encoded(array, tensors, name), "dtype": str(value.dtype)}
    if isinstance(value, np.generic):
        return encoded(value.item(), tensors, name)
    if isinstance(value, list | tuple):
        parts = [encoded(part, tensors, f"{name}.{place}") for place, part in enumerate(value)]
        return {"tuple": parts} if isinstance(value, tuple) else parts
    if isinstance(value, Mapping):
        where = f"a key of {name}"
        return {
            "pairs": [
                [encoded(key, tensors, where), encoded(part, tensors, f"{name}.{key}")]
                for key, part in value.items()
            ]
        }
    raise TypeError(
        f"a checkpoint can hold only numbers, strings and tensors, but {name} is {value!r}: "
        "omit `checkpoint`, or train with torch's own optimizers and schedulers"
    )


def decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Decodes a state that :func:`encoded` returned."""
    if isinstance(value, list):
        return [decoded(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "array" in value:
        return decoded(value["array"], tensors).numpy().astype(value["dtype"])
    if "tuple" in value:
        return tuple(decoded(part, tensors) for part in value["tuple"])
    return {decoded(key, tensors): decoded(part, tensors) for key, part in value["pairs"]}


def digest_of(data: RowReader | Batch | None) -> str:
    """Returns a digest of all bytes of a data set, or of 1,000 rows if the data are on disk."""
    if data is None:
        return "none"
    if isinstance(data, InMemory):
        data = data.batch
    if not isinstance(data, tuple):
        most = min(len(data), _SOME_ROWS)
        places = torch.arange(most, device="cpu") * (len(data) - 1) // max(1, most - 1)
        return f"{count_of(len(data), 'row')}, {digest_of(data.read(places))}"
    digest = hashlib.blake2b(digest_size=8)
    for part in data:
        flat = part.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    shapes = ", ".join(f"{tuple(part.shape)} {part.dtype}" for part in data)
    return f"{shapes} {digest.hexdigest()}"


def description_of(program: ProgramLike) -> str:
    """Describes a program in words: its class, its layers, and the shapes of its tensors."""
    parts = [
        f"{name} {tuple(value.shape)} {value.dtype}"
        for module in modules_of(program)
        for name, value in module.state_dict().items()
    ]
    return f"{in_words(program)} ({', '.join(parts)})"


def in_words(value: object) -> str:
    """Describes an object in words, but omits memory addresses, which differ between processes."""
    if hasattr(value, "__qualname__"):  # a function or a class
        text = f"{value.__module__}.{value.__qualname__}"
    else:
        attributes = {} if isinstance(value, nn.Module) else getattr(value, "__dict__", {})
        plain = {
            name: part
            for name, part in attributes.items()
            if isinstance(part, bool | int | float | str) and not name.startswith("_")
        }
        text = f"{value!r} {plain}" if plain else repr(value)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _short(text: str | None) -> str:
    """Shortens a long description by leaving out its middle; the end, such as a digest, is kept."""
    text = "nothing" if text is None else text
    return text if len(text) <= 120 else f"{text[:80]}...{text[-30:]}"
