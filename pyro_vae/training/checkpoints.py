"""Checkpoints: all that a run of training needs to go on, in one file that is whole or not there.

The file is of the kind safetensors: tensors, and JSON in its header. It holds no code, and can make
none run. What decides the bits of the steps to come is in it: weights and buffers, the tables of
rows, the optimizer and the schedule, the random streams, the history, the best state so far, and
what had been compiled. So a run that was stopped and goes on ends at the bits of one that was not.
It also says what the run was told, and which data and programs it had: others are refused.
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
from torch import Tensor

from .._types import Batch, ProgramLike
from ..data import RowReader
from ..programs import modules_of
from ..writing import whole_file
from .rows import InMemory

FILE = "fit.safetensors"
FORMAT = "pyro_vae.fit"
FORMAT_VERSION = 1

_SOME_ROWS = 1000  # of data on disk, evenly spread: enough to tell one file from another


@dataclass(frozen=True)
class Checkpoint:
    """Where the state of training is kept, and how often it is written.

    Arguments:
        folder: A folder for this run alone; it is made if it is not there.
        seconds: From one writing to the next: what is lost at the most if the machine goes down. At
            every end of training, by Ctrl-C or a request to end, too, it is written in any case.

    Raises:
        ValueError: If the time is negative.
    """

    folder: str | Path
    seconds: float | int = 30

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"seconds is at least 0, got {self.seconds}")

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.folder) / FILE


class Keeper:
    """Writes checkpoints when they are due, and reads the one that there is.

    Arguments:
        checkpoint: Where, and how often.
        identity: What the run is, by name: what another one differs in is refused by these names.
    """

    def __init__(self, checkpoint: Checkpoint, identity: Mapping[str, str]) -> None:
        self.checkpoint, self.identity = checkpoint, dict(identity)
        self._written = time.perf_counter()

    @property
    def is_due(self) -> bool:
        """Whether the last one is old enough; when one is written changes no number."""
        return time.perf_counter() - self._written >= self.checkpoint.seconds

    def write(self, state: Any) -> None:
        """Writes a state, in place of the one before, in one step."""
        tensors: dict[str, Tensor] = {}
        record = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "identity": self.identity,
            "state": encoded(state, tensors, "state"),
        }
        header = {"pyro_vae": json.dumps(record)}
        with whole_file(self.checkpoint.path) as new:
            new.write_bytes(safetensors.torch.save(tensors, header))
        self._written = time.perf_counter()

    def read(self) -> Any:
        """The state that was written, or None if there is none.

        Raises:
            ValueError: If the file is damaged, or of another run: says what differs.
        """
        path = self.checkpoint.path
        if not path.exists():
            return None
        remedy = f"pass another folder, or remove '{path}' to start anew"
        try:
            with safetensors.safe_open(str(path), "pt") as file:
                record = json.loads((file.metadata() or {})["pyro_vae"])
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            known = record["format"] == FORMAT and record["format_version"] == FORMAT_VERSION
            identity, state = record["identity"], decoded(record["state"], tensors)
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(
                f"'{path}' is no checkpoint of pyro_vae, or a damaged one ({error}): {remedy}"
            ) from error
        if not known:
            raise ValueError(f"'{path}' was written by another version of pyro_vae: {remedy}")
        self._require_same(identity, remedy)
        return state

    def _require_same(self, found: Mapping[str, str], remedy: str) -> None:
        mine = self.identity
        names = [name for name in {**found, **mine} if found.get(name) != mine.get(name)]
        if names:
            differing = "; ".join(
                f"{name}: {_short(found.get(name))} there, {_short(self.identity.get(name))} here"
                for name in names
            )
            raise ValueError(
                f"'{self.checkpoint.path}' is the checkpoint of another run, which cannot go on as "
                f"this one. What differs is {differing}; {remedy}"
            )


def encoded(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """A state as JSON, with its tensors put aside by name.

    Raises:
        TypeError: If there is something in it that neither holds, such as a function.
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
        array = torch.from_numpy(value.astype(np.int64))  # of a stream of NumPy
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
        f"a checkpoint holds numbers, words and tensors, and no code; {name} is {value!r}: train "
        "without checkpoint=, or with an optimizer and a scheduler of torch's own"
    )


def decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state that was encoded."""
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
    """Tells one data set from another: by all of its bytes, on disk by some of its rows."""
    if data is None:
        return "none"
    if isinstance(data, InMemory):
        data = data.batch
    if not isinstance(data, tuple):
        places = torch.linspace(0, len(data) - 1, min(len(data), _SOME_ROWS)).long()
        return f"{len(data)} rows, {digest_of(data.read(places))}"
    digest = hashlib.blake2b(digest_size=8)
    for part in data:
        flat = part.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    shapes = ", ".join(f"{tuple(part.shape)} {part.dtype}" for part in data)
    return f"{shapes} {digest.hexdigest()}"


def description_of(program: ProgramLike) -> str:
    """What a program is made of: its class, its layers, and the shapes of its tensors."""
    parts = [
        f"{name} {tuple(value.shape)} {value.dtype}"
        for module in modules_of(program)
        for name, value in module.state_dict().items()
    ]
    return f"{in_words(program)} ({', '.join(parts)})"


def in_words(value: Any) -> str:
    """A `repr` that is the same in every process: without places in memory."""
    named = value if hasattr(value, "__qualname__") else type(value)
    text = repr(value) if named is not value else f"{named.__module__}.{named.__qualname__}"
    plain = {
        name: part
        for name, part in ({} if isinstance(value, torch.nn.Module) else vars_of(value)).items()
        if isinstance(part, bool | int | float | str) and not name.startswith("_")
    }
    shown = f"{text} {plain}" if plain and named is not value else text
    return re.sub(r" at 0x[0-9a-fA-F]+", "", shown)


def vars_of(value: Any) -> dict[str, Any]:
    """Attributes of an object, if it has such."""
    return dict(getattr(value, "__dict__", {}))


def _short(text: str | None) -> str:
    """The end of a long description is where digests stand."""
    text = "nothing" if text is None else text
    return text if len(text) <= 120 else f"{text[:80]}...{text[-30:]}"
