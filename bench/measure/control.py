"""The self-test: a fixed piece of work, its identical twin, and the same with a planted slowdown.

What the harness says of base against twin is its noise floor; what it says of base against slowed is its power.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from bench.measure.device import Call, Device

# (tokens, d_model, d_ff) of a block, the largest first. The smallest are below what torch shares among threads, so
# that threads which wait for each other on a busy machine cannot stretch them.
BLOCKS = ((64, 128, 256), (16, 64, 128), (8, 32, 64))
MIN_BLOCKS = 20


def blocks_for(planted_slowdown: float) -> tuple[int, int]:
    """How many identical blocks of work base and slowed run, so that their ratio is exactly 1 + slowdown.

    The slowdown is read in its decimal notation, to a thousandth: 0.05 gives 20 and 21 blocks.
    """
    share = Fraction(str(planted_slowdown)).limit_denominator(1000)
    if share <= 0:
        raise ValueError(f"planted_slowdown must be at least 0.001, found {planted_slowdown}")
    repeats = -(-MIN_BLOCKS // share.denominator)
    return repeats * share.denominator, repeats * (share.denominator + share.numerator)


def control_arms(device: Device, planted_slowdown: float, longest_call_s: float = math.inf) -> dict[str, Call]:
    """Calls ``base``, ``twin`` (identical code and data) and ``slowed`` (1 + ``planted_slowdown`` times the work).

    Each runs a small feed-forward block over and over: twenty of the largest blocks are 84 million multiplications and
    additions, long against the cost of issuing them.

    Args:
        device: where they run.
        planted_slowdown: as in :func:`blocks_for`.
        longest_call_s: the block is as large as it may be for the second call of ``base`` to take no longer.
    """
    *larger, smallest = BLOCKS
    for sizes in larger:
        arms = _arms(device, planted_slowdown, sizes)
        _seconds(arms["base"], device)  # starts the threads
        if _seconds(arms["base"], device) <= longest_call_s:
            return arms
    return _arms(device, planted_slowdown, smallest)


def _seconds(call: Call, device: Device) -> float:
    reader = device.sample(call, 1)
    device.synchronize()
    return reader().device_s


def _arms(device: Device, planted_slowdown: float, sizes: tuple[int, int, int]) -> dict[str, Call]:
    num_tokens, d_model, d_ff = sizes
    generator = torch.Generator().manual_seed(0)
    x_TD, up_DF, down_FD = (
        torch.randn(shape, generator=generator).to(device.torch_device)
        for shape in ((num_tokens, d_model), (d_model, d_ff), (d_ff, d_model))
    )
    num_base, num_slowed = blocks_for(planted_slowdown)

    def work(num_blocks: int) -> Call:
        def run() -> None:
            with torch.inference_mode():
                for _ in range(num_blocks):
                    torch.mm(torch.relu(torch.mm(x_TD, up_DF)), down_FD)

        return run

    return {"base": work(num_base), "twin": work(num_base), "slowed": work(num_slowed)}
