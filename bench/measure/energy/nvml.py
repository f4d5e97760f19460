"""One NVIDIA GPU as its driver's management library (NVML) sees it, found by UUID.

Every refusal becomes a :class:`~bench.measure.energy.errors.MeterError` with a reason code. The library is loaded on
the first use and never needs CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pynvml

from bench.measure.energy.errors import Code, MeterError

_CODES: dict[int, Code] = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "library_absent",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "library_absent",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "library_absent",
    pynvml.NVML_ERROR_NO_PERMISSION: "no_permission",
    pynvml.NVML_ERROR_GPU_IS_LOST: "device_lost",
    pynvml.NVML_ERROR_RESET_REQUIRED: "device_lost",
}
_UNION_MEMBERS = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}
# A100 (8.0) and H100 (9.0) look at their power for 25 ms of every 100 ms; Yang, Adamek and Armour, "Part-time Power
# Measurements: nvidia-smi's Lack of Attention", 2023.
PART_TIME_CAPABILITIES = frozenset({(8, 0), (9, 0)})
_SLICE = "the meters of a partitioned GPU cover the whole card, not this instance"


class FieldValue(NamedTuple):
    """A value of ``nvmlDeviceGetFieldValues``, and the driver's timestamp for it (0 where it gives none)."""

    value: float
    timestamp_s: float


@contextmanager
def reasons(what: str) -> Iterator[None]:
    """Turn NVML's errors within the block into reasons that name ``what`` was asked."""
    try:
        yield
    except pynvml.NVMLError as error:
        code = _CODES.get(error.value, "not_supported")
        raise MeterError(code, f"{what}: NVML says {str(error).rstrip('.')!r}") from error
    except pynvml.NVMLLibraryMismatchError as error:  # no NVMLError: a function that the driver has in an older form
        raise MeterError("not_supported", f"{what}: the driver is older than nvidia-ml-py") from error


@contextmanager
def session() -> Iterator[None]:
    """NVML initialised within the block.

    Raises:
        MeterError: the library or the driver is absent.
    """
    with reasons("starting NVML"):
        pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


@dataclass(frozen=True, slots=True)
class NvmlGpu:
    """One GPU.

    Attributes:
        handle: NVML's own.
        uuid: identity that no environment variable can shift.
        part_time: whether its power sensor looks only a quarter of the time.
    """

    handle: Any
    uuid: str
    part_time: bool

    def field(self, field_id: int, what: str) -> FieldValue:
        """One field; its own return code is checked, since the call succeeds even when every field failed."""
        with reasons(what):
            answer = pynvml.nvmlDeviceGetFieldValues(self.handle, [field_id])[0]
            if answer.nvmlReturn != pynvml.NVML_SUCCESS:
                raise pynvml.NVMLError(answer.nvmlReturn)
        return FieldValue(getattr(answer.value, _UNION_MEMBERS[answer.valueType]), answer.timestamp * 1e-6)

    def energy_counter(self) -> Callable[[], float]:
        """A function that reads joules since the driver was loaded: field 83, else the older call.

        Raises:
            MeterError: this GPU has neither.
        """

        def from_field() -> float:
            return self.field(pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, "energy counter").value * 1e-3

        def from_call() -> float:
            with reasons("energy counter"):
                return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)) * 1e-3

        return _first_that_works([from_field, from_call])

    def power_sensor(self) -> Callable[[], FieldValue]:
        """A function that reads watts: instant (field 186), else averaged (185), else the older call.

        Raises:
            MeterError: this GPU has none of them.
        """

        def from_field(field_id: int) -> Callable[[], FieldValue]:
            def read() -> FieldValue:
                milliwatts, timestamp_s = self.field(field_id, "power")
                return FieldValue(milliwatts * 1e-3, timestamp_s)

            return read

        def from_call() -> FieldValue:
            with reasons("power"):
                return FieldValue(pynvml.nvmlDeviceGetPowerUsage(self.handle) * 1e-3, 0.0)

        return _first_that_works(
            [from_field(pynvml.NVML_FI_DEV_POWER_INSTANT), from_field(pynvml.NVML_FI_DEV_POWER_AVERAGE), from_call]
        )

    def power_limit_w(self) -> float | None:
        """The limit that the driver enforces; None where it does not say."""
        try:
            return float(pynvml.nvmlDeviceGetEnforcedPowerLimit(self.handle)) * 1e-3
        except pynvml.NVMLError:
            return None

    def process_bytes(self, process: int) -> int:
        """Memory of this GPU that a process has.

        Raises:
            MeterError: the driver does not list it under this number, or not its memory.
        """
        with reasons("memory by process"):
            listed = pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle)
        found = [one.usedGpuMemory for one in listed if one.pid == process]
        if not found:
            raise MeterError(
                "not_supported", f"the driver lists {len(listed)} processes, and not {process}, as in a container"
            )
        if None in found:
            raise MeterError("not_supported", "the driver does not tell the memory of single processes")
        return int(sum(found))

    def state(self) -> dict[str, float]:
        """Clocks, temperature and cumulative throttle times; only what this GPU tells."""
        asks: dict[str, Callable[[], float]] = {
            "sm_clock_hz": lambda: pynvml.nvmlDeviceGetClockInfo(self.handle, pynvml.NVML_CLOCK_SM) * 1e6,
            "memory_clock_hz": lambda: pynvml.nvmlDeviceGetClockInfo(self.handle, pynvml.NVML_CLOCK_MEM) * 1e6,
            "temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(self.handle, pynvml.NVML_TEMPERATURE_GPU),
            "power_throttle_total_s": lambda: self.field(pynvml.NVML_FI_DEV_PERF_POLICY_POWER, "").value * 1e-9,
            "thermal_throttle_total_s": lambda: self.field(pynvml.NVML_FI_DEV_PERF_POLICY_THERMAL, "").value * 1e-9,
        }
        state: dict[str, float] = {}
        for name, ask in asks.items():
            try:
                state[name] = float(ask())
            except (pynvml.NVMLError, MeterError):
                continue  # a GPU that does not tell is not a fault; the name is then absent
        return state


