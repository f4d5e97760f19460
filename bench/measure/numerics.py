"""torch's settings that change what a matrix product computes, and so how fast it may be."""

from __future__ import annotations

import os
from typing import Any

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def numerics(device: str) -> dict[str, str]:
    """The settings of this process by name; a layer that changes them changes what is compared.

    Args:
        device: type of the device, as in ``cpu``.
    """
    # the older names of these settings raise an error once somebody has used the newer ones
    backends: Any = torch.backends  # objects in the place of modules, which no type checker knows
    found = {
        "deterministic": ("default", "warn", "error")[torch.get_deterministic_debug_mode()],
        "float32_precision": backends.fp32_precision,
    }
    if device == "cpu":
        return found | {"matmul_float32_precision": backends.mkldnn.matmul.fp32_precision}
    matmul = backends.cuda.matmul
    return found | {
        "matmul_float32_precision": matmul.fp32_precision,  # tf32, ieee, or none: torch's default
        "float16_reduced_precision_reduction": str(matmul.allow_fp16_reduced_precision_reduction),
        "bfloat16_reduced_precision_reduction": str(matmul.allow_bf16_reduced_precision_reduction),
        "float16_accumulation": str(matmul.allow_fp16_accumulation),
        "cublas_workspace": os.environ.get(WORKSPACE, "default"),
    }
