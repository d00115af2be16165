"""How long does it take to import the library, and to train for twenty epochs in a new process?

Every number is for a fresh process; the variants take turns in each repeat:

    import     `import pyro_vae` after `import torch, pyro`, with the bytecode that the first import
               leaves behind;
    digits     a VAE of handwritten digits (8 x 8, scikit-learn's), 20 epochs, from the start of the
               process to its end: with the defaults of `pv.fit`, which compiles if that pays, never
               compiled, and compiled at once.

The benchmark prints seconds, and the ratio to the run that is never compiled, as median (range)
over repeats.

Run:  python benchmarks/starting.py      (--smoke for a quick look)
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

IMPORT = """
import time, torch, pyro
start = time.perf_counter()
import pyro_vae
print(time.perf_counter() - start)
"""
DIGITS = """
import torch, pyro_vae as pv
torch.manual_seed(0)
y = pv.data.digits().train
model = pv.models.VAE(pv.nets.MLPDecoder(8, 64, (64,)), pv.likelihoods.Bernoulli(), latent_dim=8)
guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(64, (64,))))
pv.fit(model, guide, y, num_epochs={epochs}, progress=False, compile={compile})
"""
WAYS = {"as it comes": None, "never compiled": False, "compiled at once": True}


def process(script: str, environment: dict[str, str]) -> tuple[float, str]:
    """Runs a script in a fresh process; returns its seconds, and what it prints."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, env=environment
    )
    return time.perf_counter() - start, done.stdout


def spread(values: list[float]) -> str:
    """The median and the range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Starts processes, and prints how long they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="one repeat, one epoch")
    smoke = parser.parse_args().smoke
    repeats, epochs = (1, 1) if smoke else (5, 20)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        process(IMPORT, environment)  # leaves the bytecode
        imports: list[float] = []
        runs: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(repeats):
            imports.append(float(process(IMPORT, environment)[1]))
            for name, compile in WAYS.items():
                script = DIGITS.format(epochs=epochs, compile=compile)
                runs[name].append(process(script, environment)[0])
    print(f"import pyro_vae, after torch and Pyro: {spread(imports)} s; expected: 0.3 at most")
    print(f"{epochs} epochs of digits, the whole process, {repeats} repeats:")
    for name, seconds in runs.items():
        eager = runs["never compiled"]
        ratios = [mine / its for mine, its in zip(seconds, eager, strict=True)]
        print(f"    {name:<17} {spread(seconds)} s, {spread(ratios)} times never compiled")


if __name__ == "__main__":
    main()
