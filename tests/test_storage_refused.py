"""What is not a save of ours is refused, and not run; where it is written, and how."""

import hashlib
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from pyro_vae import registry, writing
from pyro_vae.registry import ENTRIES, registered
from pyro_vae.storage import load, parts, save
from pyro_vae.storage.parts import LAYERS, build, record
from tests.helpers.saving import (
    assert_same_state,
    plain_guide,
    plain_model,
)

# What is not a save of ours.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A save of a small model and guide."""
    model = plain_model()
    save(tmp_path / "saved", model=model, guide=plain_guide(model))
    return tmp_path / "saved"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the JSON file of a save."""
    path = folder / "pyro_vae.json"
    header = json.loads(path.read_text())
    change(header)
    path.write_text(json.dumps(header))


def put_tensors(folder: Path, content: bytes, *, role: str = "guide") -> None:
    """Puts content in place of a safetensors file, and makes the digest agree with it."""
    (folder / f"{role}.safetensors").write_bytes(content)
    edit(folder, lambda header: header[role].update(sha256=hashlib.sha256(content).hexdigest()))


def test_no_folder(tmp_path: Path) -> None:
    """Nothing there, or a file."""
    with pytest.raises(FileNotFoundError, match=r"'.*nowhere' does not exist"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(
        FileNotFoundError, match="is a file, but must be a folder that pyro_vae saved"
    ):
        load(tmp_path / "file")


def test_foreign_folders(tmp_path: Path) -> None:
    """A folder of something else, and the JSON of something else."""
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        ValueError,
        match=r"a folder that pv.save wrote: it has no pyro_vae.json \(found: notes.txt\): pass",
    ):
        load(tmp_path)
    for text in ("[1, 2]", '{"format": "another", "weights": []}', "3"):
        (tmp_path / "pyro_vae.json").write_text(text)
        with pytest.raises(ValueError, match="does not look like a file that pv"):
            load(tmp_path)


def test_a_newer_version(saved: Path) -> None:
    """The message says what wrote it, what this is, and to upgrade."""
    edit(saved, lambda header: header.update(format_version=2, library_version="9.1"))
    with pytest.raises(ValueError, match=r"newer version 9\.1 of pyro_vae in format 2.*--upgrade"):
        load(saved)


@pytest.mark.parametrize("keep", [0, 1, 40, 400, -1])
def test_truncated_json(saved: Path, keep: int) -> None:
    """Cut off anywhere."""
    path = saved / "pyro_vae.json"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="truncated or damaged, since it is not valid JSON"):
        load(saved)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000], ids=["bytes", "brackets"])
def test_json_that_is_none(saved: Path, content: bytes) -> None:
    """Bytes that are no text, and brackets without end."""
    (saved / "pyro_vae.json").write_bytes(content)
    with pytest.raises(ValueError, match="truncated or damaged"):
        load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.pop("model"), '"model" is missing'),
        (lambda header: header.update(model=3), '"model" is missing or of the wrong kind'),
        (
            lambda header: header.update(format_version="1"),
            '"format_version" is missing or of the wrong kind',
        ),
        (lambda header: header.update(about=[]), '"about" is missing or of the wrong kind'),
        (lambda header: header["guide"].pop("sha256"), '"guide" is missing or of the wrong kind'),
        (lambda header: header["guide"].pop("frozen"), "required .*argument: 'frozen'"),
        (
            lambda header: header["guide"].update(frozen=[3]),
            "`frozen` must be a sequence in which each entry is a string",
        ),
        (lambda header: header["guide"].update(extra=3), "no argument 'extra'"),
        (
            lambda header: header["guide"].update(role="model"),
            '"guide" is missing or of the wrong kind',
        ),
        (lambda header: header["guide"].update(architecture="Guide"), "`architecture` must be"),
    ],
)
def test_json_of_another_form(saved: Path, change: Callable[[Any], Any], message: str) -> None:
    """JSON of ours with an entry missing, or of another type: the entry is named."""
    edit(saved, change)
    with pytest.raises(ValueError, match=message):
        load(saved)


DECODER = ("model", "architecture", "arguments", "decoder")
HIDDEN = (*DECODER, "arguments", "hidden")


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change that sets an entry deep in the JSON file."""

    def change(header: dict[str, Any]) -> None:
        *outer, last = path
        for name in outer:
            header = header[name]
        header[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            put(*DECODER, "class", value="os.system"),
            r"a class that a file may name; got 'os\.system'",
        ),
        (put(*DECODER, "class", value="Module"), "must be of a class that a file may name"),
        (put(*DECODER, "class", value=["Linear"]), "must be of a class that a file may name"),
        (put(*DECODER, value={"class": "VAE"}), "model.decoder must be"),
        (put(*DECODER, "arguments", value=[1]), "model.decoder must be"),
        (put(*DECODER, value=3), "`decoder` must be an object of Module; got 3"),
        (put(*DECODER, "arguments", "activation", value={"activation": "eval"}), "'eval'"),
        (put(*DECODER, "arguments", "activation", value="ELU"), "`activation` must be a class"),
        (put(*HIDDEN, value="4"), "`hidden` must be a sequence"),
        (put(*HIDDEN, value=[4.5]), "`hidden` must be a sequence"),
        (put(*HIDDEN, value=[True]), "`hidden` must be a sequence"),
        (put(*HIDDEN, value=[7]), r"do not fit the architecture .*\(4, 2\) float32 in the file"),
        (put(*HIDDEN, value=[-1]), "model.decoder cannot be built as a MLPDecoder"),
        (put(*HIDDEN, value=[10**30]), "model.decoder cannot be built as a MLPDecoder"),
        (put(*DECODER, "arguments", "device", value="cuda"), "takes no argument 'device'"),
        (put("model", "architecture", "arguments", "latent_dim", value="2"), "latent_dim` must"),
        (put("model", "architecture", "arguments", value={}), "cannot be built as a VAE"),
        (
            put("model", "architecture", "class", value="Bernoulli"),
            "cannot be built as a Bernoulli",
        ),
        (
            put("model", "architecture", value={"class": "Tanh", "arguments": {}}),
            "must be one of pv.models",
        ),
        (put("guide", "architecture", value={}), "cannot build the guide"),
        (
            put("guide", "architecture", "plate", value="other"),
            "cannot build the guide .* plate with the size of the batch",
        ),
        (put("guide", "architecture", "plate", value=0), "`plate` must be a string"),
        (
            put("guide", "architecture", "map", value="Encoder"),
            "`map` must be an object of InferenceMap",
        ),
        (
            put("guide", "architecture", "family", value=None),
            "`family` must be an object of Family",
        ),
    ],
)
def test_an_architecture_that_cannot_be_made(
    saved: Path, change: Callable[[Any], Any], message: str
) -> None:
    """Unknown classes, arguments of the wrong type or value: the place and the value are named."""
    edit(saved, change)
    with pytest.raises(ValueError, match=message):
        load(saved)


