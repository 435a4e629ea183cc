"""The known faults: what a server with each of them would read and compute, and what it means to who uses it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from engine.tokenizer import Tokenizer
from engine.variants import RIGHT, WEIGHTS, Variant
from judging.probes import Probe
from tasks import PROMPTS, TITLED_TASK, prompt_for

QUANTISED = "quantised weights"
CUTS = (128, 256, 512, 1_024)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault's name, what it does to the vectors, and the remedy."""

    name: str
    effect: str
    remedy: str


PROMPT_REMEDY = "put the task's prompt before each text yourself, and judge the rest with --prompts client"
FAULTS = {
    fault.name: fault
    for fault in (
        Fault("no prompt", "the texts are embedded without the prompt that the model was trained with", PROMPT_REMEDY),
        Fault("the document's prompt for every task", "queries are embedded as documents", PROMPT_REMEDY),
        Fault("the query's prompt for every task", "documents are embedded as queries", PROMPT_REMEDY),
        Fault("an invented prompt", "the model never saw this prompt in training", PROMPT_REMEDY),
        Fault(
            "titles ignored", "a document's title does not count", "put `title: ... | text: ` before the text yourself"
        ),
        Fault("<eos> dropped", "the last token is missing from every text", "have the tokenizer add <bos> and <eos>"),
        Fault("<bos> dropped", "the first token is missing from every text", "have the tokenizer add <bos> and <eos>"),
        Fault("<bos> and <eos> dropped", "texts lack both special tokens", "have the tokenizer add <bos> and <eos>"),
        Fault(
            "spaces at the ends removed", "texts are changed before they are embedded", "nothing may strip the texts"
        ),
        Fault(
            "line ends replaced by spaces", "texts are changed before they are embedded", "leave line ends as they are"
        ),
        Fault(
            "capital letters made small", "texts are changed before they are embedded", "do_lower_case must be false"
        ),
        Fault("causal mask", "a token sees only those before it", "use a version that runs the model bidirectionally"),
        Fault("Dense layers missing", "vectors are the encoder's, of another space", "convert both Dense layers, too"),
        Fault("second Dense layer missing", "vectors are of another space", "convert both Dense layers"),
        Fault(
            "vector of the first token", "the mean over all tokens is the model's pooling", "set the pooling to mean"
        ),
        Fault("vector of the last token", "the mean over all tokens is the model's pooling", "set the pooling to mean"),
        Fault("mean without the prompt", "the model's mean includes the prompt", "set include_prompt to true"),
        Fault("window halved", "tokens see 128 neighbours instead of 256", "sliding_window in config.json must be 512"),
        Fault("window doubled", "tokens see 512 neighbours instead of 256", "the window is 256 tokens to either side"),
        Fault("window ignored", "every layer sees the whole text", "the window is 256 tokens to either side"),
        Fault("cut at another length", "what follows is lost", "set the server's limit to 2,048 tokens"),
        Fault("<eos> lost in the cut", "a text that is cut ends without <eos>", "cut the text, then add <eos>"),
        Fault(
            "cut at the start",
            "the end of a long text is kept, not its beginning",
            "set the truncation to the right end",
        ),
        Fault("not cut", "more than 2,048 tokens are read", "set the server's limit to 2,048 tokens"),
        Fault(
            "cut without a word", "a text lost its end, though refusing was asked for", "count tokens before you send"
        ),
        Fault("not normalised", "vectors are not of unit length", "divide each vector by its length"),
        Fault("not normalised after the cut", "cut vectors are shorter than 1", "divide each vector by its length"),
        Fault("dimensions ignored", "vectors have their full size", "cut them yourself, then divide by their length"),
        Fault(
            "not the leading components",
            "small vectors are not a part of the large ones",
            "cut the full vector yourself",
        ),
        Fault(
            "vectors depend on their batch", "a text has other vectors in company", "send texts alone, or mend padding"
        ),
        Fault("16-bit overflow or NaN", "vectors hold no numbers, or none but zero", "compute in bfloat16 or float32"),
        Fault(QUANTISED, "every vector is off by rounding", "use weights of more bits, if the error matters"),
        Fault("requests fail", "texts that it should embed are refused", "read the server's log"),
        Fault("unexplained", "the vectors are not this checkpoint's", "compare the server's weights with these"),
    )
}

Prompting = Callable[[Probe], str]
Texting = Callable[[str], str]


def _right(probe: Probe) -> str:
    return prompt_for(probe.task, probe.title)


