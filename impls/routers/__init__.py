"""The routers by name. One is a class with scores, a choice and weights; to add one, write it and name it here.

Each class says its formula, its source and what it assumes; `docs/routers.md` says when it is used and what it costs.
"""

from __future__ import annotations

from impls.routers.base import Router, Scores, router_logits
from impls.routers.expert_choice import ExpertChoice
from impls.routers.random_choice import GShard, Hash, NoisyTopK
from impls.routers.sparsemixer import SparseMixer
from impls.routers.top_k import SigmoidTopK, SoftmaxTopK, Switch, TopKSigmoid, TopKSoftmax

__all__ = ["TABLE", "Router", "Scores", "router_logits"]

TABLE: dict[str, Router] = {
    "softmax_topk": SoftmaxTopK(),
    "topk_softmax": TopKSoftmax(),
    "sigmoid_topk": SigmoidTopK(),
    "topk_sigmoid": TopKSigmoid(),
    "sparsemixer": SparseMixer(),
    "noisy_topk": NoisyTopK(),
    "switch": Switch(),
    "gshard": GShard(),
    "expert_choice": ExpertChoice(),
    "hash": Hash(),
}
