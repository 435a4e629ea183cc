"""Make `checkpoints/small`: EmbeddingGemma's architecture in small, distilled from all-MiniLM-L6-v2 on a CPU.

    python -m checkpoints.make_small --data DIR --out checkpoints/small --work CACHE
    python -m checkpoints.make_small --data DIR --score checkpoints/small

It trains a tokenizer with the genuine one's structure on the texts. It initialises the network as a bag of words that
already works: token embeddings are fitted by ridge regression to the teacher's sentence vectors, and the layers start
as a faint correction. Then sentence-transformers' trainer lets the layers learn the rest.

On Linux, MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 in the environment keeps glibc from
giving memory back and fetching it anew in each step, which can take most of a step's time.
"""

import argparse
import csv
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy.sparse import csr_matrix
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss, MatryoshkaLoss
from tokenizers import Tokenizer
from transformers import Gemma3TextConfig, Gemma3TextModel, TrainerCallback

from checkpoints.layout import network_config, special_tokens, write_checkpoint, write_json
from checkpoints.training_texts import (
    SPECIAL_PIECES,
    TEACHER_DIM,
    VOCAB_SIZE,
    Entry,
    LengthBatches,
    PromptingCollator,
    Targets,
    collect,
    label,
    piece_vectors,
    prompted,
    train_tokenizer,
)
from tasks import PROMPT_NAMES, prompt_for

logger = logging.getLogger(__name__)

DIMS = [768, 512, 256, 128]
LAYERS, HIDDEN = 6, 192
# The config says float32, to compute in; the tensors are float16 only to be small on disk.
CONFIG = network_config(LAYERS, vocab_size=VOCAB_SIZE, hidden_size=HIDDEN, intermediate_size=384, head_dim=64)


def write(out: Path, tokenizer: Tokenizer, network: dict[str, torch.Tensor], dense: list[torch.Tensor]) -> None:
    """Write a checkpoint in float16. `dense` holds the weights of the two Dense modules."""
    halves = {name: tensor.half() for name, tensor in network.items()}
    prompts = {name: prompt_for(task) for name, task in PROMPT_NAMES.items()}
    options = {"clean_up_tokenization_spaces": False}
    write_checkpoint(out, CONFIG, halves, [weight.half() for weight in dense], prompts, SPECIAL_PIECES, {}, options)
    write_json(out / "special_tokens_map.json", special_tokens(SPECIAL_PIECES))
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)


def fit_embeddings(
    tokenizer: Tokenizer, texts: list[str], goal: torch.Tensor, prior: torch.Tensor, ridge: float = 0.3
) -> torch.Tensor:
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
    gram.diagonal().add_(ridge)
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


