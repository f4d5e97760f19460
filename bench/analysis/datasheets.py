"""What data sheets say that a GPU can do at best: lines to look at beside the measured roofs, none to judge by.

No product reaches its data sheet: clocks fall under load, and the figures count neither the start of a kernel nor the
reading of its operands. So these are drawn, with their names, and nothing is divided by them. Dense matrix products
(where a sheet gives figures with 2:4 sparsity, half of them), accumulated in float32; float32 without TF32, as torch
does it unless told otherwise. Cards whose figures differ between documents are not here, and such figures are left out.

Sources, all by NVIDIA: *A100 Tensor Core GPU* data sheet; *H100 Tensor Core GPU* data sheet (2022); *H200 Tensor Core
GPU* data sheet; *Blackwell Architecture Technical Brief* (HGX B200); *L4 Tensor Core GPU* data sheet; *L40S GPU* data
sheet; *A10 Tensor Core GPU* data sheet; *Ada GPU Architecture* white paper (GeForce RTX 4090); *RTX Blackwell GPU
Architecture* white paper (GeForce RTX 5090).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class DataSheet:
    """One card.

    Attributes:
        card: its name in words.
        flops_per_s: dense matrix products by number format; one that is not here is not known for certain.
        bytes_per_s: the memory's bandwidth.
    """

    card: str
    flops_per_s: Mapping[str, float]
    bytes_per_s: float


def _sheet(card: str, half_tflops: float, float32_tflops: float | None, gb_per_s: float) -> DataSheet:
    flops_per_s = dict.fromkeys(("bfloat16", "float16"), half_tflops * 1e12)
    if float32_tflops is not None:
        flops_per_s["float32"] = float32_tflops * 1e12
    return DataSheet(card, flops_per_s, gb_per_s * 1e9)


SHEETS: Mapping[str, DataSheet] = {
    "NVIDIA A100-SXM4-40GB": _sheet("A100 40GB SXM", 312, 19.5, 1555),
    "NVIDIA A100-SXM4-80GB": _sheet("A100 80GB SXM", 312, 19.5, 2039),
    "NVIDIA A100-PCIE-40GB": _sheet("A100 40GB PCIe", 312, 19.5, 1555),
    "NVIDIA A100 80GB PCIe": _sheet("A100 80GB PCIe", 312, 19.5, 1935),
    "NVIDIA H100 80GB HBM3": _sheet("H100 SXM", 1979 / 2, 67, 3350),
    "NVIDIA H100 PCIe": _sheet("H100 PCIe", 1513 / 2, 51, 2000),
    "NVIDIA H200": _sheet("H200 SXM", 1979 / 2, 67, 4800),
    "NVIDIA B200": _sheet("B200", 2250, None, 8000),
    "NVIDIA L4": _sheet("L4", 242 / 2, 30.3, 300),
    "NVIDIA L40S": _sheet("L40S", 362.05, 91.6, 864),
    "NVIDIA A10": _sheet("A10", 125, 31.2, 600),
    "NVIDIA GeForce RTX 4090": _sheet("GeForce RTX 4090", 165.2, 82.6, 1008),
    "NVIDIA GeForce RTX 5090": _sheet("GeForce RTX 5090", 209.5, 104.8, 1792),
}
"""By the driver's name of the card, which is torch's too."""


def find_sheet(name: str) -> DataSheet | None:
    """The data sheet of the card that the driver calls ``name``; None for others, also for those of a similar name."""
    return SHEETS.get(name)


def sheet_of_run(environment: Mapping[str, Any]) -> DataSheet | None:
    """The data sheet of the card that a run used; None where it could use cards of several kinds, or knows none."""
    names = {str(gpu.get("name")) for gpu in environment.get("gpus") or ()}
    return find_sheet(names.pop()) if len(names) == 1 else None
