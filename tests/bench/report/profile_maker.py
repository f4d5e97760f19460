"""Profiles made of thin air, put into an analysis for every routed case that was timed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from analysis_maker import ROUTED

from bench.analysis.divisions import CaseLimit, Division, Limit
from bench.analysis.model import Analysis
from bench.store.profiles import OperatorTime, Profile, StageTime, Tensors, Timeline
from bench.store.qualified import RoutingFacts

MB = 2**20


def make_profile(impl: str, num_experts: int, *, plain_s: float, operator: str = "aten::bmm") -> Profile:
    """A forward call, profiled 10 % slower than plain: route, dispatch, experts, combine and a rest."""
    whole_s = 1.1 * plain_s
    shares = {"route": 0.05, "dispatch": 0.5 if impl == "einsum" else 0.05, "combine": 0.05, "other": 0.02}
    shares["experts"] = 1 - sum(shares.values())
    stages = [
        StageTime(
            phase="forward", stage=stage, host_s=share * whole_s, idle_s=0.1 * share * whole_s, launches=3,
            flops=10**8 if stage == "experts" else 0, moved_bytes=MB // 4,
        )
        for stage, share in shares.items()
    ]  # fmt: skip
    rows = [
        ("experts", operator, "8x83x512, 8x512x2048", 2, 0.8 * shares["experts"], 10**8),
        ("dispatch", "aten::index_copy", "512x512", 1, 0.9 * shares["dispatch"], None),
        ("route", "aten::topk", "512x8", 1, 0.9 * shares["route"], None),
    ]
    experts = [
        StageTime(
            phase="forward", stage="experts", expert=e, host_s=shares["experts"] * whole_s / num_experts, idle_s=0.0,
            launches=5, flops=10**8 // num_experts, moved_bytes=MB // 8,
        )
        for e in range(num_experts if impl == "loop" else 0)
    ]  # fmt: skip
    return Profile(
        calls=4,
        plain_s=plain_s,
        whole_s=whole_s,
        stages=stages,
        experts=experts,
        operators=[
            OperatorTime(phase="forward", stage=s, name=n, shapes=shapes, calls=c, host_s=share * whole_s, flops=f,
                         moved_bytes=MB // 8)
            for s, n, shapes, c, share, f in rows
        ],
        timeline=Timeline(
            at_s=[0.1 * plain_s, 0.9 * plain_s, plain_s],
            stages=["forward dispatch", "forward experts", "forward combine"],
            bytes_alive={"dispatched tokens": [2 * MB, 2 * MB, 0], "workspace": [0, 6 * MB, 0], "output": [0, 0, MB]},
            existing_bytes={"weights": 96 * MB, "input": MB},
            peak_bytes=8 * MB,
            peak_index=1,
            peak_made_by=f"{operator} in experts (forward)",
            largest=[
                Tensors(category="workspace", shape="8x83x2048", dtype="float32", num_bytes=6 * MB, made_by=operator)
            ],
        ),
        traces={"perfetto": f"{impl}.trace.json.gz", "memory": f"{impl}.memory.pickle"},
    )  # fmt: skip


def with_profiles(analysis: Analysis, folder: Path | None = None, where: str = "", **changes: Any) -> Analysis:
    """The analysis with a profile, a limit and a routing for each routed case that was timed (`where` in a query)."""
    frame = analysis.frame.query(where) if where else analysis.frame
    rows = frame[frame["latency_s"].notna() & (frame["semantics"] == "moe")].to_dict("records")
    profiles, limits, routings = {}, {}, {}
    for row in rows:
        kind = next((name for name in ROUTED if name == row["impl"]), "other")
        profile = make_profile(kind, row["num_experts"], plain_s=row["latency_s"], **changes)
        profiles[row["case_id"]] = profile
        whole = Division("", "")
        whole.seconds.update({Limit.COMPUTE: 0.6 * profile.plain_s, Limit.HOST: 0.4 * profile.plain_s})
        limits[row["case_id"]] = CaseLimit(whole, [], f"Limited by arithmetic on {row['impl']}.")
        loads = [2 * row["num_tokens"] // row["num_experts"]] * row["num_experts"]
        routings[row["workload_id"]] = RoutingFacts(
            tokens_per_expert=[loads[0] - 3, *loads[1:]], dropped_fraction=0.01, load_imbalance=1.0,
            dropped_per_expert=[3, *(0 for _ in loads[1:])],
        )  # fmt: skip
    return dataclasses.replace(analysis, profiles=profiles, limits=limits, routings=routings, folder=folder)