def test_truncated_swapped_and_missing_tensors(saved: Path, tmp_path: Path) -> None:
    """A file of tensors is the one that was saved with the JSON file, or it is refused."""
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=r"not the file that was saved.*truncated or damaged"):
        load(saved)
    save(tmp_path / "twin", model=plain_model())  # the same architecture, other values
    path.write_bytes((tmp_path / "twin" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="belongs to another save"):
        load(saved)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors' is missing"):
        load(saved)


def test_tensors_that_only_the_digest_knows(saved: Path, tmp_path: Path) -> None:
    """Where even the digest was made to agree, the names and shapes do not."""
    other = {"weight": torch.zeros(3)}
    put_tensors(saved, safetensors.torch.save(other))
    with pytest.raises(ValueError, match=r"missing from the file: map.*unexpected .*: weight"):
        load(saved)
    put_tensors(saved, (saved / "model.safetensors").read_bytes()[:-7])
    with pytest.raises(ValueError, match="or is not a safetensors file"):
        load(saved)


def test_more_than_a_save_can_hold_is_not_begun(saved: Path) -> None:
    """Tensors by the hundred thousand, a file longer than its header says, objects without end."""
    none = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{place}": none for place in range(200_000)}).encode()
    many = len(header).to_bytes(8, "little") + header
    whole = (saved / "model.safetensors").read_bytes()
    for content in (many, whole + b"0"):
        put_tensors(saved, content)
        with pytest.raises(ValueError, match="truncated or damaged, belongs to another save"):
            load(saved)
    put_tensors(saved, whole)
    record = {"class": "Identity", "arguments": {}}
    layers = {str(place): record for place in range(20_000)}
    edit = json.loads((saved / "pyro_vae.json").read_text())
    edit["model"]["architecture"]["arguments"]["decoder"] = {
        "class": "Sequential",
        "arguments": layers,
    }
    (saved / "pyro_vae.json").write_text(json.dumps(edit))
    with pytest.raises(ValueError, match=r"the record lists 20,00. objects"):
        load(saved)


@pytest.mark.parametrize("name", ["x" * 1_000_000, "\ud800"], ids=["long", "half a character"])
def test_names_in_a_file_are_told_in_a_line(saved: Path, name: str) -> None:
    """An error can be printed, whatever the names of layers are."""
    edit = json.loads((saved / "pyro_vae.json").read_text())
    layer = {"class": "Linear", "arguments": {"in_features": 2, "out_features": 3, "bias": True}}
    arguments = edit["model"]["architecture"]["arguments"]
    arguments["decoder"] = {"class": "Sequential", "arguments": {name: layer}}
    (saved / "pyro_vae.json").write_text(json.dumps(edit))
    with pytest.raises(ValueError, match=r"cannot build the .* from") as refused:
        load(saved)
    assert len(str(refused.value).encode()) < 3000


class Bomb:
    """A pickle of this creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("writer", [pickle.dumps, None], ids=["pickle", "torch.save"])
@pytest.mark.parametrize("role", ["model", "guide"])
def test_a_pickle_is_not_run(
    saved: Path, tmp_path: Path, writer: Callable[[Any], bytes] | None, role: str
) -> None:
    """In place of a safetensors file, with and without the right digest; and as the JSON file."""
    bomb, file = Bomb(tmp_path / "ran"), tmp_path / "bomb"
    if writer is None:
        torch.save(bomb, file)
    else:
        file.write_bytes(writer(bomb))
    content = file.read_bytes()
    (saved / f"{role}.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not the file that was saved"):
        load(saved)
    put_tensors(saved, content, role=role)
    with pytest.raises(ValueError, match="not a safetensors file"):
        load(saved)
    (saved / "pyro_vae.json").write_bytes(content)
    with pytest.raises(ValueError, match="not valid JSON"):
        load(saved)
    assert not bomb.path.exists()


def test_the_bomb_would_go_off(tmp_path: Path) -> None:
    """The test above could fail: a loader that reads pickles runs it."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


EXAMPLES = (
    nn.Sequential(nn.Tanh(), nn.Sequential(), nn.Identity()),
    nn.Linear(2, 3, bias=False),
    nn.Conv2d(2, 4, (3, 1), stride=2, padding="valid", dilation=2, groups=2, padding_mode="zeros"),
    nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=(1, 0), bias=False),
    nn.Flatten(2, 3),
    nn.Unflatten(1, (2, -1)),
    nn.LayerNorm((2, 3), eps=1e-3, elementwise_affine=False),
    nn.BatchNorm1d(2, momentum=None),
    nn.BatchNorm2d(2, affine=False, track_running_stats=False),
    nn.Dropout(0.1),
    nn.Identity(),
    nn.ELU(0.5),
    nn.GELU("tanh"),
    nn.LeakyReLU(0.2),
    nn.ReLU(inplace=True),
    nn.SiLU(),
    nn.Sigmoid(),
    nn.Softplus(beta=2, threshold=10.0),
    nn.Tanh(),
)


