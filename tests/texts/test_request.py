"""The texts of a request: their names, and what becomes of titles. Each API's tests cover its refusals."""

import pytest

from texts.checks import check_text, check_title
from texts.request import Texts, read_texts


def test_one_text_and_a_list_are_called_by_their_fields() -> None:
    single, several = read_texts(text="a", title="b"), read_texts(texts=["a", "c"], titles=["", "d"])
    assert single == Texts(["a"], ["b"], single=True) and single.checked() == (["a"], ["b"])
    assert several.checked() == (["a", "c"], [None, "d"])
    assert (single.name(0), single.title_name(0)) == ("text", "title")
    assert (several.name(1), several.title_name(1)) == ("texts[1]", "titles[1]")


def test_a_clients_lists_are_not_written_to() -> None:
    texts, titles = ["a"], [" "]
    checked, checked_titles = read_texts(texts=texts, titles=titles).checked()
    assert checked_titles == [None] and titles == [" "] and checked is not texts


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "body: it is null; give a text, or leave it out"),
        (5, "body: it is a number; give a string"),
        (["a"], "body: it is a list; give a string"),
        (" \n", "body: the text is empty or blank, which has no meaning to embed; leave it out"),
        ("é\udc00", r"body: character 1 is a lone surrogate \(U\+DC00\)"),
    ],
)
def test_an_unfit_text_is_refused_by_its_name(text: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_text(text, "body")


def test_a_blank_title_is_none_and_an_unfit_one_refused() -> None:
    assert check_title(None, "heading") is check_title("  ", "heading") is None
    assert check_title(" a ", "heading") == " a "
    with pytest.raises(ValueError, match="heading: it is a boolean; give a string, or null where there is no title"):
        check_title(True, "heading")
