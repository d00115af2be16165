"""Places where nothing can be read or written: refused in our words, and before any work."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_vae as pv
from pyro_vae.training.checkpoints import Checkpoint, Keeper
from pyro_vae.writing import require_file_place, whole_file, whole_folder


def vae() -> tuple[Any, Any]:
    """A model and its guide."""
    torch.manual_seed(0)
    model = pv.models.VAE(pv.nets.MLPDecoder(1, 2, (4,)), pv.likelihoods.Gaussian(), 1)
    return model, pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(2, (4,))))


MODEL, GUIDE = vae()
ROWS = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))

# Everything public that takes a place, as a function of it.
WRITERS: dict[str, Callable[[Any], Any]] = {
    "save": lambda place: pv.save(place, model=MODEL, guide=GUIDE),
    "export": lambda place: pv.export(place, MODEL, GUIDE, ROWS),
    "checkpoint": lambda place: Keeper(Checkpoint(place), {}),
    "fit": lambda place: pv.fit(*vae(), ROWS, num_epochs=1, checkpoint=place, progress=False),
}
READERS: dict[str, Callable[[Any], Any]] = {
    "load": pv.load,
    "read_about": pv.storage.read_about,
    "TableVAE.load": pv.TableVAE.load,
    "data.load": pv.data.load,
    "read_table": pv.data.read_table,
}


def places(folder: Path) -> dict[str, Any]:
    """Names of places that are no place for anything, whoever asks."""
    (folder / "file").write_text("precious")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    return {
        "nothing": "",
        "below a file": folder / "file" / "x" / "y",
        "a pipe": folder / "pipe",
        "below a pipe": folder / "pipe" / "x",
        "a device": "/dev/full",
        "below a device": "/dev/null/x",
        "processes": "/proc/x",
        "kernel": Path("/sys/kernel/x"),
        "long": folder / ("x" * 300),
        "long, in two bytes each": folder / ("ü" * 150),
        "deep": folder / ("x" * 100 + "/").join([""] * 60),
        "a zero byte": "a\0b",
        "half a character": "a\ud800b",
        "a loop": folder / "loop" / "x",
    }


NAMES = [
    "nothing", "below a file", "a pipe", "below a pipe", "a device", "below a device", "processes",
    "kernel", "long", "long, in two bytes each", "deep", "a zero byte", "half a character",
    "a loop",
]  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("name", NAMES)
def test_places_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every writer and every reader, with the place and what to do; nothing is left."""
    place, before = places(tmp_path)[name], sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    for function, call in {**WRITERS, **READERS}.items():
        with pytest.raises((ValueError, FileNotFoundError)) as refused:
            call(place)
        text = str(refused.value)
        ours = any(word in text for word in ("choose a", "a shorter name", "correct the", "pass "))
        assert ours, (function, name, refused.value)
        assert type(refused.value) in (ValueError, FileNotFoundError), (function, name)
        assert "[Errno" not in text, (function, name, text)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "precious"


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    """A file is moved to its place, which would take the place of the device."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="a device or a pipe, and a new file would take its place"):
        require_file_place(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("write", [whole_file, whole_folder])
def test_what_the_system_refuses_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Any]
) -> None:
    """A place that was taken away after it was looked at: one line, with the place."""
    read_only = OSError(30, "Read-only file system")

    def refuse(*_: object, **__: object) -> None:
        raise read_only

    def attempt() -> None:
        with write(tmp_path / "below" / "x"):
            raise AssertionError("not reached")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        OSError, match=r"could not write '.*x' \(Read-only file system\).*choose another place"
    ):
        attempt()


def test_npy_of_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Reading a pipe that nobody writes to would never end."""
    os.mkfifo(tmp_path / "y.npy")
    with pytest.raises(FileNotFoundError, match="is a device or a pipe, but must be"):
        pv.data.load(tmp_path / "y.npy")
