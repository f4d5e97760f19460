"""Tensors on disk that every process maps: written once, their pages shared by all who read them.

A set of tensors is two files, ``NAME.bin`` with the raw bytes and ``NAME.json`` that says where each tensor lies in
it. Reading maps the bytes copy-on-write, so a process that writes to a tensor changes its own pages only, and what was
stored can always be read again. The manifest is put in place last: a set that was not finished does not exist.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

_ALIGNMENT_BYTES = 4096  # a page: tensors share none, and every kernel's alignment is met
_DTYPES = {str(dtype): dtype for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64)}


class TensorSet(NamedTuple):
    """Tensors as read back.

    Attributes:
        tensors: views of one copy-on-write mapping, by name.
        facts: what the writer noted beside them.
        num_bytes: size of the mapped file.
    """

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]
    num_bytes: int


def write_tensors(folder: Path, name: str, tensors: Iterable[tuple[str, torch.Tensor]], facts: dict[str, Any]) -> int:
    """Store tensors as the set ``name`` in ``folder``; gives the size in bytes.

    ``tensors`` is consumed one by one, so a generator never holds more than one of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{name}.{os.getpid()}.tmp"
    entries = {}
    try:
        with temporary.open("wb") as file:
            for key, tensor in tensors:
                file.seek(-(-file.tell() // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES)
                entries[key] = {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "begin": file.tell()}
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                flat.view(torch.uint8).numpy().tofile(file)
            num_bytes = file.tell()
            file.truncate(num_bytes)
        temporary.replace(folder / f"{name}.bin")
        temporary.write_text(json.dumps({"num_bytes": num_bytes, "tensors": entries, "facts": facts}))
        temporary.replace(folder / f"{name}.json")
    finally:
        temporary.unlink(missing_ok=True)
    return num_bytes


def read_tensors(folder: Path, name: str) -> TensorSet:
    """Map the set ``name`` of ``folder``.

    Raises:
        FileNotFoundError: there is no such set, or it was not finished.
    """
    manifest = json.loads((folder / f"{name}.json").read_text())
    file, num_bytes = folder / f"{name}.bin", manifest["num_bytes"]
    if file.stat().st_size != num_bytes:
        raise FileNotFoundError(f"{file} has {file.stat().st_size} bytes, expected {num_bytes}; make it again")
    # shared=False is a private, copy-on-write mapping; an empty file cannot be mapped
    raw = torch.from_file(str(file), shared=False, size=num_bytes, dtype=torch.uint8) if num_bytes else torch.empty(0)
    tensors = {}
    for key, entry in manifest["tensors"].items():
        dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
        size = torch.Size(shape).numel() * dtype.itemsize
        tensors[key] = (
            raw[entry["begin"] : entry["begin"] + size].view(dtype).view(shape)
            if size
            else torch.empty(shape, dtype=dtype)
        )
    return TensorSet(tensors, manifest["facts"], num_bytes)
