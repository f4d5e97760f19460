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
