"""The texts that benchmarks embed have the lengths that their reports name."""

import numpy as np

from engine.tokenizer import Tokenizer
from lab.benchmarks.texts import count_tokens, mixed_token_counts, random_texts, random_token_ids
from weights import SMALL


def test_random_texts_have_the_tokens_asked_for_and_are_the_same_each_time() -> None:
    tokenizer = Tokenizer(SMALL)
    token_counts = [3, 4, 16, *mixed_token_counts(20, np.random.default_rng(0))]
    texts = random_texts(tokenizer, token_counts, seed=1)
    assert count_tokens(tokenizer, texts) == token_counts
    assert texts == random_texts(tokenizer, token_counts, seed=1) != random_texts(tokenizer, token_counts, seed=2)


def test_mixed_lengths_are_half_below_66() -> None:
    token_counts = mixed_token_counts(1_000, np.random.default_rng(0))
    assert min(token_counts) >= 8 and max(token_counts) <= 2_048 and 60 < np.median(token_counts) < 70


def test_random_token_ids_are_framed() -> None:
    texts = random_token_ids(100, [2, 20], copies=2)
    assert [len(ids) for ids in texts] == [2, 2, 20, 20]
    assert all((ids[0], ids[-1]) == (2, 1) and max(ids) < 100 for ids in texts)
