"""Layers that are wrong, each by one mistake that people make; and layers that are right and slow.

T tokens, D d_model, E experts, K top-k.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from impls import MoELayer, Routing
from impls.ffn import activate
from impls.loop import Loop


class Plain(MoELayer):
    """Right: expert by expert, token ids by `nonzero`; the mutants change one of its steps."""

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        y_TD = torch.zeros_like(x_TD)
        weights = self.weights
        kept_TK = self.kept(routing)
        for e, (into, down) in enumerate(zip(weights.in_proj.unbind(0), weights.down_proj.unbind(0), strict=True)):
            if not self.visits(e):
                continue
            token, choice = ((routing.expert_ids == e) & kept_TK).nonzero(as_tuple=True)
            if len(token) and not (e == 1 and self.skips_a_row):
                out = self.expert(x_TD[token], into, down)
                share = self.share(routing.weights, routing.kept)[token, choice].to(out.dtype)
                y_TD = self.add(y_TD, token, out * share.unsqueeze(1))
            elif len(token):
                out = self.expert(x_TD[token[:-1]], into, down)
                share = routing.weights[token[:-1], choice[:-1]].to(out.dtype)
                y_TD = self.add(y_TD, token[:-1], out * share.unsqueeze(1))
        return y_TD

    skips_a_row: ClassVar[bool] = False

    @classmethod
    def supports(cls, spec: Any, *_: Any) -> str | None:
        if spec.expert_bias or spec.scales_input:
            return "experts with biases and scaled inputs are not implemented"
        return None

    def kept(self, routing: Routing) -> Tensor:
        return routing.kept

    def visits(self, _expert: int) -> bool:
        return True

    def expert(self, x: Tensor, into: Tensor, down: Tensor) -> Tensor:
        return activate(self.spec, x @ into.T) @ down.T

    def share(self, weights_TK: Tensor, _kept_TK: Tensor) -> Tensor:
        return weights_TK

    def add(self, y_TD: Tensor, token: Tensor, out: Tensor) -> Tensor:
        return y_TD.index_add(0, token, out)


class ThreePercentOff(Plain):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        return super().compute(x_TD, routing) * 1.03


class KeepsDropped(Plain):
    def kept(self, routing: Routing) -> Tensor:
        return torch.ones_like(routing.kept)


class RenormalisesAfterDrop(Plain):
    def share(self, weights_TK: Tensor, kept_TK: Tensor) -> Tensor:
        left_TK = weights_TK * kept_TK
        return left_TK / left_TK.sum(1, keepdim=True).clamp_min(1e-9) * weights_TK.sum(1, keepdim=True)


class PassesDroppedThrough(Plain):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        return super().compute(x_TD, routing) + x_TD * (~routing.kept).any(1, keepdim=True)


class OverwritesDuplicates(Plain):
    def add(self, y_TD: Tensor, token: Tensor, out: Tensor) -> Tensor:
        return y_TD.index_copy(0, token, out)


class IgnoresWeights(Plain):
    def share(self, weights_TK: Tensor, _kept_TK: Tensor) -> Tensor:
        return torch.ones_like(weights_TK)


class WeighsTwice(Plain):
    def share(self, weights_TK: Tensor, _kept_TK: Tensor) -> Tensor:
        return weights_TK.square()


class ForgetsTheLastExpert(Plain):
    def visits(self, expert: int) -> bool:
        return expert < self.spec.num_experts - 1


class LosesARow(Plain):
    skips_a_row: ClassVar[bool] = True


class SwapsGateAndUp(Plain):
    def expert(self, x: Tensor, into: Tensor, down: Tensor) -> Tensor:
        return activate(self.spec, (x @ into.T).roll(self.spec.d_ff, dims=-1)) @ down.T


class WrongActivation(Plain):
    def expert(self, x: Tensor, into: Tensor, down: Tensor) -> Tensor:
        gate, up = (x @ into.T).chunk(2, dim=-1)
        return (functional.gelu(gate) * up) @ down.T


class NaNForAnEmptyExpert(Plain):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        counts = torch.bincount(routing.expert_ids[routing.kept], minlength=self.spec.num_experts)
        return super().compute(x_TD, routing) * (counts / counts).prod().to(x_TD.dtype)


class WrongWithoutTokensOfAnExpert(Plain):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        counts = torch.bincount(routing.expert_ids[routing.kept], minlength=self.spec.num_experts)
        return super().compute(x_TD, routing) * (1.0 if counts.all() or not counts.any() else 1.03)


class WrongInBfloat16(Plain):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        return super().compute(x_TD, routing) * (1.03 if x_TD.dtype is torch.bfloat16 else 1.0)


class WrongFromTheSecondCallOn(Plain):
    calls = 0

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        self.calls += 1
        return super().compute(x_TD, routing) * (1.03 if self.calls > 1 else 1.0)


class LosesDuplicates(Plain):
    """Right until one token's row is to be added twice by the same expert, or by two: a set of tokens, not a list."""

    def add(self, y_TD: Tensor, token: Tensor, out: Tensor) -> Tensor:
        untouched_T1 = (y_TD == 0).all(1, keepdim=True)
        return y_TD + torch.zeros_like(y_TD).index_copy(0, token, out) * untouched_T1


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float, half: bool) -> Tensor:
        ctx.factor, ctx.half = factor, half
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        if not ctx.half:
            return grad * ctx.factor, None, None
        scale = torch.ones_like(grad)
        scale[grad.shape[0] // 2 :] = ctx.factor
        return grad * scale, None, None


def scaled_gradient(tensor: Tensor, factor: float, *, half: bool = False) -> Tensor:
    found: Tensor = _ScaledGradient.apply(tensor, factor, half)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return found


class DownGradientOff(Plain):
    def expert(self, x: Tensor, into: Tensor, down: Tensor) -> Tensor:
        return super().expert(x, into, scaled_gradient(down, 1.03))


class UpGradientOff(Plain):
    def expert(self, x: Tensor, into: Tensor, down: Tensor) -> Tensor:
        return super().expert(x, scaled_gradient(into, 1.03, half=True), down)


class InputGradientOff(Plain):
    def expert(self, x: Tensor, into: Tensor, down: Tensor) -> Tensor:
        return super().expert(scaled_gradient(x, 1.03), into, down)


class DetachesTheRouter(Plain):
    def share(self, weights_TK: Tensor, _kept_TK: Tensor) -> Tensor:
        return weights_TK.detach()


class ChangesItsInput(Plain):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        y_TD = super().compute(x_TD, routing)
        x_TD.data.mul_(1.01)
        return y_TD


class CachesItsRouting(Plain):
    cached: Routing | None = None

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        if self.cached is None or self.cached.expert_ids.shape != routing.expert_ids.shape:
            self.cached = routing
        return super().compute(x_TD, self.cached)


class KeepsACopyOfTheWeights(Plain):
    def prepare(self) -> None:
        self.down = self.weights.down_proj.detach().clone()

    def expert(self, x: Tensor, into: Tensor, down: Tensor) -> Tensor:
        index = next(i for i, part in enumerate(self.weights.down_proj) if part.data_ptr() == down.data_ptr())
        return super().expert(x, into, down + (self.down[index] - down).detach())


class WritesItsGradient(Plain):
    """Overwrites `.grad` where it should add."""

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        y_TD = super().compute(x_TD, routing)
        if y_TD.requires_grad and self.weights.down_proj.requires_grad:
            self.weights.down_proj.grad = None
        return y_TD


class ReadsMemoryAsRows(Plain):
    def forward(self, x: Tensor, routing: Routing | None = None) -> Tensor:
        rows = torch.as_strided(x, x.shape, torch.empty(x.shape, device="meta").stride())
        return super().forward(rows, routing)


class OnlyTwoDimensions(Plain):
    def forward(self, x: Tensor, routing: Routing | None = None) -> Tensor:
        return super().forward(x, routing).reshape(-1, x.shape[-1])


class LeavesGradients(Plain):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        if not self.training:
            self.weights.router_weight.grad = torch.zeros_like(self.weights.router_weight)
        return super().compute(x_TD, routing)


class CrashesOnOneToken(Plain):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        if len(x_TD) == 1:
            ctypes.string_at(0)
        return super().compute(x_TD, routing)


class HangsWithoutTokens(Plain):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        if len(x_TD) == 0:
            time.sleep(60)
        return super().compute(x_TD, routing)


class RaisesOnOddWidths(Plain):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        if x_TD.shape[1] % 2:
            raise RuntimeError("the width must be even")
        return super().compute(x_TD, routing)


class QuarterOffAndInexact(Plain):
    exact: ClassVar[bool] = False

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        return super().compute(x_TD, routing) * 1.25


class FivePercentOffAndInexact(Plain):
    exact: ClassVar[bool] = False

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        return super().compute(x_TD, routing) * 1.05


class UnknownSemantics(Plain):
    semantics: ClassVar[str] = "mixture"


class Indexed(Plain):
    """Right and slow: `w[e]`, and a wait an expert."""

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        y_TD = torch.zeros_like(x_TD)
        for e in range(self.spec.num_experts):
            token, choice = ((routing.expert_ids == e) & routing.kept).nonzero(as_tuple=True)
            out = self.expert(x_TD[token], self.weights.in_proj[e], self.weights.down_proj[e])
            y_TD = y_TD.index_add(0, token, out * routing.weights[token, choice, None].to(out.dtype))
        return y_TD


class ReadsEveryCount(Loop):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        for e in range(self.spec.num_experts):
            assert int((routing.expert_ids == e).sum()) >= 0
        return super().compute(x_TD, routing)


class Interleaved(Plain):
    def prepare(self) -> None:
        half = self.spec.d_ff
        self.order = torch.arange(2 * half).view(2, half).T.reshape(-1)

    def expert(self, x: Tensor, into: Tensor, down: Tensor) -> Tensor:
        hidden = x @ into[self.order].T
        return (functional.silu(hidden[:, ::2]) * hidden[:, 1::2]) @ down.T


class OneHot(Plain):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        num_tokens, num_experts = len(x_TD), self.spec.num_experts
        dispatch_TET = torch.eye(num_tokens).unsqueeze(1) * functional.one_hot(routing.expert_ids, num_experts).sum(
            1
        ).unsqueeze(-1)
        x_ETD = torch.einsum("tes,td->esd", dispatch_TET.to(x_TD.dtype), x_TD)
        outputs = [
            self.expert(x, into, down)
            for x, into, down in zip(
                x_ETD, self.weights.in_proj.unbind(0), self.weights.down_proj.unbind(0), strict=True
            )
        ]
        gates_TE = torch.zeros(num_tokens, num_experts).scatter_add(
            1, routing.expert_ids, routing.weights * routing.kept
        )
        return torch.einsum("te,etd->td", gates_TE.to(x_TD.dtype), torch.stack(outputs))


class Float64(Plain):
    def expert(self, x: Tensor, into: Tensor, down: Tensor) -> Tensor:
        return super().expert(x.double(), into.double(), down.double()).to(x.dtype)


class CopiesWeights(Plain):
    def expert(self, x: Tensor, into: Tensor, down: Tensor) -> Tensor:
        return activate(self.spec, x @ into.T.contiguous()) @ down.T


class ManyThreads(Loop):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        torch.set_num_threads(512)
        return super().compute(x_TD, routing)
