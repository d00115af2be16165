"""A table as a laboratory has it."""

import numpy as np
import pandas as pd

UNITS = (1.0, 1e5, 1e-3, 1e-6, 300.0, 7.0, 1e3, 0.1, 40.0)
"""Scales of nine measurements: degrees, pascals, kilograms and so on."""


def laboratory(num_rows: int = 60) -> pd.DataFrame:
    """What a scientist has: nine measurements, two columns of words, an id, a date, and holes."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=num_rows)
    frame = pd.DataFrame({"sample_id": [f"S{row:04d}" for row in range(num_rows)]})
    frame["date"] = pd.date_range("2024-01-03", periods=num_rows, freq="36h").strftime("%Y-%m-%d")
    frame["site"] = np.where(z > 0.5, "river", np.where(z > -0.5, "north", "south"))
    frame["kind"] = rng.choice(["control", "treated"], num_rows)
    for number, unit in enumerate(UNITS):
        slope = 1.0 if number % 2 else -1.0
        frame[f"m{number}"] = unit * (5 + slope * z + 0.3 * rng.normal(size=num_rows))
    holes = rng.random((num_rows, len(UNITS))) < 0.05
    names = [f"m{number}" for number in range(len(UNITS))]
    frame[names] = frame[names].mask(holes)
    frame.loc[3, "m0"], frame.loc[3, "m1"] = 40.0, np.nan  # an outlier, with a hole
    return frame
