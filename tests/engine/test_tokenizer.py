"""Token ids against those of sentence-transformers, the limit and both ways to cut, and what is refused."""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from engine import tokenizer_file
from engine.packed import PackedEngine
from engine.tokenizer import TextRefused, Tokenizer, TokenizerError
from tests.support.predictions import TEXTS
from tests.support.vectors import random_ids

QUERY = "task: search result | query: "
DOCUMENT = "title: none | text: "
BOS, EOS, LIMIT = 2, 1, 2048

random.seed(0)
# Each is cut somewhere that would be wrong to cut carelessly: words, runs that merge, no spaces at all, byte fallback.
LONG = {
    "words": "word and other things " * 20_000,
    "lines": "x = 1;\n\n" * 40_000,
    "chinese": "今天天气很好我们去公园散步吧。" * 10_000,
    "one letter": "s" * 200_000,
    "spaces": " " * 300_000,
    "emoji": "🎉" * 40_000,
    "noise": "".join(chr(random.randint(32, 0x2FFF)) for _ in range(100_000)),
}


@pytest.fixture(scope="module")
def tokenizer(small: Path) -> Tokenizer:
    return Tokenizer(small)


@pytest.fixture(scope="module")
def whole(small: Path) -> tokenizers.Tokenizer:
    """The bare library, which tokenizes all of a text."""
    return tokenizers.Tokenizer.from_file(str(small / "tokenizer.json"))


@pytest.mark.parametrize("prompt", ["", QUERY, DOCUMENT])
def test_ids_are_those_of_sentence_transformers(checkpoint: Path, prompt: str) -> None:
    from sentence_transformers import SentenceTransformer  # takes seconds

    model = SentenceTransformer(str(checkpoint), device="cpu")
    ours = Tokenizer(checkpoint).encode([prompt] * len(TEXTS), TEXTS)
    for text, tokenized in zip(TEXTS, ours, strict=True):
        features = model.preprocess([text], prompt=prompt or None)
        assert tokenized.ids.tolist() == features["input_ids"][0].tolist()
    assert [tokenized.truncated for tokenized in ours] == [False] * 6 + [True]


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("chars", [16_384 - len(QUERY), 16_385, 40_000, None])
def test_end_is_cut_as_if_all_had_been_tokenized(
    tokenizer: Tokenizer, whole: tokenizers.Tokenizer, name: str, chars: int | None
) -> None:
    text = LONG[name][:chars]
    expected = whole.encode(QUERY + text).ids
    if len(expected) > LIMIT:
        expected = [*expected[: LIMIT - 1], EOS]
    assert tokenizer.encode([QUERY], [text])[0].ids.tolist() == expected


@pytest.mark.parametrize("name", [name for name in LONG if name not in ("one letter", "spaces")])
@pytest.mark.parametrize("chars", [16_384, 40_000, None])
def test_start_is_cut_and_the_prompt_kept(
    tokenizer: Tokenizer, whole: tokenizers.Tokenizer, name: str, chars: int | None
) -> None:
    text = LONG[name][:chars]
    expected = whole.encode(QUERY + text).ids
    if len(expected) <= LIMIT:
        pytest.fail("the text is not long enough to be cut")
    prompt = whole.encode(QUERY.rstrip()).ids[:-1]
    cut = tokenizer.encode([QUERY], [text], "start")[0]
    assert cut.truncated
    assert len(cut.ids) == LIMIT
    assert cut.ids[: len(prompt)].tolist() == prompt
    # The prompt's last space is a token of its own only where it does not join the text's first word.
    kept = cut.ids[len(prompt) + 1 :].tolist()
    assert kept == expected[-len(kept) :]
    assert kept[-1] == EOS


def test_start_of_a_huge_unbroken_run_is_refused_not_guessed(tokenizer: Tokenizer) -> None:
    problem = r"no space or the like in 262,144 characters near its end.*set truncate to 'end'"
    with pytest.raises(TextRefused, match=problem):
        tokenizer.encode([""], ["s" * 400_000], "start")


