"""Routers that take the K largest scores: they differ in what the weights are.

Shapes: T tokens, D d_model, E experts, K top-k. All in float32.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from impls.routers.base import Router, Score
from impls.routers.selection import best_of_group, choose_by_score, two_best_of_group
from impls.spec import LayerSpec
from impls.weights import Weights


class _LargestLogits(Router):
    def choose(self, spec: LayerSpec, weights: Weights, x_TD: Tensor, logits_TE: Tensor) -> Tensor:
        """The K largest logits."""
        del weights, x_TD
        return logits_TE.topk(spec.top_k, dim=-1).indices


class SoftmaxTopK(Router):
    """Softmax over all experts, then the K largest: ``g = p_e``, or ``p_e / (sum of the K)`` where renormalised.

    With groups, a token takes its experts from the M groups whose best expert is best. A selection bias is added to
    the probabilities in the choice, and only there.

    Source: Shazeer et al., 2017, without noise; Jiang et al., Mixtral of Experts, 2024 (renormalised); DeepSeek-AI,
    DeepSeek-V2, 2024, section 2.2 (groups, by the best expert of each).
    """

    def choose(self, spec: LayerSpec, weights: Weights, x_TD: Tensor, logits_TE: Tensor) -> Tensor:
        """The K largest probabilities; where nothing is added to them, the K largest logits, which are the same."""
        del x_TD
        if spec.num_expert_groups == 1 and not spec.selection_bias:
            return logits_TE.topk(spec.top_k, dim=-1).indices
        return choose_by_score(spec, weights, logits_TE.softmax(-1), best_of_group)

    def weigh(self, spec: LayerSpec, logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
        """Probabilities, renormalised if the layer says so."""
        if spec.norm_topk_prob:
            # The same as dividing the chosen probabilities by their sum, without 0 / 0 where forced ids are improbable.
            return logits_TE.gather(1, ids_TK).softmax(-1)
        return logits_TE.softmax(-1).gather(1, ids_TK)


class TopKSoftmax(_LargestLogits):
    """The K largest logits, and softmax over these K.

    Equal to renormalised `softmax_topk`, because ``exp`` cancels; models name them apart.

    Source: OpenAI, gpt-oss model card, 2025; IBM, Granite 3.0 Language Models, 2024.
    """

    def weigh(self, spec: LayerSpec, logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
        """Softmax over the chosen."""
        del spec
        return logits_TE.gather(1, ids_TK).softmax(-1)


class Switch(_LargestLogits):
    """Softmax over all experts and the one best: ``g = max p``, never renormalised, which would make it 1.

    The multiplicative input jitter of training is left out.

    Source: Fedus et al., Switch Transformers, 2021, section 2.1.
    """

    def weigh(self, spec: LayerSpec, logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
        """The probability of the chosen."""
        del spec
        return logits_TE.softmax(-1).gather(1, ids_TK)


class SigmoidTopK(Router):
    """A sigmoid an expert, and the K largest: ``g = s_e``, or ``s_e / (sum of the K)`` where renormalised.

    A selection bias is added to the scores in the choice, and only there; it gets no gradient, because training moves
    it by the load (balancing without an auxiliary loss). With groups, a token takes its experts from the M groups whose
    two best experts together are best.

    Source: DeepSeek-AI, DeepSeek-V3 Technical Report, 2024, section 2.1.2; Wang et al., Auxiliary-Loss-Free Load
    Balancing Strategy for Mixture-of-Experts, 2024.
    """

    score: ClassVar[Score] = "sigmoid"

    def choose(self, spec: LayerSpec, weights: Weights, x_TD: Tensor, logits_TE: Tensor) -> Tensor:
        """The K largest biased scores within the best groups."""
        del x_TD
        return choose_by_score(spec, weights, logits_TE.sigmoid(), two_best_of_group)

    def weigh(self, spec: LayerSpec, logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
        """Scores without the bias, renormalised if the layer says so."""
        chosen_TK = logits_TE.gather(1, ids_TK)
        if spec.norm_topk_prob:
            # The same as dividing by the sum, without 0 / 0 where forced ids are improbable.
            return functional.logsigmoid(chosen_TK).softmax(-1)
        return chosen_TK.sigmoid()


class TopKSigmoid(_LargestLogits):
    """The K largest logits, and a sigmoid of each, which scales the expert's *input*: ``y = sum of f_e(g_e x)``.

    Source: Llama 4 (Meta, 2025) as published in Hugging Face transformers.
    """

    score: ClassVar[Score] = "sigmoid"

    def weigh(self, spec: LayerSpec, logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
        """Sigmoid of the chosen logits."""
        del spec
        return logits_TE.gather(1, ids_TK).sigmoid()
