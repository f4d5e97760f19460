"""The self-test: a fixed piece of work, its identical twin, and the same with a planted slowdown.

What the harness says of base against twin is its noise floor; what it says of base against slowed is its power.
"""

from __future__ import annotations

from fractions import Fraction

import torch

from bench.measure.device import Call, Device

NUM_TOKENS, D_MODEL, D_FF = 64, 128, 256
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


def control_arms(device: Device, planted_slowdown: float) -> dict[str, Call]:
    """Calls ``base``, ``twin`` (identical code and data) and ``slowed`` (1 + ``planted_slowdown`` times the work).

    Each runs a small feed-forward block over and over: twenty blocks are 84 million multiplications and additions,
    long against the cost of issuing them.
    """
    generator = torch.Generator().manual_seed(0)
    x_TD, up_DF, down_FD = (
        torch.randn(shape, generator=generator).to(device.torch_device)
        for shape in ((NUM_TOKENS, D_MODEL), (D_MODEL, D_FF), (D_FF, D_MODEL))
    )
    num_base, num_slowed = blocks_for(planted_slowdown)

    def work(num_blocks: int) -> Call:
        def run() -> None:
            with torch.inference_mode():
                for _ in range(num_blocks):
                    torch.mm(torch.relu(torch.mm(x_TD, up_DF)), down_FD)

        return run

    return {"base": work(num_base), "twin": work(num_base), "slowed": work(num_slowed)}
