"""The known faults: what a server with each of them reads and computes, what that does to users, and the remedy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from engine.tokenizer import Tokenizer
from lab.judging.probes import Probe
from lab.judging.variants import RIGHT, WEIGHTS, Variant
from tasks import PROMPTS, TITLED_TASK, prompt_for

QUANTISED = "quantised weights"
CUTS = (128, 256, 512, 1_024, 2_048, 4_096)


class Fault(NamedTuple):
    """A fault's name, what it does to the vectors, and the remedy."""

    name: str
    effect: str
    remedy: str


PROMPT_REMEDY = "put the task's prompt before each text yourself, and judge the rest with --prompts client"
SPECIALS_REMEDY = "have the tokenizer add <bos> and <eos>"
CHANGED = "texts are changed before they are embedded"
POOLING = "the model's pooling is the mean over all tokens"
WINDOW_REMEDY = "the window is 256 tokens to either side, in EmbeddingGemma 2 512"
LIMIT_REMEDY = "set the server's limit to 2,048 tokens, for EmbeddingGemma 2 to 8,192"
LENGTH_REMEDY = "divide each vector by its length"
FAULTS = {
    name: Fault(name, effect, remedy)
    for name, effect, remedy in (
        ("no prompt", "the texts are embedded without the prompt that the model was trained with", PROMPT_REMEDY),
        ("the document's prompt for every task", "queries are embedded as documents", PROMPT_REMEDY),
        ("the query's prompt for every task", "documents are embedded as queries", PROMPT_REMEDY),
        ("an invented prompt", "the model never saw this prompt in training", PROMPT_REMEDY),
        ("titles ignored", "a document's title has no effect", "put `title: ... | text: ` before the text yourself"),
        ("<eos> dropped", "the last token is missing from every text", SPECIALS_REMEDY),
        ("<bos> dropped", "the first token is missing from every text", SPECIALS_REMEDY),
        ("<bos> and <eos> dropped", "texts lack both special tokens", SPECIALS_REMEDY),
        ("spaces at the ends removed", CHANGED, "send texts to the model unstripped"),
        ("line ends replaced by spaces", CHANGED, "leave line ends as they are"),
        ("text lowercased", CHANGED, "set do_lower_case to false"),
        ("causal mask", "a token sees only those before it", "use a version that runs the model bidirectionally"),
        ("Dense layers missing", "vectors are the encoder's, in another space", "convert both, or the projection"),
        ("second Dense layer missing", "vectors are in another space", "convert both Dense layers"),
        ("vector of the first token", POOLING, "set the pooling to mean"),
        ("vector of the last token", POOLING, "set the pooling to mean"),
        ("mean without the prompt", "the model's mean includes the prompt", "set include_prompt to true"),
        ("window halved", "tokens see half as many neighbours", "sliding_window in config.json must be 512"),
        ("window doubled", "tokens see twice as many neighbours", WINDOW_REMEDY),
        ("window off by one", "tokens see a neighbour too many or too few at either side", WINDOW_REMEDY),
        ("window ignored", "every layer sees the whole text", WINDOW_REMEDY),
        ("cut at another length", "the rest of the text is lost", LIMIT_REMEDY),
        ("<eos> lost in the cut", "a text that is cut ends without <eos>", "cut the text, then add <eos>"),
        ("cut at the start", "a long text loses its beginning, not its end", "set the truncation to the right end"),
        ("not cut", "more tokens are read than the model knows", LIMIT_REMEDY),
        ("cut silently", "a text lost its end although the request forbade it", "count tokens before you send"),
        ("not normalised", "vectors are not of unit length", LENGTH_REMEDY),
        ("not normalised after the cut", "cut vectors are shorter than 1", LENGTH_REMEDY),
        ("dimensions ignored", "vectors have their full size", "cut them yourself, then divide by their length"),
        ("not the leading components", "small vectors are no part of the large ones", "cut the full vector yourself"),
        ("vectors depend on their batch", "a text's vector changes with its batch", "send texts alone, or fix padding"),
        ("16-bit overflow or NaN", "vectors are not finite, or all zero", "compute in bfloat16 or float32"),
        (QUANTISED, "every vector is off by rounding", "use weights of more bits if the error matters"),
        ("requests fail", "texts that the server should embed are refused", "read the server's log"),
        ("unexplained", "the vectors are not this checkpoint's", "compare the server's weights with these"),
    )
}

Prompting = Callable[[Probe], str]
Texting = Callable[[str], str]
Pooling = Callable[[int, int], tuple[int, int]]
"""The tokens before the text and those in all -> the range of tokens that the vector is the mean over."""


def _right(probe: Probe) -> str:
    return prompt_for(probe.task, probe.title)


