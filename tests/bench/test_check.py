from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import bench.check
from bench.check import Checked, check_result
from bench.routing_check import routing_fault
from impls.spec import LayerSpec

T, D, E, F = 12, 6, 4, 5
SPEC = LayerSpec(d_model=D, d_ff=F, num_experts=E, top_k=2)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


OUTPUT = draw(T, D)
GRADIENTS = {
    "input": draw(T, D, seed=1),
    "router_weight": draw(E, D, seed=2),
    "down_proj": 10 * draw(E, D, F, seed=3),
    "shared_down_proj": draw(D, F, seed=4),
}


def check(
    change: Callable[[torch.Tensor, dict[str, torch.Tensor | None]], torch.Tensor] = lambda output, _: output,
    dtype: torch.dtype = torch.float32,
    tokens_n: torch.Tensor | None = None,
) -> Checked:
    """The verdict on the truth itself, rounded to ``dtype`` and then changed."""
    tokens_n = torch.arange(T) if tokens_n is None else tokens_n
    gradients: dict[str, torch.Tensor | None] = {name: g.to(dtype) for name, g in GRADIENTS.items()}
    output = change(OUTPUT.to(dtype), gradients)
    return check_result(
        output,
        gradients,
        truth_output_nD=OUTPUT[tokens_n],
        truth_gradients=GRADIENTS,
        tokens_n=tokens_n,
        like_TD=torch.zeros(T, D, dtype=dtype),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_rounding_is_right_and_its_error_is_measured(
    dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.check, "_PIECE", piece)
    checked = check(dtype=dtype)
    by_hand = {
        name: float((g.to(dtype).double() - g).norm() / g.norm()) for name, g in {"output": OUTPUT, **GRADIENTS}.items()
    }
    assert checked.fault == ""
    assert checked.relative_error is not None
    assert checked.relative_error > 0
    # the small gradients are measured against their own norm: none of them is nearly zero
    assert checked.relative_error == pytest.approx(max(by_hand.values()))
    assert checked.worst_tensor == max(by_hand, key=lambda name: by_hand[name])


def test_three_percent_off_names_the_size_and_the_tokens() -> None:
    checked = check(lambda output, _: output * 1.03)
    assert checked.relative_error == pytest.approx(0.03, rel=1e-4)
    assert (
        checked.fault
        == "output is off by 0.03 of its norm where 1.3e-05 is allowed, first at token 0 (12 of 12 tokens)"
    )


def test_one_wrong_token_is_found() -> None:
    def change(output: torch.Tensor, _: object) -> torch.Tensor:
        output[7] += 0.1
        return output

    assert check(change).fault.endswith("first at token 7 (1 of 12 tokens)")


def test_one_wrong_gradient_of_one_expert_is_found() -> None:
    def change(output: torch.Tensor, gradients: dict[str, torch.Tensor | None]) -> torch.Tensor:
        down = gradients["down_proj"]
        assert down is not None
        down[2] *= 1.5
        return output

    checked = check(change)
    assert checked.worst_tensor == "down_proj"
    assert checked.fault.endswith("first at expert 2 (1 of 4 experts)")
    assert checked.fault.startswith("gradient of down_proj is off by ")


def test_a_gradient_that_never_came_counts_as_zero() -> None:
    def change(output: torch.Tensor, gradients: dict[str, torch.Tensor | None]) -> torch.Tensor:
        gradients["router_weight"] = None
        return output

    checked = check(change)
    assert checked.worst_tensor == "router_weight"
    assert checked.relative_error == pytest.approx(1)


def test_a_gradient_whose_truth_is_nearly_zero_is_measured_against_the_largest() -> None:
    tiny = {"router_weight": torch.zeros(E, D, dtype=torch.float64), "down_proj": GRADIENTS["down_proj"]}
    largest = float(GRADIENTS["down_proj"].norm())

    def error_of(noise: float) -> Checked:
        router = torch.zeros(E, D)
        router[1, 0] = noise
        return check_result(
            OUTPUT.float(),
            {"router_weight": router, "down_proj": tiny["down_proj"].float()},
            truth_output_nD=OUTPUT,
            truth_gradients=tiny,
            tokens_n=torch.arange(T),
            like_TD=torch.zeros(T, D),
        )

    assert error_of(0.9e-7 * largest).fault == ""
    wrong = error_of(1e-6 * largest)
    assert wrong.relative_error == pytest.approx(1e-4, rel=1e-3)
    assert "router_weight" in wrong.fault
    assert "first at expert 1 (1 of 4 experts)" in wrong.fault


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_wrong_and_located(value: float) -> None:
    def change(output: torch.Tensor, _: object) -> torch.Tensor:
        output[5, 1] = output[9, 0] = value
        return output

    checked = check(change)
    assert checked.relative_error is None
    assert checked.fault == "output is not finite, first at token 5 (2 of 12 tokens)"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda y: y[1:], r"output is torch.float32 \(11, 6\), expected torch.float32 \(12, 6\)"),
        (lambda y: y.double(), r"output is torch.float64 \(12, 6\), expected torch.float32"),
        (lambda _: None, "output is a NoneType, expected a tensor"),
    ],
)
def test_wrong_form_is_wrong(change: Callable[[torch.Tensor], torch.Tensor], fault: str) -> None:
    checked = check(lambda output, _: change(output))
    assert checked.relative_error is None
    assert checked.fault
    with pytest.raises(AssertionError, match=fault):
        raise AssertionError(checked.fault)


