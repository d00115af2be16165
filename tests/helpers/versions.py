"""Prints the lowest versions that pyproject.toml promises, and the tests' own tools, for pip."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
EXTRAS = ("plot", "data", "netcdf")
LOWER = re.compile(r"^([A-Za-z0-9_.-]+)>=([\d.]+)")


def lowest() -> dict[str, str]:
    """Names of what the library depends on, and the lowest version promised of each."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = [
        *project["dependencies"],
        *(line for extra in EXTRAS for line in project["optional-dependencies"][extra]),
    ]
    return {found[1]: found[2] for found in map(LOWER.match, promised) if found}


def tools(known: dict[str, str]) -> list[str]:
    """Versions of what runs the tests, as in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = {"beartype", "pytest", "pytest-xdist", "pluggy", "execnet", "iniconfig"}
    return [line for line in lines if line.split("==")[0] in names - set(known)]


if __name__ == "__main__":
    found = lowest()
    print("\n".join([*(f"{name}=={version}" for name, version in found.items()), *tools(found)]))
