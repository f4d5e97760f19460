from __future__ import annotations

import getpass
import json
import platform
from pathlib import Path

import pytest
import torch

from bench import environment, gpus
from bench.gpus import Gpu, Gpus


def test_an_environment_is_the_same_from_call_to_call_and_plain_json() -> None:
    described = environment.describe()
    assert json.loads(json.dumps(described)) == described == environment.describe()
    assert environment.environment_hash(described) == environment.environment_hash(environment.describe())
    assert described["packages"]["torch"] == torch.__version__
    assert all(f"cpu.{name}" in described["gaps"] for name, value in described["cpu"].items() if value is None)


def test_an_environment_does_not_say_whose_machine_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/home/somebody/lib/libjemalloc.so.2")
    monkeypatch.setenv("MALLOC_CONF", "prof_prefix:/home/somebody/prof,narenas:2")
    text = json.dumps(environment.describe(), ensure_ascii=False)
    assert "libjemalloc.so.2" in text
    for private in (
        "somebody",
        str(Path.home()),
        platform.node() * (len(platform.node()) > 3),
        f"/{getpass.getuser()}",
    ):
        assert not private or private not in text


@pytest.mark.parametrize(
    ("name", "value", "recorded"),
    [
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", "expandable_segments:True"),
        ("PYTORCH_ALLOC_CONF", "max_split_size_mb:128", "max_split_size_mb:128"),
        ("MALLOC_ARENA_MAX", "1", "1"),
        ("MALLOC_TRIM_THRESHOLD_", "0", "0"),
        ("MALLOC_CONF", "narenas:2", "narenas:2"),
        ("_RJEM_MALLOC_CONF", "narenas:2", "narenas:2"),
        ("TCMALLOC_MAX_TOTAL_THREAD_CACHE_BYTES", "1", "1"),
        ("MIMALLOC_LARGE_OS_PAGES", "1", "1"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1", "glibc.malloc.mmap_threshold=1"),
        ("LD_PRELOAD", "/home/ada/libtcmalloc.so.4", "…/libtcmalloc.so.4"),
    ],
)
def test_settings_of_allocators_are_recorded(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, recorded: str
) -> None:
    monkeypatch.setenv(name, value)
    assert environment.describe()["settings"][name] == recorded


def test_the_allocator_is_the_one_that_was_loaded(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text("7f00-7f01 r-xp 00000000 fe:00 1 /usr/lib/libc.so.6\n7f02 r-xp 0 fe:00 2 /opt/x/libjemalloc.so.2\n")
    assert environment.allocator(maps) == "jemalloc"
    maps.write_text("7f00-7f01 r-xp 00000000 fe:00 1 /usr/lib/libc.so.6\n")
    assert environment.allocator(maps) == " ".join(filter(None, platform.libc_ver()))


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz", "intel-xeon-e5-2690-v4-2-cores"),
        ("AMD EPYC 7763 64-Core Processor", "amd-epyc-7763-2-cores"),
        ("???", "unknown-2-cores"),
    ],
)
def test_a_machine_is_named_by_its_processor_and_cores(monkeypatch: pytest.MonkeyPatch, model: str, key: str) -> None:
    monkeypatch.setattr(environment, "find_gpus", lambda: Gpus((), None, "none"))
    monkeypatch.setattr(environment, "cpu_model", lambda: model)
    monkeypatch.setattr(environment, "usable_cores", lambda: 2)
    assert environment.machine_key() == key


def test_a_machine_with_gpus_is_named_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Gpu(0, "NVIDIA H100 PCIe", None, None, None)
    monkeypatch.setattr(environment, "find_gpus", lambda: Gpus((card,), "570.1", ""))
    assert environment.machine_key() == "nvidia-h100-pcie"
    monkeypatch.setattr(environment, "find_gpus", lambda: Gpus((card, card), "570.1", ""))
    assert environment.machine_key() == "2x-nvidia-h100-pcie"


def test_torch_is_known_to_have_cuda_without_importing_it() -> None:
    assert gpus.torch_has_cuda() == (torch.version.cuda is not None)
