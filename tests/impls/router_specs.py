"""Layers that between them use every router and everything a router can be asked for."""

from __future__ import annotations

from layer_testing import make_spec

ROUTED = {
    "softmax_topk_scaled": make_spec(router="softmax_topk", norm_topk_prob=False, routed_scaling=16.0),
    "softmax_topk_groups": make_spec(router="softmax_topk", norm_topk_prob=False, num_expert_groups=4, top_k_groups=2),
    "softmax_topk_biased": make_spec(router="softmax_topk", selection_bias=True),
    "topk_softmax": make_spec(router="topk_softmax", router_bias=True, expert_bias=True, activation="swiglu_clamped"),
    "topk_softmax_tight_clamp": make_spec(router="topk_softmax", activation="swiglu_clamped", swiglu_limit=0.5),
    "sigmoid_topk": make_spec(router="sigmoid_topk", norm_topk_prob=False, capacity_factor=1.0),
    "sigmoid_topk_deepseek": make_spec(
        router="sigmoid_topk",
        top_k=3,
        selection_bias=True,
        num_expert_groups=4,
        top_k_groups=2,
        routed_scaling=2.5,
        num_shared_experts=1,
        d_ff_shared=24,
    ),
    "topk_sigmoid": make_spec(router="topk_sigmoid", top_k=1, num_shared_experts=1, activation="relu"),
    "topk_sigmoid_capacity": make_spec(router="topk_sigmoid", top_k=3, capacity_factor=0.75, expert_bias=True),
    "topk_sigmoid_score": make_spec(
        router="topk_sigmoid", capacity_factor=0.75, capacity_policy="score", routed_scaling=0.5
    ),
    "sparsemixer": make_spec(router="sparsemixer"),
    "sparsemixer_k3": make_spec(router="sparsemixer", top_k=3, capacity_factor=1.0),
    "noisy_topk": make_spec(router="noisy_topk", router_bias=True, router_seed=7),
    "noisy_topk_capacity": make_spec(router="noisy_topk", top_k=3, capacity_factor=0.75),
    "switch": make_spec(router="switch", top_k=1, capacity_factor=1.0, activation="relu"),
    "gshard": make_spec(router="gshard", router_seed=3),
    "gshard_capacity": make_spec(router="gshard", capacity_factor=0.75, router_bias=True, routed_scaling=2.0),
    "expert_choice": make_spec(router="expert_choice"),
    "expert_choice_wide": make_spec(router="expert_choice", capacity_factor=1.5, router_bias=True, expert_bias=True),
    "hash": make_spec(router="hash", top_k=3, num_shared_experts=1, shared_gate=True),
    "hash_capacity": make_spec(router="hash", capacity_factor=0.75),
    "score_policy": make_spec(capacity_factor=0.75, capacity_policy="score", num_shared_experts=2, shared_gate=True),
    "score_policy_switch": make_spec(router="switch", top_k=1, capacity_factor=0.5, capacity_policy="score"),
    "multiple": make_spec(capacity_factor=0.5, capacity_multiple=4, top_k=3),
}
