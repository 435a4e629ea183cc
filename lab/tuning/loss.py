"""The loss of EmbeddingGemma's paper (Schechter Vera et al. 2025, arXiv:2509.20354), on sentence-transformers'."""

from collections.abc import Sequence

import numpy as np
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
from torch.nn import functional

from lab.tuning.data import SCORES, Kind
from lab.tuning.recipe import Recipe
from texts.options import EMBEDDING_DIMS


class ContrastiveLoss(CachedMultipleNegativesRankingLoss):
    """In-batch and hard negatives, the spread-out regulariser of queries and positives, and distillation.

    GradCache keeps only the vectors' gradients, so all three see the whole batch however little memory there is.
    """

    def __init__(
        self, model: SentenceTransformer, recipe: Recipe, groups: Sequence[int] | None, teacher: np.ndarray | None
    ) -> None:
        """`groups` are the labels of all rows, if they have labels; `teacher` are the vectors to stay close to."""
        super().__init__(
            model, scale=recipe.scale, mini_batch_size=recipe.mini_batch, hardness_mode="hard_negatives",
            hardness_strength=recipe.hardness,
        )  # fmt: skip
        self.recipe = recipe
        self.groups = None if groups is None else torch.tensor(groups)
        self.teacher = None if teacher is None else torch.from_numpy(teacher)
        # The paper's form: the second moment alone, queries and positives added up.
        self.spread = GlobalOrthogonalRegularizationLoss(model, mean_weight=None, aggregation="sum")
        self.distill = EmbedDistillLoss(model, distance_metric="cosine")

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Return the loss of the batch's vectors, `reps`[column][mini-batch] [texts, dim]; see CachedLossMixin.

        `labels` are the numbers of the batch's rows, [rows].
        """
        assert labels is not None
        rows, columns = labels.cpu(), [torch.cat(parts) for parts in reps]
        groups = None if self.groups is None else self.groups[rows].to(columns[0].device)
        if groups is None:
            loss: Tensor = super().calculate_loss(reps, labels, with_backward=with_backward)
            more = self._more(columns, rows, columns[:2])
        else:
            loss = columns[0].new_zeros(())
            one_each = list({group: i for i, group in enumerate(groups.tolist())}.values())
            spread = [column[one_each] for column in columns]  # texts of the same label should stay close together
            more = self._among_groups(columns, groups) + self._more(columns, rows, spread)
        if with_backward and more.requires_grad:
            more.backward()
            more = more.detach()
        return loss + more

    def _among_groups(self, columns: Sequence[Tensor], groups: Tensor) -> Tensor:
        """Return the loss of in-batch negatives, leaving out those with the row's own label."""
        anchors, positives = (functional.normalize(column, dim=1) for column in columns)
        scores = self.recipe.scale * anchors @ positives.T  # [rows, rows]
        same = groups[:, None] == groups[None, :]
        others = scores.masked_fill(same.fill_diagonal_(False), -torch.inf)
        return functional.cross_entropy(others, torch.arange(len(groups), device=scores.device))

    def _more(self, columns: Sequence[Tensor], rows: Tensor, spread: Sequence[Tensor]) -> Tensor:
        more = columns[0].new_zeros(())
        if self.recipe.spread:
            [term] = self.spread.compute_loss_from_embeddings(list(spread)).values()
            more = more + self.recipe.spread * term
        if self.teacher is not None:
            vectors = self.teacher[rows].to(columns[0].device)  # [rows, columns, 768]
            teacher = [vectors[:, i, : column.shape[1]] for i, column in enumerate(columns)]
            distance = self.distill.compute_loss_from_embeddings(list(columns), teacher)
            more = more + (self.recipe.distill or 0.0) * distance
        return more


def loss_of(
    kind: Kind,
    model: SentenceTransformer,
    recipe: Recipe,
    groups: Sequence[int] | None = None,
    teacher: np.ndarray | None = None,
) -> nn.Module:
    """Return the loss for a kind of data, summed over 768, 512, 256 and 128 dimensions (Kusupati et al. 2022).

    Except for scores, a row's `label` is its number; `groups` and `teacher` are as for ContrastiveLoss.
    """
    inner = CoSENTLoss(model, scale=recipe.scale) if kind is SCORES else ContrastiveLoss(model, recipe, groups, teacher)
    return MatryoshkaLoss(model, inner, matryoshka_dims=list(EMBEDDING_DIMS))