def test_only_sampled_tokens_are_compared_and_named_by_their_number() -> None:
    tokens_n = torch.tensor([2, 5, 11])

    def change(token: int) -> Callable[[torch.Tensor, object], torch.Tensor]:
        def apply(output: torch.Tensor, _: object) -> torch.Tensor:
            output[token] += 1
            return output

        return apply

    assert check(change(4), tokens_n=tokens_n).fault == ""
    assert check(change(5), tokens_n=tokens_n).fault.endswith("first at token 5 (1 of 3 tokens)")


def test_no_tokens_at_all_are_right() -> None:
    nothing = torch.zeros(0, D)
    checked = check_result(
        nothing,
        {"input": nothing, "down_proj": torch.zeros(E, D, F)},
        truth_output_nD=nothing.double(),
        truth_gradients={"input": nothing.double(), "down_proj": torch.zeros(E, D, F, dtype=torch.float64)},
        tokens_n=torch.arange(0),
        like_TD=nothing,
    )
    assert checked == Checked("", 0.0, "output")


def test_something_where_all_must_be_zero_is_wrong_without_a_number() -> None:
    zero = torch.zeros(T, D, dtype=torch.float64)
    checked = check_result(
        torch.full((T, D), 1e-30),
        {},
        truth_output_nD=zero,
        truth_gradients={},
        tokens_n=torch.arange(T),
        like_TD=zero.float(),
    )
    assert checked.relative_error is None
    assert checked.fault == "output must be zero and is not, first at token 0 (12 of 12 tokens)"


X_TD = draw(T, D, seed=5).float()
WEIGHTS = {"router_weight": draw(E, D, seed=6).float()}
IDS_TK = (X_TD @ WEIGHTS["router_weight"].T).topk(2).indices


def test_best_experts_are_right_in_either_order() -> None:
    assert routing_fault(SPEC, WEIGHTS, X_TD, IDS_TK) == ""
    assert routing_fault(SPEC, WEIGHTS, X_TD, IDS_TK.flip(1)) == ""


def test_ties_may_fall_either_way() -> None:
    router = WEIGHTS["router_weight"].clone()
    router[1] = router[0]
    for ids in ([0, 1], [1, 0]):
        spec = LayerSpec(d_model=D, d_ff=F, num_experts=2, top_k=1)
        ids_TK = torch.tensor(ids * (T // 2)).view(T, 1)
        assert routing_fault(spec, {"router_weight": router[:2]}, X_TD, ids_TK) == ""


def test_a_worse_expert_a_repeated_one_and_one_out_of_range_are_wrong() -> None:
    worst_T = (X_TD @ WEIGHTS["router_weight"].T).argmin(dim=1)
    for bad in (worst_T[3], IDS_TK[3, 0], torch.tensor(E), torch.tensor(-1)):
        ids_TK = IDS_TK.clone()
        ids_TK[3, 1] = bad
        fault = routing_fault(SPEC, WEIGHTS, X_TD, ids_TK)
        assert fault.startswith("token 3 is routed to experts [")


def test_the_bias_takes_part() -> None:
    biased = {**WEIGHTS, "router_bias": torch.tensor([0.0, 0.0, 0.0, 100.0])}
    ids_TK = (X_TD @ biased["router_weight"].T + biased["router_bias"]).topk(2).indices
    assert routing_fault(SPEC, biased, X_TD, ids_TK) == ""
    assert routing_fault(SPEC, biased, X_TD, IDS_TK) != ""


def test_a_wrong_shape_is_wrong() -> None:
    assert "shape" in routing_fault(SPEC, WEIGHTS, X_TD, IDS_TK[:, :1])