def find_gpu(uuid: str) -> NvmlGpu:
    """The GPU of this UUID, within a :func:`session`.

    Raises:
        MeterError: it is a slice of a card (``mig``, ``virtualised``), whose meters cover the whole card, or NVML
            does not find it.
    """
    if uuid.startswith("MIG-"):
        raise MeterError("mig", _SLICE)
    with reasons(f"looking for {uuid}"):
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError:
            # torch tells the number of a slice as it tells a card's, without saying which it is
            if _is_slice(uuid):
                raise MeterError("mig", _SLICE) from None
            raise
    mode = _or_default(lambda: pynvml.nvmlDeviceGetMigMode(handle)[0], 0)
    if mode == pynvml.NVML_DEVICE_MIG_ENABLE:
        raise MeterError("mig", _SLICE)
    mode = _or_default(lambda: pynvml.nvmlDeviceGetVirtualizationMode(handle), 0)
    if mode == pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU:
        raise MeterError("virtualised", "a virtual GPU shares its card's meters with others")
    capability = _or_default(lambda: pynvml.nvmlDeviceGetCudaComputeCapability(handle), (0, 0))
    return NvmlGpu(handle, uuid, capability in PART_TIME_CAPABILITIES)


def _is_slice(uuid: str) -> bool:
    return _or_default(lambda: pynvml.nvmlDeviceGetHandleByUUID(uuid.replace("GPU-", "MIG-", 1)), None) is not None


def list_uuids() -> list[str]:
    """UUIDs of all cards, in NVML's order, within a :func:`session`."""
    with reasons("listing GPUs"):
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]


def gpu_state(uuid: str) -> dict[str, float]:
    """Clocks, temperature and throttle times of one GPU; empty where NVML does not answer."""
    try:
        with session():
            return find_gpu(uuid).state()
    except MeterError:
        return {}


def _first_that_works(readers: list[Callable[[], Any]]) -> Callable[[], Any]:
    refusal: MeterError | None = None
    for read in readers:
        try:
            read()
        except MeterError as error:
            if error.code == "device_lost":
                raise
            refusal = refusal or error
        else:
            return read
    assert refusal is not None
    raise refusal


def _or_default(ask: Callable[[], Any], default: Any) -> Any:
    """NVML's answer, or the default for a card too old to have an answer."""
    try:
        return ask()
    except pynvml.NVMLError:
        return default
