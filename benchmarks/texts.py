"""Texts to measure with: random English words and random token ids, the same in every run."""

from collections.abc import Sequence

import numpy as np

from engine.tokenizer import Tokenizer

# Common words, each of them one token of any vocabulary.
WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father power hour
game line end member law car city community name president team minute idea body information
""".split()  # noqa: SIM905 - shorter than a list


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens in each text, without a prompt."""
    return [len(text.ids) for text in tokenizer.encode([""] * len(texts), texts)]


def random_texts(tokenizer: Tokenizer, token_counts: Sequence[int], seed: int) -> list[str]:
    """Return a text of random words for each count, with that many tokens."""
    counts = count_tokens(tokenizer, [f"a {word}" for word in WORDS])
    words = [word for word, count in zip(WORDS, counts, strict=True) if count == 4]  # <bos> a word <eos>
    generator = np.random.default_rng(seed)
    return [" ".join(["a", *generator.choice(words, size=max(count - 3, 0))]) for count in token_counts]


def mixed_token_counts(count: int, generator: np.random.Generator) -> list[int]:
    """Return `count` lengths of texts, 8 to 2,048 tokens, half of them below 66."""
    lengths: list[int] = np.clip(generator.lognormal(4.2, 0.8, size=count), 8, 2_048).astype(int).tolist()
    return lengths


def random_token_ids(vocab_size: int, token_counts: Sequence[int], copies: int) -> list[list[int]]:
    """Return `copies` texts of each count as random token ids between `<bos>` and `<eos>`."""
    generator = np.random.default_rng(0)
    return [[2, *generator.integers(5, vocab_size, n - 2).tolist(), 1] for n in token_counts for _ in range(copies)]
