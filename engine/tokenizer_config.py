"""What a checkpoint's configs say about its tokenizer: the limit of tokens, and the size of the vocabulary."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.tokenizer_file import TokenizerError

# A checkpoint may not ask for more: attention takes memory and time by the square of a text's tokens.
LONGEST_LIMIT = 32_768
# EmbeddingGemma 2's limit, which is below its config's number of positions.
SECOND_LIMIT = 8_192


def max_tokens(directory: Path) -> int:
    """Return the limit as sentence-transformers reads it. Raises TokenizerError.

    sentence_bert_config.json's max_seq_length decides, which version 6 no longer writes. Without it the limit is
    tokenizer_config.json's model_max_length, but at most config.json's max_position_embeddings. EmbeddingGemma 2's is
    never above 8,192.
    """

    def read(file: str, name: str, hint: str = "") -> object:
        try:
            return json.loads((directory / file).read_text(encoding="utf-8")).get(name)
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            problem = f"expected {name}, the limit of tokens{hint}: {str(error)[:200]}"
            raise TokenizerError(f"{directory / file}: {problem}") from error

    limit = read("sentence_bert_config.json", "max_seq_length")
    text_config = _text_config(directory)
    if limit is None:
        hint = ", as sentence_bert_config.json has no max_seq_length"
        limits = (
            read("tokenizer_config.json", "model_max_length", hint),
            text_config.get("max_position_embeddings") or read("config.json", "max_position_embeddings"),
        )
        limit = min((value for value in limits if isinstance(value, int) and value > 0), default=None)
    if generation(directory) == 2 and isinstance(limit, int):
        limit = min(limit, SECOND_LIMIT)
    if not isinstance(limit, int) or not 8 <= limit <= LONGEST_LIMIT:
        path = directory / "sentence_bert_config.json"
        raise TokenizerError(
            f"{path}: max_seq_length is {repr(limit)[:80]}; expected a whole number from 8 to {LONGEST_LIMIT:,}, 2048 "
            "for EmbeddingGemma"
        )
    return limit


def generation(directory: Path) -> int:
    """Return 2 for EmbeddingGemma 2, by config.json, and 1 for everything else."""
    return 2 if _text_config(directory).get("model_type") == "embedding_gemma2_text" else 1


def vocab_size(directory: Path) -> int | None:
    """Return the rows of the embedding table; None if config.json does not say, which `read_architecture` reports."""
    size = _text_config(directory).get("vocab_size")
    return size if isinstance(size, int) and size > 0 else None


def _text_config(directory: Path) -> dict[str, Any]:
    """Return config.json, or the part of it about the text tower; nothing where that cannot be read."""
    with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        return dict(config.get("text_config") or config)
    return {}
