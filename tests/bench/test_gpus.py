import pynvml
import pytest

from bench.gpus import find_gpus, in_use

UUIDS = ("GPU-aaaa", "GPU-bbbb")


def _refuse(*_: object) -> None:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)


def _mismatch(*_: object) -> None:
    raise pynvml.NVMLLibraryMismatchError("an older driver")


@pytest.fixture(autouse=True)
def _a_driver_that_tells_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, whose driver knows their number and UUIDs and refuses every other question."""
    for name in ("nvmlInit", "nvmlShutdown"):
        monkeypatch.setattr(pynvml, name, lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(UUIDS))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: UUIDS[handle])
    for name in ("SystemGetDriverVersion", "DeviceGetName", "DeviceGetMemoryInfo", "DeviceGetEnforcedPowerLimit"):
        monkeypatch.setattr(pynvml, f"nvml{name}", _refuse)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", _mismatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_gpu_whose_driver_tells_little_is_still_there() -> None:
    found = find_gpus()
    assert [gpu.index for gpu in found.devices] == [0, 1]
    assert found.reason == ""
    assert found.driver is None


@pytest.mark.parametrize(
    ("visible", "indices"),
    [("", []), ("-1", []), ("1", [1]), ("1,0", [0, 1]), ("GPU-b", [1]), ("0,-1,1", [0]), ("9", []), ("MIG-x", [0, 1])],
)
def test_visible_devices_are_followed(visible: str, indices: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = find_gpus()
    assert [gpu.index for gpu in found.devices] == indices
    assert bool(found.reason) == (not indices)


def test_a_gpu_that_others_compute_on_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_use() == [], "what the driver does not tell is no reason to warn"
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda handle: [object()] * 2 * handle)
    (sentence,) = in_use()
    assert "(GPU 1) is in use: 2 processes of others compute on it" in sentence
    assert "CUDA_VISIBLE_DEVICES" in sentence
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert in_use() == []


def test_a_uuid_that_is_not_told_hides_no_gpu_chosen_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", _refuse)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.index for gpu in find_gpus().devices] == [1]
