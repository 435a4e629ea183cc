"""The loss and its gradients, against the same parts computed at once without GradCache."""

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor

from lab.tuning.data import LABELS, PAIRS, SCORES
from lab.tuning.loss import loss_of
from lab.tuning.recipe import Recipe
from tests.lab.tuning.conftest import Rows
from texts.options import EMBEDDING_DIMS

pytestmark = pytest.mark.tuning

ROWS = 12


def written_out(model: SentenceTransformer, columns: list[Tensor], teacher: Tensor, recipe: Recipe) -> Tensor:
    """Return the paper's loss of whole vectors, by its formulas but for the softmax, which is the library's."""
    total = torch.zeros(())
    for dim in EMBEDDING_DIMS:
        cut = [torch.nn.functional.normalize(column[:, :dim], dim=1) for column in columns]
        softmax = MultipleNegativesRankingLoss(
            model, scale=recipe.scale, hardness_mode="hard_negatives", hardness_strength=recipe.hardness
        )
        total = total + softmax.compute_loss_from_embeddings(cut, None)
        for side in cut[:2]:
            cosines = side @ side.T - torch.diag((side * side).sum(1))
            moment = cosines.square().sum() / (ROWS * (ROWS - 1))
            total = total + recipe.spread * torch.relu(moment - 1 / dim)
        distances = [
            1 - torch.nn.functional.cosine_similarity(column, teacher[:, i, :dim]) for i, column in enumerate(cut)
        ]
        total = total + (recipe.distill or 0) * torch.stack(distances).mean()
    return total


@pytest.mark.parametrize(
    "recipe", [Recipe(mini_batch=5, spread=3, distill=2), Recipe(mini_batch=64, spread=0, distill=0)]
)
def test_the_cached_loss_and_gradients_are_those_written_out(
    model: SentenceTransformer, pairs: Rows, recipe: Recipe
) -> None:
    texts = [
        [row["query"] for row in pairs[:ROWS]],
        [row["positive"] for row in pairs[:ROWS]],
        [row["positive"] for row in pairs[ROWS : 2 * ROWS]],
    ]
    features = [model.preprocess(column) for column in texts]
    teacher = torch.nn.functional.normalize(torch.randn(ROWS, 3, 768, generator=torch.manual_seed(0)), dim=2)
    model.eval()
    weights = [model[2].linear.weight, model[0].auto_model.layers[3].mlp.down_proj.weight]

    def gradients(loss: Tensor) -> list[Tensor]:
        model.zero_grad()
        loss.backward()
        return [weight.grad.clone() for weight in weights]

    vectors_of_all = teacher.flip(0).numpy() if recipe.distill else None
    loss = loss_of(PAIRS, model, recipe, teacher=vectors_of_all)(features, torch.arange(ROWS).flip(0))
    cached = gradients(loss)
    vectors = [model(dict(column))["sentence_embedding"] for column in features]
    expected = written_out(model, vectors, teacher, recipe)
    plain = gradients(expected)
    print(f"loss {float(loss):.6f}, written out {float(expected):.6f}")
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for ours, theirs in zip(cached, plain, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
    model.zero_grad()


def test_texts_of_the_same_label_are_not_each_other_s_wrong_answers(model: SentenceTransformer, pairs: Rows) -> None:
    """Against the softmax written out a row at a time; the spread is that of one text of each label."""
    recipe, groups = Recipe(mini_batch=3, spread=2), [7, 1, 1, 2, 7, 1]
    features = [model.preprocess([row[name] for row in pairs[:6]]) for name in ("query", "positive")]
    model.eval()
    loss = float(loss_of(LABELS, model, recipe, groups=groups)(features, torch.arange(6)))
    anchors, positives = (model(dict(column))["sentence_embedding"].detach() for column in features)
    total = 0.0
    for dim in EMBEDDING_DIMS:
        a, b = (torch.nn.functional.normalize(column[:, :dim], dim=1) for column in (anchors, positives))
        for i in range(6):
            others = [j for j in range(6) if j == i or groups[j] != groups[i]]
            total -= float(torch.log_softmax(20 * b[others] @ a[i], dim=0)[others.index(i)]) / 6
        for side in (a[[4, 5, 3]], b[[4, 5, 3]]):
            moment = sum(float(side[i] @ side[j]) ** 2 for i in range(3) for j in range(3) if i != j) / 6
            total += 2 * max(0.0, moment - 1 / dim)
    assert loss == pytest.approx(total, rel=1e-5)


def test_scores_train_an_order_at_every_size(model: SentenceTransformer) -> None:
    features = [model.preprocess(["a cat", "a dog"]), model.preprocess(["a kitten", "a car"])]
    loss = loss_of(SCORES, model, Recipe())
    right, wrong = (float(loss([dict(f) for f in features], torch.tensor(scores))) for scores in ([1.0, 0], [0, 1.0]))
    assert loss.matryoshka_dims == tuple(EMBEDDING_DIMS) and right < wrong
