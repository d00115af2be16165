"""Environments for the audited packages, and the numbers that the packages write there.

A peer's script in `audits/peers/` imports the package, fits a model with it and writes arrays to
the file that it is given. It runs in `build/audits/NAME/`, where nothing of ours is installed.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pyro_vae as pv

TORCH = "torch==2.13.0"  # first, because an unpinned torch may bring gigabytes for a GPU
_HERE = Path(__file__).parent
_BUILD = _HERE.parent / "build" / "audits"


def _environment(name: str, requirements: tuple[str, ...]) -> str:
    """The Python of an environment with these packages, which is made at the first call."""
    folder = _BUILD / name
    python, stamp = str(folder / "bin" / "python"), folder / "requirements.txt"
    wanted = "\n".join(requirements) + "\n"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"    installing {', '.join(requirements)} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*install, *requirements], check=True)
        stamp.write_text(wanted)
    return python


def written_by(name: str, *requirements: str) -> dict[str, Tensor]:
    """What `audits/peers/NAME.py` writes in an environment with these packages, in float64."""
    python, out = _environment(name, requirements), _BUILD / f"{name}.npz"
    script = _HERE / "audits" / "peers" / f"{name}.py"
    done = subprocess.run([python, script, out], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script} failed: {done.stderr[-2000:]}")
    with np.load(out) as arrays:
        return {key: torch.as_tensor(arrays[key]).double() for key in arrays.files}


class Stored(pv.InferenceMap):
    """Parameters of q(z) as a peer stored them: the last tensor of the batch holds them."""

    def setup(self, num_parameters: int, initial: Tensor) -> None:
        """Creates no parameters."""

    def forward(self, batch: tuple[Tensor, ...], rows: Tensor | None) -> Tensor:
        """Returns the stored parameters."""
        return batch[-1]