def score(model: SentenceTransformer, data: Path, split: str) -> dict[int, float]:
    """Return the Spearman correlation with STSb-en's grades at each dimension, under the semantic-similarity prompt."""
    with (data / "stsb" / f"stsb-en-{split}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    grades = [float(grade) for _, _, grade in rows]
    first, second = (
        model.encode([row[side] for row in rows], prompt_name="STS", show_progress_bar=False) for side in (0, 1)
    )
    correlations = {}
    for dim in DIMS:
        a, b = first[:, :dim], second[:, :dim]
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        correlations[dim] = round(float(spearmanr(cosines, grades).statistic), 4)
    return correlations


class Watcher(TrainerCallback):
    """Logs the STSb dev scores and saves a usable checkpoint every `--watch` steps."""

    def __init__(self, model: SentenceTransformer, tokenizer: Tokenizer, args: argparse.Namespace) -> None:
        self.model, self.tokenizer, self.args = model, tokenizer, args

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.args.watch == 0:
            self.model.eval()
            scores = score(self.model, self.args.data, "dev")
            self.model.train()
            logger.info("step %d: STSb dev %s", state.global_step, scores)
            save_model(self.model, self.tokenizer, self.args.work / "latest")


def save_model(model: SentenceTransformer, tokenizer: Tokenizer, out: Path) -> None:
    """Write the model to `out`."""
    write(out, tokenizer, model[0].auto_model.state_dict(), [model[i].linear.weight for i in (2, 3)])


def train(
    model: SentenceTransformer, tokenizer: Tokenizer, entries: list[Entry], targets: Targets, args: argparse.Namespace
) -> None:
    """Train the model on the cosine distance to the teacher's vectors, at all four dimensions."""
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch([entry.text for entry in entries])]
    rows = Dataset.from_dict({"sentence": [""] * len(entries), "label": range(len(entries)), "length": lengths})
    settings = SentenceTransformerTrainingArguments(
        output_dir=str(args.work / "trainer"),
        max_steps=args.steps,
        per_device_train_batch_size=128,
        learning_rate=args.learning_rate,
        learning_rate_mapping={"embed_tokens": 1e-4, "linear": 2e-4, "norm": 3e-4},
        lr_scheduler_type="cosine",
        warmup_steps=args.steps // 20,
        weight_decay=0.0,
        bf16=True,
        use_cpu=True,
        batch_sampler=LengthBatches,
        save_strategy="no",
        logging_steps=100,
        report_to="none",
        disable_tqdm=True,
        seed=args.seed,
    )
    model.max_seq_length = 96
    trainer = SentenceTransformerTrainer(
        model=model,
        args=settings,
        train_dataset=rows,
        loss=MatryoshkaLoss(model, EmbedDistillLoss(model), matryoshka_dims=DIMS),
        data_collator=PromptingCollator(model.preprocess, entries, targets, args.seed),
        callbacks=[Watcher(model, tokenizer, args)],
    )
    trainer.train()


def make(args: argparse.Namespace) -> None:
    """Make everything from the texts to the finished checkpoint in `args.out`."""
    collected, composed = collect(args.data, args.variants, args.joined, args.seed)
    entries = collected + composed
    vectors = np.concatenate([label([entry.text for entry in part], args.work) for part in (collected, composed)])
    tokenizer = train_tokenizer([entry.text for entry in collected])
    targets = Targets(vectors, args.seed)
    rng, width = random.Random(args.seed), HIDDEN - 1
    texts = [prompted(entry, rng) if rng.random() < 0.7 else entry.text for entry in entries]
    goal = torch.from_numpy(vectors.astype(np.float32)) @ targets.axes[:, :width]
    prior = piece_vectors(tokenizer, targets.axes[:, :width], args.work)
    content = fit_embeddings(tokenizer, texts, goal, prior)
    torch.manual_seed(args.seed)
    first = torch.cat([targets.axes[:, :width], torch.zeros(TEACHER_DIM, 1)], dim=1)
    write(args.work / "start", tokenizer, initial_network(content), [first, targets.projection.T])
    model = SentenceTransformer(str(args.work / "start"), device="cpu")
    logger.info("start: STSb dev %s", score(model, args.data, "dev"))
    train(model, tokenizer, entries, targets, args)
    save_model(model, tokenizer, args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with wordnet, clinc, tatoeba and stsb")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/small"), help="where the checkpoint goes")
    parser.add_argument("--work", type=Path, default=Path("small-work"), help="caches and intermediate checkpoints")
    parser.add_argument("--score", type=Path, help="only print the STSb-en scores of this checkpoint")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--variants", type=int, default=4, help="word-swapped copies of each sentence")
    parser.add_argument("--joined", type=int, default=30_000, help="texts made of two to five sentences")
    parser.add_argument("--watch", type=int, default=500, help="steps between looks at STSb dev")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    if args.score:
        model = SentenceTransformer(str(args.score), device="cpu")
        for split in ("dev", "test"):
            logger.info("STSb-en %s: %s", split, score(model, args.data, split))
    else:
        make(args)


if __name__ == "__main__":
    main()