def test_exactly_the_limit_is_not_cut(tokenizer: Tokenizer, whole: tokenizers.Tokenizer) -> None:
    text = " ".join(["word"] * (LIMIT - 2))
    assert len(whole.encode(text).ids) == LIMIT
    fits, cut = tokenizer.encode(["", ""], [text, text + " word"])
    assert (len(fits.ids), fits.truncated) == (LIMIT, False)
    assert (len(cut.ids), cut.truncated) == (LIMIT, True)
    assert (cut.ids[0], cut.ids[-1]) == (BOS, EOS)


@pytest.mark.parametrize("truncate", ["end", "start"])
def test_a_lower_limit_cuts_as_the_own_one_does(tokenizer: Tokenizer, truncate: Any) -> None:
    text = " ".join(f"word{i}" for i in range(3 * LIMIT))
    for words in (text[:500], text):
        [whole] = tokenizer.encode([QUERY], [words], truncate, limit=10 * LIMIT)
        [cut] = tokenizer.encode([QUERY], [words], truncate, limit=40)
        assert len(cut.ids) == 40 and cut.truncated and whole.truncated == (words is text)
        kept = len(tokenizer.encode([QUERY], [""])[0].ids) - 2  # the prompt's last space joins a word
        assert cut.ids[:kept] == whole.ids[:kept] and cut.ids[-1] == whole.ids[-1]
        assert cut.ids[:39] == whole.ids[:39] if truncate == "end" else cut.ids[kept:] == whole.ids[kept - 40 :]
    with pytest.raises(TextRefused, match="the limit is 40; shorten it"):
        tokenizer.encode([QUERY], [text[:500]], "none", limit=40)


def test_none_refuses_with_the_count_and_the_limit(tokenizer: Tokenizer, whole: tokenizers.Tokenizer) -> None:
    text = "word " * 5000 + "end"
    count = len(whole.encode(QUERY + text).ids)
    problem = rf"text 1 has {count:,} tokens with its prompt and the limit is 2,048; shorten"
    with pytest.raises(TextRefused, match=problem) as got:
        tokenizer.encode([QUERY] * 2, ["fits", text], "none")
    assert got.value.position == 1
    with pytest.raises(TextRefused, match=r"has more than [\d,]+ tokens"):
        tokenizer.encode([QUERY], ["word " * 300_000], "none")


def test_a_title_that_fills_the_limit_is_refused(tokenizer: Tokenizer) -> None:
    for title in ("long " * 3000, "long " * 100_000):
        with pytest.raises(TextRefused, match="the prompt of text 0 fills the limit of 2,048 tokens") as got:
            tokenizer.encode([f"title: {title} | text: "], ["text"])
        assert got.value.is_prompt


@pytest.mark.parametrize("text", ["word and other things " * 2_300_000, "s" * 50_000_000])
def test_fifty_million_characters_cost_no_more_than_they_yield(tokenizer: Tokenizer, text: str) -> None:
    tokenizer.encode([""], ["word " * 50_000])  # the vocabulary's pairs are read once
    started = time.process_time()
    assert len(tokenizer.encode([QUERY], [text])[0].ids) == LIMIT
    # Tokenizing all of it takes twenty seconds of a core and more; half of that is no close call.
    assert time.process_time() - started < 10


@pytest.mark.parametrize("spoil", ["missing", "not json", "no template"])
def test_unfit_tokenizer_names_the_file(tmp_path: Path, small: Path, spoil: str) -> None:
    shutil.copyfile(small / "sentence_bert_config.json", tmp_path / "sentence_bert_config.json")
    content = json.loads((small / "tokenizer.json").read_text(encoding="utf-8"))
    content["post_processor"] = None
    if spoil != "missing":
        text = "{" if spoil == "not json" else json.dumps(content)
        (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.json: (not a tokenizer|an empty text must become <bos> <eos>)"
    ):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("reader", ["msgspec", "json"])
