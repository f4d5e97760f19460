"""CUDA devices as the driver's management library (NVML) sees them: asked without torch and without initialising CUDA.

Initialising CUDA in the runner would cost each fork server its independence and memory, so the question 'is there a
GPU' is put to NVML, to ``CUDA_VISIBLE_DEVICES`` and to the installed torch's own version file.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import pynvml

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that this process may use.

    Attributes:
        index: NVML's number of it, which need not be CUDA's.
        name: the model.
        memory_bytes: total memory; None where the driver does not say.
        power_limit_w: enforced power limit; None where the driver does not say.
        num_processes: processes that compute on it now; None where the driver does not say.
    """

    index: int
    name: str
    memory_bytes: int | None
    power_limit_w: float | None
    num_processes: int | None


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs that this process may use, or the reason why there are none."""

    devices: tuple[Gpu, ...]
    driver: str | None
    reason: str


def find_gpus() -> Gpus:
    """Ask NVML and the environment, every time anew."""
    try:
        with _nvml():
            driver = _or_none(lambda: _text(pynvml.nvmlSystemGetDriverVersion()))
            devices = [_describe(index) for index in range(pynvml.nvmlDeviceGetCount())]
            visible = [gpu for gpu in devices if _is_visible(gpu.index)]
    except pynvml.NVMLError as error:
        return Gpus((), None, f"the NVIDIA driver does not answer ({error})")
    if visible:
        return Gpus(tuple(visible), driver, "")
    if devices:
        hidden = f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')!r} hides them"
        return Gpus((), driver, f"the driver sees {len(devices)} but {hidden}")
    return Gpus((), driver, "the NVIDIA driver sees no device")


def in_use() -> list[str]:
    """A sentence for every GPU that others compute on now, with what to do about it."""
    return [
        f"{gpu.name} (GPU {gpu.index}) is in use: {gpu.num_processes} processes of others compute on it"
        " and take time and memory from what is measured; wait, or choose another with CUDA_VISIBLE_DEVICES"
        " (`nvidia-smi` shows who uses it)"
        for gpu in find_gpus().devices
        if gpu.num_processes
    ]


def why_no_cuda() -> str | None:
    """Why no case can run on CUDA here, or None where one can."""
    if not torch_has_cuda():
        return "the installed torch is built for the CPU only"
    return find_gpus().reason or None


def torch_has_cuda() -> bool:
    """Whether the installed torch is built for CUDA."""
    return re.search(r"^cuda\b[^=\n]*=\s*['\"]", _torch_version_file(), re.MULTILINE) is not None


def torch_version() -> str | None:
    """Version and build of the installed torch, as in ``2.13.0+cpu``; its own metadata may leave the build out."""
    found = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", _torch_version_file(), re.MULTILINE)
    return found and found.group(1)


def _torch_version_file() -> str:
    """What torch says of its build, read without importing it; empty where there is none."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    return (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")


@contextmanager
def _nvml() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _describe(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = _or_none(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    limit_mw = _or_none(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle))
    processes = _or_none(lambda: len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)))
    return Gpu(
        index=index,
        name=_or_none(lambda: _text(pynvml.nvmlDeviceGetName(handle))) or "nvidia-gpu",
        memory_bytes=memory,
        power_limit_w=None if limit_mw is None else limit_mw / 1000,
        num_processes=processes,
    )


def _is_visible(gpu_index: int) -> bool:
    """Whether ``CUDA_VISIBLE_DEVICES`` leaves this GPU; entries are indices or the beginnings of UUIDs."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return True
    handle = pynvml.nvmlDeviceGetHandleByIndex(gpu_index)
    uuid = _or_none(lambda: _text(pynvml.nvmlDeviceGetUUID(handle))) or ""
    entries = [entry.strip() for entry in chosen.split(",")]
    # CUDA ignores everything from the first invalid entry on; a slice of a GPU (MIG-...) may be on any of them
    valid = itertools.takewhile(lambda entry: entry and entry != "-1", entries)
    return any(entry == str(gpu_index) or uuid.startswith(entry) or entry.startswith("MIG-") for entry in valid)


def _or_none(ask: Callable[[], Value]) -> Value | None:
    """The driver's answer, or None where this GPU or this user gets none."""
    try:
        return ask()
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):  # the latter, no NVMLError, is an older driver's
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