@pytest.mark.parametrize("layer", EXAMPLES, ids=lambda layer: type(layer).__name__)
def test_layers_are_recorded(layer: nn.Module) -> None:
    """With arguments other than the defaults, through JSON and back."""
    recorded = json.loads(json.dumps(record(layer, "layer")))
    again = build(recorded, "layer")
    assert repr(again) == repr(layer)
    assert again.state_dict().keys() == layer.state_dict().keys()


def test_the_table_of_classes() -> None:
    """No two classes share a name, and every layer has an example above."""
    assert {type(layer) for layer in EXAMPLES} == set(LAYERS)
    message = r"'Linear' of .* must be unique.* got classes of this name in the modules torch\.nn"
    with pytest.raises(ValueError, match=message):
        registered()(type("Linear", (), {}))


def test_a_class_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused until it says what it is made of; a subclass has to say so again."""

    class Stretched(nn.Module):
        def __init__(self, net: nn.Module, scale: float) -> None:
            super().__init__()
            self.net, self.factor = net, scale

    class Twice(Stretched):
        pass

    with pytest.raises(ValueError, match=r"decoder is a `.*Stretched`"):
        record(Stretched(nn.Linear(1, 2), 3.0), "decoder")
    monkeypatch.setattr(registry, "_ENTRIES", dict(ENTRIES))
    monkeypatch.setattr(parts, "ENTRIES", registry._ENTRIES)
    registered(scale="factor")(Stretched)
    again = build(record(Stretched(nn.Linear(1, 2), 3.0), "decoder"), "decoder")
    assert again.factor == 3.0
    assert again.net.out_features == 2
    with pytest.raises(ValueError, match=r"decoder is a `.*Twice`"):
        record(Twice(nn.Linear(1, 2), 3.0), "decoder")
    with pytest.raises(ValueError, match=r"decoder\.scale is inf"):  # which JSON cannot hold
        record(Stretched(nn.Linear(1, 2), math.inf), "decoder")
    registered()(Stretched)
    with pytest.raises(ValueError, match=r"write self\.scale = scale .* @registered\(scale="):
        record(Stretched(nn.Linear(1, 2), 3.0), "decoder")


# Where it is written.


def test_saving_again_replaces_the_old_save(saved: Path) -> None:
    """A guide that is no longer saved is gone; nothing is left beside the folder."""
    model = plain_model()
    save(saved, model=model)
    assert {path.name for path in saved.iterdir()} == {
        "pyro_vae.json",
        "README.md",
        "model.safetensors",
    }
    assert_same_state(model, load(saved).model)
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]


@pytest.mark.parametrize("name", ["notes.txt", "model.safetensors", "deeper/file"])
def test_a_folder_with_other_files_is_refused(tmp_path: Path, name: str) -> None:
    """A file of tensors without our JSON file is somebody else's too."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match=f"holds other files \\({name.split('/')[0]}\\)"):
        save(tmp_path, model=plain_model())
    assert (tmp_path / name).read_text() == "precious"


