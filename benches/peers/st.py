"""Safetensors files with NumPy alone: float32 and float16, read on demand, written at once."""

import json
import struct
from pathlib import Path

import numpy as np

DTYPES = {"F32": np.float32, "F16": np.float16}


class Reader:
    """A file whose tensors are read when they are asked for."""

    def __init__(self, path):
        self.path = Path(path)
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        self.start = 8 + length
        self.metadata = header.pop("__metadata__", {})
        self.entries = header

    def __contains__(self, name):
        return name in self.entries

    def __iter__(self):
        return iter(self.entries)

    def __getitem__(self, name):
        """The tensor in float32."""
        entry = self.entries[name]
        begin, end = entry["data_offsets"]
        with open(self.path, "rb") as file:
            file.seek(self.start + begin)
            values = np.frombuffer(file.read(end - begin), DTYPES[entry["dtype"]])
        return values.reshape(entry["shape"]).astype(np.float32)


def write(path, tensors, metadata=None):
    """Writes a dictionary of float32 or float16 arrays."""
    names = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}
    header, at = {"__metadata__": metadata or {}}, 0
    for name, values in tensors.items():
        header[name] = {
            "dtype": names[values.dtype],
            "shape": list(values.shape),
            "data_offsets": [at, at + values.nbytes],
        }
        at += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for values in tensors.values():
            file.write(np.ascontiguousarray(values).data)
