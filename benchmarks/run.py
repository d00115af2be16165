"""Runs every benchmark, one after the other, and writes what they print to RESULTS.md.

Each benchmark runs in a process of its own, measures its peers in turns, and prints medians, ratios
and their spread. This script adds the date, the machine and the versions. `make bench` takes about
a quarter of an hour, during which nothing else should run on the machine. NumPyro is timed if it is
installed (`pip install '.[bench]'`), and Pythae (`pip install pythae`).

With names, only these benchmarks run, and the rest of the page stays unchanged. With `--scale`, the
benchmark with ten million rows of parameters and a file of 20 GB runs last. With `--device cuda`
(`make bench DEVICE=cuda`), only the tests of other devices and the benchmarks that take a device
run, and no page is written.

Run:  python benchmarks/run.py [NAME ...]      (--smoke for a quick look, which writes no file)
"""

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
ON_DEVICES = ("evidence",)
LAST = ("scale",)  # asked for by name: it needs room on the disk
PACKAGES = ("pyro-vae", "torch", "pyro-ppl", "numpy", "numpyro", "jax", "pythae")


def scripts(names: list[str], *, scale: bool) -> list[Path]:
    """The benchmarks in alphabetical order: all of them, or those in `names`."""
    found = {path.stem: path for path in sorted(HERE.glob("*.py")) if path != Path(__file__)}
    unknown = [name for name in names if name not in found]
    if unknown:
        raise SystemExit(f"no benchmark {', '.join(unknown)}; there are {', '.join(found)}")
    return [
        path
        for name, path in found.items()
        if (name in names if names else scale or name not in LAST)
    ]


def machine() -> list[str]:
    """Describes the machine and the versions, on which the numbers depend."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in _lines(Path("/proc/cpuinfo"))
            if line.startswith("model name")
        ),
        platform.processor() or platform.machine(),
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = [f"{name} {version}" for name in PACKAGES if (version := _version(name))]
    return [
        f"{model}, {os.cpu_count()} cores; GPU: {gpu}",
        f"Python {platform.python_version()}, {', '.join(versions)}",
    ]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def printed(script: Path, options: list[str]) -> tuple[str, float]:
    """Runs a benchmark and shows its output; returns the output, and the seconds it took."""
    start, lines = time.perf_counter(), []
    command = [sys.executable, str(script), *options]
    print(f"==> {script.name}", flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if running.returncode:
        raise SystemExit(f"{script.name} ended with exit code {running.returncode}")
    return "".join(lines), time.perf_counter() - start


def section(script: Path, text: str, seconds: float) -> str:
    """Formats a part of the page: the question, and the numbers as they were printed."""
    source = script.read_text()
    question = source.split('"""')[1].splitlines()[0]
    parts = (
        f"## {script.stem}",
        question,
        f"```text\n{text.rstrip()}\n```",
        f"{seconds:.0f} s in all, {time.strftime('%Y-%m-%d')}; {'; '.join(machine())}\n",
    )
    return "\n\n".join(parts)


def sections_of(page: Path) -> dict[str, str]:
    """Reads the parts of an existing page, by name."""
    _, *parts = page.read_text().split("\n## ") if page.exists() else [""]
    return {part.split("\n", 1)[0]: f"## {part.rstrip()}\n" for part in parts}


def on_device(device: str, options: list[str]) -> None:
    """Runs the tests of other devices, and the benchmarks that take a device."""
    if device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no device '{device}' on this machine")
    tests = [sys.executable, "-m", "pytest", "-q", str(HERE.parent / "tests/test_devices.py")]
    subprocess.run(tests, env={**os.environ, "DEVICE": device}, check=True)
    for script in scripts(list(ON_DEVICES), scale=False):
        printed(script, [*options, "--device", device])


def main() -> None:
    """Runs the benchmarks and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that they run")
    parser.add_argument("--scale", action="store_true", help="ten million rows and 20 GB as well")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md", help="the page")
    parser.add_argument("--device", help="a device such as cuda: its tests and benchmarks alone")
    parser.add_argument("names", nargs="*", help="benchmarks to run; all of them by default")
    arguments = parser.parse_args()
    options = ["--smoke"] if arguments.smoke else []
    if arguments.device:
        on_device(arguments.device, options)
        return
    parts = sections_of(arguments.out) if arguments.names else {}
    for script in scripts(arguments.names, scale=arguments.scale):
        parts[script.stem] = section(script, *printed(script, options))
        if not arguments.smoke:  # after each of them, so that a stop loses no more than one
            arguments.out.write_text(page([parts[name] for name in sorted(parts)]))
    if not arguments.smoke:
        print(f"==> written to {arguments.out}")


def page(parts: list[str]) -> str:
    """The whole page."""
    head = [
        "# What was measured",
        "",
        "Written by `make bench`. Ratios are within one run, in which the peers take turns. They",
        "carry over to other machines better than the times do. Ranges are over repeats. Each part",
        "says when and on which machine it was measured.",
    ]
    return "\n".join(head) + "\n\n" + "\n".join(parts)


if __name__ == "__main__":
    main()