PROMPTINGS: dict[str, Prompting] = {
    "no prompt": lambda probe: "",
    "the document's prompt for every task": lambda probe: prompt_for(TITLED_TASK, probe.title),
    "the query's prompt for every task": lambda probe: PROMPTS["retrieval_query"],
    "titles ignored": lambda probe: prompt_for(probe.task),
    "an invented prompt": lambda probe: "passage: " if probe.task == TITLED_TASK else "query: ",
}
TEXTINGS: dict[str, Texting] = {
    "spaces at the ends removed": str.strip,
    "line ends replaced by spaces": lambda text: text.replace("\n", " "),
    "text lowercased": str.lower,
}
SPECIALS: dict[str, tuple[int, int | None]] = {
    "<eos> dropped": (0, -1),
    "<bos> dropped": (1, None),
    "<bos> and <eos> dropped": (1, -1),
}
"""The first and the end of the tokens that are left."""
NETWORKS = {
    "causal mask": Variant(attention="causal"),
    "Dense layers missing": Variant(dense=0),
    "second Dense layer missing": Variant(dense=1),
}
POOLINGS: dict[str, Pooling] = {
    "vector of the first token": lambda before, tokens: (0, 1),
    "vector of the last token": lambda before, tokens: (tokens - 1, tokens),
    "mean without the prompt": lambda before, tokens: (min(before, tokens - 1), tokens),
}
WINDOWS = {
    "half the window": "window halved", "twice the window": "window doubled", "no window": "window ignored",
    "window + 1": "window off by one", "window - 1": "window off by one",
}  # fmt: skip
"""The fault of each attention."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A server with some faults: what it reads of a probe, and the network that computes it."""

    faults: tuple[str, ...] = ()
    prompting: Prompting = _right
    texting: Texting = str
    special: tuple[int, int | None] = (0, None)
    pooling: Pooling = lambda before, tokens: (0, tokens)
    variant: Variant = RIGHT
    change: Callable[[list[int]], list[int]] = list
    """What it does to the token ids at last."""
    reads_all: bool = False
    """Whether it reads more tokens than the model's limit."""

    def read(self, tokenizer: Tokenizer, probe: Probe) -> list[int]:
        """Return the token ids that the server reads of the probe."""
        prompt, text = self.prompting(probe), self.texting(probe.text)
        ids = tokenizer.locate(prompt, text)[0] if self.reads_all else tokenizer.encode([prompt], [text])[0].ids
        first, end = self.special
        return self.change(list(ids[first:end])) or [tokenizer.bos]

    def pooled(self, tokenizer: Tokenizer, probe: Probe, tokens: int) -> tuple[int, int]:
        """Return the range of a text's tokens that its vector is the mean over."""
        prompt = self.prompting(probe)
        return self.pooling(len(tokenizer.tokens(prompt)) - 1 if prompt else 1, tokens)

    def with_fault(self, name: str, **changes: Any) -> "Hypothesis":
        """Return the same server with one more fault, which changes some of its fields."""
        return replace(self, faults=(*self.faults, name), **changes)

    def cut_to(self, limit: int, eos: int | None) -> "Hypothesis":
        """Return the same server, cutting as `cut` does."""
        return replace(self, change=lambda ids: cut(ids, limit, eos))

    def with_weights(self) -> "list[Hypothesis]":
        """Return the same server with each format of quantised weights."""
        formats = [weights for weights in WEIGHTS if weights != "bfloat16"]
        return [self.with_fault(QUANTISED, variant=self.variant._replace(weights=weights)) for weights in formats]

    def with_windows(self) -> "list[Hypothesis]":
        """Return the same server with each wrong window; a causal server has its own."""
        if self.variant.attention != RIGHT.attention:
            return []
        return [
            self.with_fault(name, variant=self.variant._replace(attention=attention))
            for attention, name in WINDOWS.items()
        ]


@lru_cache(maxsize=1)
def of_short_texts() -> list[Hypothesis]:
    """Return a right server, then those with one fault in what they read or compute, then those with two."""
    right, reading = Hypothesis(), list[Hypothesis]()
    for prompted in [right, *(right.with_fault(name, prompting=each) for name, each in PROMPTINGS.items())]:
        reading.append(prompted)
        reading += [prompted.with_fault(name, special=each) for name, each in SPECIALS.items()]
        reading += [prompted.with_fault(name, texting=each) for name, each in TEXTINGS.items()]
    computing: list[tuple[str, dict[str, Any]]] = [(name, {"variant": each}) for name, each in NETWORKS.items()]
    computing += [(name, {"pooling": each}) for name, each in POOLINGS.items()]
    both = [each.with_fault(name, **changes) for name, changes in computing for each in reading]
    return sorted(reading + both, key=lambda each: len(each.faults))


def cut(ids: Sequence[int], limit: int, eos: int | None) -> list[int]:
    """Return the first tokens of a text, at most `limit`, the last of them `eos` unless that is None."""
    if len(ids) <= limit:
        return list(ids)
    return list(ids[:limit]) if eos is None else [*ids[: limit - 1], eos]
