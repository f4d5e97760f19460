"""Names and shapes of a layer's parameters, without torch.

D d_model, F d_ff of one expert, S the shared experts' width together, E experts.
"""

from __future__ import annotations

from impls.spec import LayerSpec


def parameter_shapes(spec: LayerSpec) -> dict[str, tuple[int, ...]]:
    """Shape of every canonical parameter of ``spec``, in the order in which they are drawn.

    Projections are stored (experts, out, in), one expert after another. A gated activation's input projection holds
    the gate's rows first and the up projection's rows after them, as halves, not interleaved.
    """
    width, hidden, experts = spec.d_model, spec.d_ff, spec.num_experts
    name, halves = ("gate_up", 2) if spec.gated else ("up", 1)
    shapes: dict[str, tuple[int, ...]] = {"router_weight": (experts, width)}
    if spec.router_bias:
        shapes["router_bias"] = (experts,)
    if spec.router == "noisy_topk":
        shapes["router_noise_weight"] = (experts, width)
    if spec.selection_bias:
        shapes["router_selection_bias"] = (experts,)
    shapes[f"{name}_proj"] = (experts, halves * hidden, width)
    if spec.expert_bias:
        shapes[f"{name}_bias"] = (experts, halves * hidden)
    shapes["down_proj"] = (experts, width, hidden)
    if spec.expert_bias:
        shapes["down_bias"] = (experts, width)
    if spec.num_shared_experts:
        shapes[f"shared_{name}_proj"] = (halves * spec.shared_d_ff, width)
        shapes["shared_down_proj"] = (width, spec.shared_d_ff)
        if spec.shared_gate:
            shapes["shared_gate_weight"] = (1, width)
    return shapes