def test_places_that_cannot_be_replaced(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, the current folder, and a save that holds something more."""
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, but a model is saved into a folder"):
        save(tmp_path / "file", model=plain_model())
    (saved / "figure.png").touch()
    with pytest.raises(ValueError, match=r"holds other files \(figure.png"):
        save(saved, model=plain_model())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="is the current folder"):
        save(".", model=plain_model())
    with pytest.raises(ValueError, match="is the root folder"):
        save("/", model=plain_model())
    with pytest.raises(ValueError, match="zero byte"):
        save("a\0b", model=plain_model())


def test_an_empty_folder_and_missing_parents(tmp_path: Path) -> None:
    """Both are fine."""
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        save(folder, model=plain_model())
        assert load(folder).guide is None


def stop(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Ctrl-C in place of the write or rename that would be number `at`, from 0.

    Folders are moved by renames, as on systems that cannot exchange two names in one step.
    """
    monkeypatch.setattr(writing, "_exchanged", lambda *_: False)
    count = iter(range(at))

    def stopping(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Path, *args: Any, **options: Any) -> Any:
            if next(count, None) is None:
                monkeypatch.undo()  # once only: what cleans up is not stopped
                raise KeyboardInterrupt
            return original(path, *args, **options)

        return wrapped

    for name in ("write_bytes", "rename"):
        monkeypatch.setattr(Path, name, stopping(getattr(Path, name)))


@pytest.mark.parametrize("at", range(5))  # three files and two renames
def test_an_interrupted_save_leaves_the_old_one(
    saved: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Ctrl-C at every step of the writing: the old save is whole, nothing else is there."""
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    model = plain_model()
    guide = plain_guide(model)
    stop(monkeypatch, at)
    with pytest.raises(KeyboardInterrupt):
        save(saved, model=model, guide=guide)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]
    load(saved)
