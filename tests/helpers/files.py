"""Files of the formats that data sets come in."""

import struct

import numpy as np

from pyro_vae.data.files import IDX_TYPES


def idx_bytes(values: np.ndarray) -> bytes:
    """An idx file of `values`, written by the description of the format."""
    code = {np.dtype(name).newbyteorder("="): code for code, name in IDX_TYPES.items()}[
        values.dtype
    ]
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, code, values.ndim, *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()