def test_an_added_token_without_a_row_in_the_table_is_text_like_any_other(
    small: Path, tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official file has one, `<image_soft_token>`; on a GPU an id beyond the table ends the whole process.

    A machine that only measures may not have msgspec.
    """
    if reader == "json":
        monkeypatch.setattr(tokenizer_file, "msgspec", None)
    copy = Path(shutil.copytree(small, tmp_path / "copy", ignore=shutil.ignore_patterns("canaries.json")))
    content = json.loads((small / "tokenizer.json").read_text(encoding="utf-8"))
    rows = json.loads((small / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    content["added_tokens"].append(content["added_tokens"][4] | {"id": rows, "content": "<image_soft_token>"})
    (copy / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert rows in tokenizers.Tokenizer.from_file(str(copy / "tokenizer.json")).encode("a <image_soft_token>").ids
    texts = ["a <image_soft_token> b", "<mask>", "plain"]
    ids = [text.ids for text in Tokenizer(copy).encode([""] * 3, texts)]
    assert ids == [text.ids for text in Tokenizer(small).encode([""] * 3, texts)]
    assert max(map(max, ids)) < rows and ids[1].tolist() == [BOS, 4, EOS]
    with pytest.raises(ValueError, match="has the id"):
        Tokenizer(copy).decode([rows])
    assert np.isfinite(PackedEngine(copy, "cpu").embed(ids)).all()


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def content(small: Path) -> dict[str, Any]:
    """The small checkpoint's tokenizer.json."""
    read: dict[str, Any] = json.loads((small / "tokenizer.json").read_text(encoding="utf-8"))
    return read


def unchanged(content: dict[str, Any]) -> None:
    pass


def added_in_another_order(content: dict[str, Any]) -> None:
    content["added_tokens"].sort(key=lambda token: token["content"])


def other_options(content: dict[str, Any]) -> None:
    content["model"] |= {"fuse_unk": False, "ignore_merges": True, "unk_token": None}


@pytest.mark.parametrize("change", [unchanged, added_in_another_order, other_options])
def test_a_file_of_gemmas_kind_is_read_as_the_library_reads_it(
    content: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    change(content)
    path = written(tmp_path, content)
    ours, library = tokenizer_file.load(path), tokenizers.Tokenizer.from_file(str(path))
    assert ours.to_str() == library.to_str()
    assert ours.get_added_tokens_decoder() == library.get_added_tokens_decoder()
    texts = [*TEXTS, "a<mask>b <unused5> <bos>", "🎉\n\n\n  今天天气"]
    assert [(each.ids, each.offsets) for each in ours.encode_batch(texts)] == [
        (each.ids, each.offsets) for each in library.encode_batch(texts)
    ]


# Reads a file and prints by how many kilobytes that raised the most memory that the process has had.
PEAK = """
import sys, tokenizers
from pathlib import Path
from engine import tokenizer_file
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
path, before = Path(sys.argv[2]), peak()
if sys.argv[1] == "ours":
    tokenizer_file.load(path)
else:
    tokenizers.Tokenizer.from_buffer(path.read_bytes())
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read as Linux tells it")
def test_it_takes_less_memory_than_the_library_s_own_way(content: dict[str, Any], tmp_path: Path) -> None:
    vocabulary = content["model"]["vocab"]
    letters = [token for token in vocabulary if len(token) == 1][:300]
    for a in letters:  # as many merges as a tenth of Gemma's
        for b in letters[:200]:
            vocabulary.setdefault(a + b, len(vocabulary))
            content["model"]["merges"].append([a, b])
    path = written(tmp_path, content)
    command = [sys.executable, "-c", PEAK]
    ours, library = (int(subprocess.check_output([*command, way, path], text=True)) for way in ("ours", "library"))
    assert 0 < ours < 0.9 * library


def merge_of_unknown_pieces(content: dict[str, Any]) -> None:
    content["model"]["merges"].append(["no such piece", "a"])


def merges_as_numbers(content: dict[str, Any]) -> None:
    content["model"]["merges"] = [1, 2]


@pytest.mark.parametrize("change", [merge_of_unknown_pieces, merges_as_numbers])
def test_a_file_that_the_library_refuses_is_refused_in_its_words(
    content: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    change(content)
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match="Cannot instantiate Tokenizer from buffer") as library:
        tokenizers.Tokenizer.from_buffer(path.read_bytes())
    with pytest.raises(TokenizerError) as ours:
        tokenizer_file.load(path)
    assert str(ours.value) == f"{path}: not a tokenizer that can be read: {str(library.value)[:200]}"


def merges_as_older_files_write_them(content: dict[str, Any]) -> None:
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]


def an_added_token_without_a_piece(content: dict[str, Any]) -> None:
    content["added_tokens"].append(content["added_tokens"][4] | {"id": 16_384, "content": "<new>"})


def an_option_of_another_library(content: dict[str, Any]) -> None:
    content["model"]["speed"] = "fast"


@pytest.mark.parametrize(
    "change", [merges_as_older_files_write_them, an_added_token_without_a_piece, an_option_of_another_library]
)
def test_files_of_other_kinds_are_left_to_the_library(
    content: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    change(content)
    path = written(tmp_path, content)
    library = tokenizers.Tokenizer.from_file(str(path))
    assert tokenizer_file.load(path).to_str() == library.to_str()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("no json", r"sentence_bert_config\.json: expected max_seq_length, the limit of tokens: "),
        ("[]", r"sentence_bert_config\.json: expected max_seq_length, the limit of tokens: "),
        (
            '{"max_seq_length": "2048"}',
            r"sentence_bert_config\.json: max_seq_length is '2048'; expected a whole number",
        ),
        ('{"max_seq_length": 7}', r"sentence_bert_config\.json: max_seq_length is 7; expected a whole number"),
        (
            "{}",
            r"tokenizer_config\.json: expected model_max_length, .*sentence_bert_config\.json has no max_seq_length",
        ),
        ('{"max_seq_length": null}', r"tokenizer_config\.json: expected model_max_length, .*no max_seq_length"),
    ],
)
def test_unknown_limit_names_the_file(tmp_path: Path, small: Path, content: str, problem: str) -> None:
    shutil.copyfile(small / "tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "sentence_bert_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(TokenizerError, match=problem):
        Tokenizer(tmp_path)


@pytest.fixture(scope="module")
def saved(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as the installed sentence-transformers saves it: no max_seq_length among its files."""
    from sentence_transformers import SentenceTransformer  # takes seconds

    directory = tmp_path_factory.mktemp("saved") / "checkpoint"
    SentenceTransformer(str(checkpoint), device="cpu").save(str(directory))
    assert "max_seq_length" not in (directory / "sentence_bert_config.json").read_text(encoding="utf-8")
    return directory


def test_a_saved_checkpoint_has_the_same_vectors(saved: Path, packed: PackedEngine) -> None:
    engine = PackedEngine(saved, "cpu")
    texts = [random_ids(length) for length in (1, 9, 300, 700)]
    assert np.array_equal(engine.embed(texts), packed.embed(texts))
    assert engine.tokenizer.max_tokens == packed.tokenizer.max_tokens == LIMIT


@pytest.mark.parametrize(
    ("longest", "model_max_length", "max_seq_length"),
    [(2048, 2048, None), (512, 512, None), (2048, 5000, None), (2048, None, None), (300, 512, 300), (3000, 512, 3000)],
)
def test_the_limit_is_what_sentence_transformers_reads(
    saved: Path, tmp_path: Path, longest: int, model_max_length: int | None, max_seq_length: int | None
) -> None:
    from sentence_transformers import SentenceTransformer  # takes seconds

    directory = Path(shutil.copytree(saved, tmp_path / "checkpoint"))
    for file, name, value in (
        ("tokenizer_config.json", "model_max_length", model_max_length),
        ("sentence_bert_config.json", "max_seq_length", max_seq_length),
    ):
        content = json.loads((directory / file).read_text(encoding="utf-8"))
        content.pop(name, None)
        content |= {} if value is None else {name: value}
        (directory / file).write_text(json.dumps(content), encoding="utf-8")
    model, tokenizer = SentenceTransformer(str(directory), device="cpu"), Tokenizer(directory)
    assert tokenizer.max_tokens == model.max_seq_length == longest
    text = "word and " * 2000
    assert tokenizer.encode([""], [text])[0].ids.tolist() == model.preprocess([text])["input_ids"][0].tolist()
