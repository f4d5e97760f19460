"""What a run ran on: processor, memory, system, software, GPUs, in plain values for ``run.json``.

Whatever could change a measurement and stays the same during a run is here; what changes meanwhile (load, clocks) is
in the records. Nothing here says whose machine it is: no host name, no user, no paths. What the system does not tell
is None, with its reason under the same name in ``gaps``.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from bench.cases import stable_id
from bench.control_groups import read
from bench.gpus import find_gpus, torch_has_cuda, torch_version

PACKAGES = ("moebench", "numpy", "scipy", "pandas", "pydantic", "psutil", "nvidia-ml-py", "matplotlib")
# settings of the allocator, of the thread pools and of torch that change what is measured
SETTINGS = re.compile(
    r"(_RJEM_)?(MALLOC|JEMALLOC|TCMALLOC|MIMALLOC|OMP|KMP|GOMP|MKL|OPENBLAS|DNNL|ONEDNN|ATEN|TORCH|PYTORCH|CUBLAS|CUDA"
    r"|NVIDIA)_\w+|GLIBC_TUNABLES|LD_PRELOAD"
)
ALLOCATOR = re.compile(r"/lib(jemalloc|tcmalloc|mimalloc|hoard|snmalloc)[^/]*\.so")
CPU = Path("/sys/devices/system/cpu")
CPUINFO = Path("/proc/cpuinfo")


def describe() -> dict[str, Any]:
    """The environment of this process; equal from call to call as long as nothing of it is changed."""
    gaps: dict[str, str] = {}
    gpus = find_gpus()
    if gpus.reason:
        gaps["gpus"] = gpus.reason
    return {
        "cpu": _describe_cpu(gaps),
        "memory_bytes": psutil.virtual_memory().total,
        "swap_bytes": psutil.swap_memory().total,
        "system": {
            "os": _os_name(),
            "kernel": f"{platform.system()} {platform.release()}",
            "architecture": platform.machine(),
            "transparent_hugepages": _chosen(Path("/sys/kernel/mm/transparent_hugepage/enabled"), gaps),
            "allocator": allocator(),
        },
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: package_version(name) for name in PACKAGES} | {"torch": torch_version()},
        "torch_built_for_cuda": torch_has_cuda(),
        "settings": {
            name: without_folders(os.environ[name]) for name in sorted(os.environ) if SETTINGS.fullmatch(name)
        },
        "gpus": [
            {"name": gpu.name, "memory_bytes": gpu.memory_bytes, "power_limit_w": gpu.power_limit_w}
            for gpu in gpus.devices
        ],
        "gpu_driver": gpus.driver,
        "gaps": gaps,
    }


def environment_hash(environment: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of what :func:`describe` gave."""
    return stable_id(environment)


def machine_key() -> str:
    """A readable name for this kind of machine: ``amd-epyc-9b45-2-cores``, ``nvidia-h100-pcie``, ``2x-nvidia-l4``."""
    devices = find_gpus().devices
    if devices:
        count = f"{len(devices)}x-" if len(devices) > 1 else ""
        return count + _slug(devices[0].name)
    cores = usable_cores()
    return f"{_slug(cpu_model())}-{cores}-core{'s' * (cores != 1)}"


def usable_cores() -> int:
    """How many processors this process may run on: its affinity, not the machine's total."""
    return len(usable_core_numbers())


def usable_core_numbers() -> frozenset[int]:
    """The system's numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def cpu_model() -> str:
    """The processor's name as the system tells it, or its architecture where it does not."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def package_version(name: str) -> str | None:
    """Version of an installed distribution, without importing it; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Commit of the checkout that this moebench runs from, ``-dirty`` where it was changed; None for a wheel."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    commit = _git(checkout, "rev-parse", "HEAD")
    changes = _git(checkout, "status", "--porcelain", "--untracked-files=no", "--", "bench", "impls")
    return f"{commit}-dirty" if commit and changes else commit


def governor(cpu: Path = CPU) -> str | None:
    """Frequency governor of the first processor, or None where the system does not tell."""
    return read(cpu / "cpu0/cpufreq/scaling_governor")


def turbo(cpu: Path = CPU) -> bool | None:
    """Whether clocks may rise above the nominal one, or None where the system does not tell."""
    no_turbo = read(cpu / "intel_pstate/no_turbo")
    if no_turbo is not None:
        return no_turbo == "0"
    boost = read(cpu / "cpufreq/boost")
    return None if boost is None else boost == "1"


def allocator(maps: Path = Path("/proc/self/maps")) -> str | None:
    """Who serves ``malloc`` in this process: a library that was put before the C library's, or that, with its version.

    What ``LD_PRELOAD`` asks for need not be what was loaded, and ``/etc/ld.so.preload`` is in no variable.
    """
    found = ALLOCATOR.search(read(maps) or "")
    return found[1] if found else " ".join(filter(None, platform.libc_ver())) or None


def is_virtual(cpuinfo: Path = CPUINFO) -> bool | None:
    """Whether a hypervisor is underneath, or None where the processor's flags are not told."""
    flags = _cpuinfo("flags", cpuinfo)
    return None if flags is None else "hypervisor" in flags.split()


def _describe_cpu(gaps: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "model": cpu_model(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": usable_cores(),
        "caches_bytes": _caches() or None,
        "microcode": _cpuinfo("microcode"),
        "governor": governor(),
        "turbo": turbo(),
        "virtual": is_virtual(),
    }
    gaps.update({f"cpu.{name}": "the system does not tell" for name, value in values.items() if value is None})
    return values


def _caches() -> dict[str, int]:
    """Bytes of each data cache that the first processor reaches, by level."""
    caches = {}
    for folder in sorted((CPU / "cpu0/cache").glob("index*")):
        level, kind, size = (read(folder / name) for name in ("level", "type", "size"))
        if level and size and size.endswith("K") and kind != "Instruction":
            caches[f"L{level}"] = int(size.removesuffix("K")) * 1024
    return caches


def _cpuinfo(key: str, path: Path = CPUINFO) -> str | None:
    match = re.search(rf"^{re.escape(key)}\s*:\s*(.+)$", read(path) or "", re.MULTILINE)
    return match[1] if match else None


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.system()


def _chosen(path: Path, gaps: dict[str, str]) -> str | None:
    """The option in brackets of a kernel setting: ``always [madvise] never`` gives ``madvise``."""
    match = re.search(r"\[(\w+)\]", read(path) or "")
    if match is None:
        gaps["system.transparent_hugepages"] = "the system does not tell"
        return None
    return match[1]


def without_folders(value: str) -> str:
    """A text with the folders of every path in it taken away: they tell whose machine it is."""
    return re.sub(r"[\w.+~-]*/[^\s:;,]*?([^/\s:;,]+)(?=$|[\s:;,])", r"…/\1", value)


def _slug(text: str) -> str:
    """Lower case, words joined by hyphens, trademark signs and clock rates left out."""
    plain = re.sub(r"\((r|tm)\)|@.*|\bcpu\b|\bprocessor\b|\b\d+-core\b", " ", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"


def _git(checkout: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(checkout), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
