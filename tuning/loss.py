"""The loss of EmbeddingGemma's paper (Schechter Vera et al. 2025, arXiv:2509.20354), of parts that a library keeps."""

from collections.abc import Sequence

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    CoSENTLoss,
    EmbedDistillLoss,
    GlobalOrthogonalRegularizationLoss,
    MatryoshkaLoss,
)
from torch import Tensor, nn

from texts.options import EMBEDDING_DIMS
from tuning.data import SCORES, Kind
from tuning.recipe import Recipe


class ContrastiveLoss(CachedMultipleNegativesRankingLoss):
    """In-batch and hard negatives, the spread-out regulariser of queries and positives, and distillation.

    GradCache keeps the vectors' gradients only, so that all three see the whole batch, whatever the memory.
    """

    def __init__(self, model: SentenceTransformer, recipe: Recipe) -> None:
        super().__init__(
            model, scale=recipe.scale, mini_batch_size=recipe.mini_batch, hardness_mode="hard_negatives",
            hardness_strength=recipe.hardness,
        )  # fmt: skip
        self.recipe = recipe
        # The paper's form: the second moment alone, queries and positives added up.
        self.spread = GlobalOrthogonalRegularizationLoss(model, mean_weight=None, aggregation="sum")
        self.distill = EmbedDistillLoss(model, distance_metric="cosine")

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Return the loss of the batch's vectors, `reps`[column][mini-batch] [texts, dim]; see CachedLossMixin.

        `labels` are the untuned model's unit vectors, [rows, columns, 768], where it is distilled.
        """
        loss: Tensor = super().calculate_loss(reps, labels, with_backward=with_backward)
        columns = [torch.cat(parts) for parts in reps]
        more = self._more(columns, labels)
        if with_backward and more.requires_grad:
            more.backward()
            more = more.detach()
        return loss + more

    def _more(self, columns: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        more = columns[0].new_zeros(())
        if self.recipe.spread:
            [term] = self.spread.compute_loss_from_embeddings(list(columns[:2])).values()
            more = more + self.recipe.spread * term
        if self.recipe.distill and labels is not None:
            teacher = [labels[:, i, : column.shape[1]] for i, column in enumerate(columns)]
            more = more + self.recipe.distill * self.distill.compute_loss_from_embeddings(list(columns), teacher)
        return more


def loss_of(kind: Kind, model: SentenceTransformer, recipe: Recipe) -> nn.Module:
    """Return the loss for a kind of data, at 768, 512, 256 and 128 dimensions alike (Kusupati et al. 2022)."""
    inner = CoSENTLoss(model, scale=recipe.scale) if kind is SCORES else ContrastiveLoss(model, recipe)
    loss: nn.Module = MatryoshkaLoss(model, inner, matryoshka_dims=list(EMBEDDING_DIMS))
    return loss
