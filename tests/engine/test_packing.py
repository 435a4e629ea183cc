"""How texts are laid out in the buffer that is copied to the device."""

from collections.abc import Sequence

import numpy as np
import pytest

from engine.contract import Ranges
from engine.packing import ALIGNMENT, Layout, layout_of, spans_of
from tests.support.vectors import Unread


def filled(layout: Layout, texts: Sequence[Sequence[int]], ranges: Ranges | None = None) -> dict[str, list[int]]:
    """Lay the texts out over what another batch left, and return the parts."""
    buffer = np.full(layout.size, -9, dtype=np.int32)
    layout.fill(buffer, texts, ranges)
    return {name: part.tolist() for name, part in layout.parts(buffer)._asdict().items()}


def test_a_batch_that_fits_exactly() -> None:
    texts = [[5, 6, 7], [8], [9, 10]]
    layout = layout_of([3, 1, 2], None)
    assert layout == Layout(tokens=6, texts=3, vectors=3, longest=3)
    assert filled(layout, texts) == {
        "token_ids": [5, 6, 7, 8, 9, 10],
        "positions": [0, 1, 2, 0, 0, 1],
        "cu_seqlens": [0, 3, 4, 6],
        "starts": [0, 3, 4],
        "ends": [3, 4, 6],
    }


def test_arrays_are_copied_and_not_read_id_by_id() -> None:
    texts = [[5, 6, 7], [8], [2**31 - 1, 0]]
    arrays = [Unread("I", ids) for ids in texts]
    assert filled(layout_of([3, 1, 2], None), arrays) == filled(layout_of([3, 1, 2], None), texts)


def test_what_is_left_over_is_texts_of_the_longest_and_texts_and_vectors_of_nothing() -> None:
    assert filled(Layout(tokens=11, texts=6, vectors=4, longest=3), [[5, 6, 7], [8]]) == {
        "token_ids": [5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0],
        "positions": [0, 1, 2, 0, 0, 1, 2, 0, 1, 2, 0],
        "cu_seqlens": [0, 3, 4, 7, 10, 11, 11],
        "starts": [0, 3, 0, 0],
        "ends": [3, 4, 0, 0],
    }


def test_vectors_of_ranges() -> None:
    ranges = [[(1, 3)], [(0, 1), (0, 2), (1, 2)]]
    assert layout_of([3, 2], ranges) == Layout(tokens=5, texts=2, vectors=4, longest=3)
    parts = filled(Layout(8, 4, 5, 3), [[5, 6, 7], [8, 9]], ranges)
    assert parts["cu_seqlens"] == [0, 3, 5, 8, 8]
    assert parts["starts"] == [1, 3, 3, 4, 0] and parts["ends"] == [3, 4, 5, 5, 0]
    assert spans_of([3, 2], ranges) == [(1, 3), (3, 4), (3, 5), (4, 5)]


@pytest.mark.parametrize("tokens", range(1, 10))
def test_every_part_is_aligned_and_none_overlaps(tokens: int) -> None:
    layout = Layout(tokens, texts=2, vectors=5, longest=tokens)
    parts = layout.parts(np.arange(layout.size, dtype=np.int32))
    assert [len(part) for part in parts] == [tokens, tokens, 3, 5, 5]
    ends = [0, *(int(part[-1]) + 1 for part in parts)]
    for part, end in zip(parts, ends, strict=False):
        assert part[0] % ALIGNMENT == 0 and end <= part[0] < end + ALIGNMENT
    assert ends[-1] <= layout.size


@pytest.mark.parametrize(
    ("batch", "fits"),
    [((8, 3, 3, 4), True), ((9, 1, 1, 4), False), ((8, 4, 4, 4), False), ((8, 3, 5, 4), False), ((8, 3, 3, 5), False),
     ((7, 2, 2, 4), True), ((7, 3, 3, 4), False), ((4, 2, 2, 2), True), ((3, 1, 1, 3), True), ((3, 2, 2, 2), False)],
)  # fmt: skip
def test_left_over_tokens_need_texts_of_their_own(batch: tuple[int, int, int, int], fits: bool) -> None:
    """The tokens, texts, vectors and longest of a batch."""
    assert Layout(tokens=8, texts=3, vectors=4, longest=4).holds(Layout(*batch)) is fits


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="a text without tokens has no vector"):
        filled(Layout(3, 2, 2, 3), [[1, 2, 3], []])
