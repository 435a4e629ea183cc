"""How texts are laid out in the buffer that is copied to the device."""

import numpy as np
import pytest

from engine.packing import ALIGNMENT, Layout


def filled(layout: Layout, texts: list[list[int]]) -> list[list[int]]:
    """Lay the texts out over what another batch left, and return the three parts."""
    buffer = np.full(layout.size, -9, dtype=np.int32)
    layout.fill(buffer, texts)
    return [part.tolist() for part in layout.parts(buffer)]


def test_a_batch_that_fits_exactly() -> None:
    ids, positions, cu_seqlens = filled(Layout(tokens=6, texts=3), [[5, 6, 7], [8], [9, 10]])
    assert ids == [5, 6, 7, 8, 9, 10]
    assert positions == [0, 1, 2, 0, 0, 1]
    assert cu_seqlens == [0, 3, 4, 6]


def test_what_is_left_over_is_one_more_text_and_texts_without_tokens() -> None:
    ids, positions, cu_seqlens = filled(Layout(tokens=8, texts=5), [[5, 6, 7], [8]])
    assert ids == [5, 6, 7, 8, 0, 0, 0, 0]
    assert positions == [0, 1, 2, 0, 0, 1, 2, 3]
    assert cu_seqlens == [0, 3, 4, 8, 8, 8]


@pytest.mark.parametrize("tokens", range(1, 10))
def test_every_part_is_aligned_and_none_overlaps(tokens: int) -> None:
    layout = Layout(tokens, texts=2)
    parts = layout.parts(np.arange(layout.size, dtype=np.int32))
    starts = [int(part[0]) for part in parts]
    assert [len(part) for part in parts] == [tokens, tokens, 3]
    assert all(start % ALIGNMENT == 0 for start in starts)
    assert starts[1] >= tokens and starts[2] >= starts[1] + tokens and parts[2][-1] == layout.size - 1


@pytest.mark.parametrize(
    ("tokens", "texts", "fits"),
    [(8, 3, True), (8, 4, False), (7, 2, True), (7, 3, False), (9, 1, False), (1, 1, True)],
)
def test_left_over_tokens_need_a_text_of_their_own(tokens: int, texts: int, fits: bool) -> None:
    assert Layout(tokens=8, texts=3).holds(tokens, texts) is fits


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="a text without tokens has no vector"):
        filled(Layout(3, 2), [[1, 2, 3], []])
