"""The texts and the tokenizer of the small checkpoint.

The texts come from the data directory (WordNet, CLINC with its Wikipedia sentences, and the English side of Tatoeba;
see its README for licences), plus variants of their sentences with some words swapped within a WordNet category. The
variants cost only labelling time, and the network needs far more than 80,000 sentences to learn how words combine.
STSb is never read here, as it measures the result.
"""

import json
import logging
import lzma
import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tasks import PROMPTS, prompt_for

logger = logging.getLogger(__name__)

VOCAB_SIZE = 14_080
SPECIAL_PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
VARIANTS, JOINED = 4, 30_000
"""Word-swapped copies of each sentence, and longer texts that join two to five sentences."""
WORD = re.compile(r"(?<![\w'\u2019])[A-Za-z]+(?![\w'\u2019])")
TRAINING_PROMPTS = sorted(prompt_for(task) for task in PROMPTS if task != "none")


@dataclass(frozen=True)
class Entry:
    """A training text, perhaps with a title."""

    body: str
    title: str = ""

    @property
    def text(self) -> str:
        """What the teacher reads: the bare text, without any task prompt."""
        return f"{self.title}: {self.body}" if self.title else self.body

    def prompted(self, rng: random.Random) -> str:
        """Return the text under a random task prompt; a text with a title often becomes a titled document."""
        if self.title and rng.random() < 0.25:
            return f"title: {self.title} | text: {self.body}"
        return rng.choice(TRAINING_PROMPTS) + self.text


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
        self.members: dict[str, list[str]] = defaultdict(list)
        for word, count in sorted(counts.items()):
            kind = self._kind(word, senses)
            if kind and count < 2000:  # commoner words are function words that happen to have a WordNet sense
                self.kind[word] = kind
                self.members[kind].append(word)
        self.weights = {kind: np.cumsum([counts[w] ** 0.75 for w in words]) for kind, words in self.members.items()}

    @staticmethod
    def _kind(word: str, senses: dict[str, Counter[str]]) -> str:
        """Return the word's most frequent category with its inflection, such as `noun.person+s`, or an empty string."""
        for ending in ("", "s", "es", "ing", "ed", "d", "r", "er"):
            stem = word.removesuffix(ending)
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


def collect(data: Path, seed: int) -> tuple[list[Entry], list[Entry]]:
    """Return two lists of entries: those collected from the data, and those composed from its sentences.

    Both are free of duplicates and in a fixed order for a seed.
    """
    rng = random.Random(seed)
    with lzma.open(data / "wordnet" / "synsets.jsonl.xz", "rt", encoding="utf-8") as lines:
        synsets = [json.loads(line) for line in lines]
    sentences = read_sentences(data, synsets)
    collected = [Entry(sentence) for sentence in sentences]
    for synset in synsets:
        definition = synset["definition"]
        collected += [Entry(definition), Entry(definition, title=rng.choice(synset["lemmas"]))]
    collected += [Entry(lemma) for lemma in sorted({lemma for s in synsets if s["examples"] for lemma in s["lemmas"]})]
    swapper = Swapper(synsets, sentences)
    composed = [Entry(swapper.variant(sentence, rng)) for sentence in sentences for _ in range(VARIANTS)]
    composed += [Entry(" ".join(rng.sample(sentences, rng.randint(2, 5)))) for _ in range(JOINED)]
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
    counts = Counter("".join(texts).replace(" ", "▁"))
    # Give the alphabet in full, as the trainer breaks ties in another way each time.
    alphabet = sorted(counts, key=lambda char: (-counts[char], char))[:120]
    room = VOCAB_SIZE - len(SPECIAL_PIECES) - len(BYTE_PIECES)
    trainer = trainers.BpeTrainer(
        vocab_size=room, initial_alphabet=alphabet, limit_alphabet=len(alphabet), show_progress=False
    )
    # Most words stand mid-text, after a space; add a fifth of the texts without one, as texts start.
    learner.train_from_iterator([" " + text for text in texts] + texts[::5] + TRAINING_PROMPTS * 500, trainer)
    learnt = json.loads(learner.to_str())["model"]
    pieces = SPECIAL_PIECES + BYTE_PIECES + sorted(learnt["vocab"], key=learnt["vocab"].get)
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = learner.normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(SPECIAL_PIECES)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> <bos>:1 $B:1 <eos>:1", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    return tokenizer
