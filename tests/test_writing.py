"""Everything written is whole: whatever stops it, what was there before is still there."""

import errno
import os
import signal
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from pyro_vae import writing
from pyro_vae.cli import main
from pyro_vae.data.text import read_cells
from pyro_vae.training.checkpoints import Checkpoint, Keeper
from pyro_vae.writing import (
    Kind,
    require_file_place,
    require_place,
    whole_file,
    whole_folder,
    write_csv,
)

KIND = Kind("a thing", {"mark"}, {"mark", "more"}.__contains__)


def write(folder: Path, text: str) -> None:
    """A folder with one file in it."""
    with whole_folder(folder) as new:
        (new / "mark").write_text(text)


def names(folder: Path) -> list[str]:
    """All that is in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["exchange", "step aside"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to replace a folder: not every system can exchange two names."""
    if request.param == "step aside":
        monkeypatch.setattr(writing, "_exchanged", lambda *_: False)


@pytest.mark.usefixtures("way")
def test_a_folder_is_replaced(tmp_path: Path) -> None:
    """By the new one, and nothing is left beside it."""
    for text in ("one", "two", "three"):
        write(tmp_path / "a", text)
    assert (tmp_path / "a" / "mark").read_text() == "three"
    assert names(tmp_path) == ["a"]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_older_folder_survives(tmp_path: Path, error: BaseException) -> None:
    """A full disk, or Ctrl-C, in the middle of writing."""
    write(tmp_path / "a", "old")

    def stop() -> None:
        with whole_folder(tmp_path / "a") as new:
            (new / "mark").write_text("half")
            raise error

    said = r"could not write '.*a' \(No space .* MB are free there\).* unchanged: free some space"
    with pytest.raises(type(error), match=said if isinstance(error, OSError) else None):
        stop()
    assert (tmp_path / "a" / "mark").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_an_older_file_survives(tmp_path: Path) -> None:
    """The same for files; the suffix is kept, since writers go by it."""
    path = tmp_path / "a.npy"
    with whole_file(path) as new:
        new.write_text("old")
        assert new.suffix == ".npy"

    def stop() -> None:
        with whole_file(path) as new:
            new.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.npy"]


def killed(call: Callable[[], Any]) -> None:
    """Does something in a process of its own, which kills itself on the way."""
    child = os.fork()
    if child == 0:
        call()
        os._exit(0)  # not reached
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_folders_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network file systems, where a finished file was reported as not written."""
    sync = os.fsync

    def refusing(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(handle)

    monkeypatch.setattr(os, "fsync", refusing)
    with whole_file(tmp_path / "b") as new:
        new.write_text("new")
    write(tmp_path / "a", "new")
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("renames", [0, 1])
def test_killed_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    """Before the older folder steps aside, and between the two renames; nothing is left over."""
    write(tmp_path / "a", "old")
    monkeypatch.setattr(writing, "_exchanged", lambda *_: False)
    rename, count = Path.rename, [0]

    def die(self: Path, target: Path) -> Path:
        if count[0] == renames:
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] += 1
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        killed(lambda: write(tmp_path / "a", "new"))
    assert len(names(tmp_path)) == 2  # what a twin without `restored` would leave for ever
    writing.restored(tmp_path / "a")
    assert (tmp_path / "a" / "mark").read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file", "is a file"),
        ("file/below", "is a file"),
        ("x" * 300, "300 bytes"),
        (" ", "visible characters"),
        ("\u200b/below", "visible characters"),
        ("other", "holds other files"),
    ],
)
def test_places_for_folders(tmp_path: Path, place: str, message: str) -> None:
    """Refused before anything is computed, and untouched."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("precious")
    with pytest.raises(ValueError, match=message):
        require_place(tmp_path / place, KIND)
    assert (tmp_path / "file").read_text() == "precious"
    assert names(tmp_path / "other") == ["notes.txt"]
    assert require_place(tmp_path / "ü 引导\n", KIND)


@pytest.mark.parametrize(
    ("place", "message"), [("folder", "is a folder"), ("file/x.csv", "a file"), ("y" * 300, "300")]
)
def test_places_for_files(tmp_path: Path, place: str, message: str) -> None:
    """The same for files."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=message):
        require_file_place(tmp_path / place)


def test_a_killed_writer_of_a_file(tmp_path: Path) -> None:
    """What it left is removed by the next writer of that file; another file's is not."""
    for name in ("a.csv", "b.csv"):

        def die(path: Path = tmp_path / name) -> None:
            with whole_file(path) as new:
                new.write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)

        killed(die)
    living = tmp_path / f".a.new-{os.getpid()}-00.csv"
    living.write_text("half")
    assert len(names(tmp_path)) == 3
    with whole_file(tmp_path / "a.csv") as new:
        new.write_text("whole")
    left, *others = (name for name in names(tmp_path) if name != "a.csv")
    assert left == living.name
    assert [name[:6] for name in others] == [".b.new"]


def locked(prefix: str, dir: Path) -> str:
    """Makes no folder in a locked one, as the system does for everybody but root."""
    if dir.name == "locked":
        raise PermissionError(13, "Permission denied")
    return str(mkdtemp(prefix=prefix, dir=dir))


@pytest.mark.parametrize(("place", "message"), [("file", "a file"), ("locked/x", "not writable")])
def test_places_for_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    """Refused before the first epoch; modes do not stop root, so one is made up."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(tempfile, "mkdtemp", locked)
    with pytest.raises(ValueError, match=message):
        Keeper(Checkpoint(tmp_path / place), {})
    assert names(tmp_path / "locked") == []
    Keeper(Checkpoint(tmp_path / "new" / "below"), {})


FORMULAS = ["=1+1", "+a", "-b", "@SUM(A1)", "\tc", "'=d", "''-5", "-1,5"]
HARMLESS = ["'tis", "a=b", 'say "x"', "two\nlines", "a,b;c", "гайд"]


def test_words_that_are_formulas(tmp_path: Path) -> None:
    """No word begins as a formula does in the file, every number does as it was, and all return."""
    words, path = [*FORMULAS, *HARMLESS], tmp_path / "a.csv"
    write_csv(path, [["=name", "number"], *([word, -1.5] for word in words)])
    found = read_cells(path)
    assert found.names == ("=name", "number")
    assert found.column(0) == words
    assert set(found.column(1)) == {"-1.5"}
    text = path.read_text(encoding="utf-8")
    assert text.startswith("'=name,")
    assert all(f"'{word}" in text for word in FORMULAS)
    assert not any(f"'{word}" in text for word in HARMLESS)


@pytest.mark.parametrize("command", ["evaluate", "sample", "embed"])
def test_the_command_line_refuses_first(tmp_path: Path, command: str) -> None:
    """A place that is none is refused before the model, of which there is none here, is missed."""
    (tmp_path / "file").write_text("precious")
    with pytest.raises(SystemExit, match="cannot create"):
        main([command, str(tmp_path), "--out", str(tmp_path / "file" / "x.csv")])
    assert (tmp_path / "file").read_text() == "precious"