PROMPTINGS: dict[str, Prompting] = {
    "": _right,
    "no prompt": lambda probe: "",
    "the document's prompt for every task": lambda probe: prompt_for(TITLED_TASK, probe.title),
    "the query's prompt for every task": lambda probe: PROMPTS["retrieval_query"],
    "titles ignored": lambda probe: prompt_for(probe.task),
    "an invented prompt": lambda probe: "passage: " if probe.task == TITLED_TASK else "query: ",
}
TEXTINGS: dict[str, Texting] = {
    "spaces at the ends removed": str.strip,
    "line ends replaced by spaces": lambda text: text.replace("\n", " "),
    "capital letters made small": str.lower,
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
POOLINGS = ("vector of the first token", "vector of the last token", "mean without the prompt")
WINDOWS = {
    "window halved": Variant(attention="window 128"),
    "window doubled": Variant(attention="window 512"),
    "window ignored": Variant(attention="no window"),
}


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A server with some faults: what it reads of a probe, and the network that computes it."""

    faults: tuple[str, ...] = ()
    prompting: Prompting = _right
    texting: Texting = str
    special: tuple[int, int | None] = (0, None)
    pooling: str = ""
    variant: Variant = RIGHT

    def read(self, tokenizer: Tokenizer, probe: Probe, limit: int | None = None) -> list[int]:
        """Return the token ids of the probe; `limit` may be beyond the model's."""
        first, end = self.special
        return _ids(tokenizer, self.prompting(probe), self.texting(probe.text), limit)[first:end]

    def pooled(self, tokenizer: Tokenizer, probe: Probe, tokens: int) -> tuple[int, int]:
        """Return the range of a text's tokens that its vector is the mean over."""
        prompt = self.prompting(probe)
        before = len(tokenizer.tokens(prompt)) - 1 if prompt else 1
        ranges = {
            "vector of the first token": (0, 1),
            "vector of the last token": (tokens - 1, tokens),
            "mean without the prompt": (min(before, tokens - 1), tokens),
        }
        return ranges.get(self.pooling, (0, tokens))


def _ids(tokenizer: Tokenizer, prompt: str, text: str, limit: int | None) -> list[int]:
    if limit is None or limit <= tokenizer.max_tokens:
        return tokenizer.encode([prompt], [text])[0].ids
    return tokenizer.locate(prompt, text)[0]  # uncut


@lru_cache(maxsize=1)
def of_short_texts() -> list[Hypothesis]:
    """Return a right server, then those with one fault in what they read or compute, then those with two."""
    reading = [Hypothesis()]
    for name, prompting in PROMPTINGS.items():
        names = (name,) if name else ()
        if name:
            reading.append(Hypothesis(names, prompting))
        reading += [Hypothesis((*names, special), prompting, special=part) for special, part in SPECIALS.items()]
        reading += [Hypothesis((*names, changed), prompting, texting) for changed, texting in TEXTINGS.items()]
    computing: list[Callable[[Hypothesis], Hypothesis]] = [lambda each: each]
    computing += [partial(_computed, name=name, variant=variant) for name, variant in NETWORKS.items()]
    computing += [partial(_pooled, name=name) for name in POOLINGS]
    both = [change(each) for change in computing for each in reading]
    return sorted(both, key=lambda each: len(each.faults))


def _computed(hypothesis: Hypothesis, name: str, variant: Variant) -> Hypothesis:
    return named(with_variant(hypothesis, variant), name)


def _pooled(hypothesis: Hypothesis, name: str) -> Hypothesis:
    return named(replace(hypothesis, pooling=name), name)


def named(hypothesis: Hypothesis, name: str) -> Hypothesis:
    """Return the same server with one more fault to its name."""
    return replace(hypothesis, faults=(*hypothesis.faults, name))


def with_variant(hypothesis: Hypothesis, variant: Variant) -> Hypothesis:
    """Return the same server with another network."""
    return replace(hypothesis, variant=variant)


def with_weights(hypothesis: Hypothesis) -> list[Hypothesis]:
    """Return the same server with each format of quantised weights."""
    formats = [weights for weights in WEIGHTS if weights != "bfloat16"]
    return [_computed(hypothesis, QUANTISED, hypothesis.variant._replace(weights=weights)) for weights in formats]


def with_windows(hypothesis: Hypothesis) -> list[Hypothesis]:
    """Return the same server with each other window; a causal one has its own."""
    if hypothesis.variant.attention != "right":
        return []
    return [
        _computed(hypothesis, name, hypothesis.variant._replace(attention=variant.attention))
        for name, variant in WINDOWS.items()
    ]


def cut(ids: Sequence[int], limit: int, eos: int | None) -> list[int]:
    """Return the first tokens of a text, at most `limit`, the last of them `eos` unless that is None."""
    if len(ids) <= limit:
        return list(ids)
    return list(ids[:limit]) if eos is None else [*ids[: limit - 1], eos]
