"""The texts that the judge sends, and what each of them shows."""

from dataclasses import dataclass, replace

from engine.tokenizer import Tokenizer
from tasks import TITLED_TASK

SENTENCES = (
    "The council met on Tuesday to talk about the bridge; report number {} says that it needs new paint. ",
    "Snow fell on the hills for {} days, and the farmers brought their sheep down into the valley. ",
    "In chapter {} the author explains how yeast turns sugar into gas, which makes bread rise. ",
    "The museum opened room {} last spring, with maps of rivers that no longer exist. ",
)


@dataclass(frozen=True, slots=True)
class Probe:
    """A text with its task and, for some documents, a title."""

    name: str
    task: str
    text: str
    title: str | None = None


SHORT = (
    Probe("planet question", "retrieval_query", "Which planet is known as the Red Planet?"),
    Probe("password query", "retrieval_query", "reset forgotten password"),
    Probe("one word", "retrieval_query", "bridge"),
    Probe("planet answer", TITLED_TASK, "Mars looks red from afar, for its dust is full of rust."),
    Probe("bread", TITLED_TASK, "Bread rises because yeast turns sugar into gas."),
    Probe("parcel", TITLED_TASK, "Parcels are delivered within three working days."),
    Probe("capital letters", TITLED_TASK, "NASA and the ESA Launched TWO Probes To Mercury"),
    Probe("lines", TITLED_TASK, "First line of a letter\nsecond line\n\nand a new paragraph"),
    Probe("spaces around", TITLED_TASK, "   a text with spaces before and behind it   "),
    Probe("titled, Mars", TITLED_TASK, "It has two small moons, Phobos and Deimos.", "Mars"),
    Probe("titled, returns", TITLED_TASK, "Unused goods can be sent back for a refund.", "Terms of sale"),
    Probe("languages", TITLED_TASK, "Brücke über den Fluss. 一座绿色的桥。 Мост через реку."),
    Probe("emoji", TITLED_TASK, "see you at the harbour 🌉🙂 tonight"),
    Probe("classified, praise", "classification", "The room was clean and the staff were kind."),
    Probe("classified, complaint", "classification", "I waited an hour and nobody answered."),
    Probe("classified, request", "classification", "Please move my appointment to Friday."),
    Probe("clustered, sport", "clustering", "The team won its last match by two goals."),
    Probe("clustered, weather", "clustering", "Heavy rain is expected along the coast."),
    Probe("clustered, money", "clustering", "The bank raised its interest rate again."),
    Probe("similar, paint", "semantic_similarity", "The bridge across the river was painted green in spring."),
    Probe("similar, horse", "semantic_similarity", "A man rides a horse along the beach."),
    Probe("similar, guitar", "semantic_similarity", "Someone is playing the guitar."),
    Probe("asked, height", "question_answering", "How high is the tallest mountain in Europe?"),
    Probe("asked, inventor", "question_answering", "Who invented the telephone?"),
    Probe("claimed, moon", "fact_verification", "The Moon is larger than Mercury."),
    Probe("claimed, coffee", "fact_verification", "Coffee was first grown in Ethiopia."),
    Probe("code, sort", "code_retrieval", "sort a list of dictionaries by a key"),
    Probe("code, file", "code_retrieval", "read a file line by line"),
)
"""Texts of some twenty tokens: prompts, special tokens, pooling, Dense layers, and changes of the text."""

LONG_TOKENS = (420, 700, 1_500)
"""Tokens of the longer texts: beyond the first model's window, beyond the second's 512, and far beyond both."""
LONGEST_TOKENS = 5_000
"""Tokens of one more text for EmbeddingGemma 2: beyond the first model's limit, and twice that."""


def long_probes(tokenizer: Tokenizer) -> list[Probe]:
    """Return documents of LONG_TOKENS, by the checkpoint's tokenizer, which show windows and cuts below the limit."""
    counts = (*LONG_TOKENS, LONGEST_TOKENS) if tokenizer.max_tokens > LONGEST_TOKENS else LONG_TOKENS
    return [Probe(f"{count:,} tokens", TITLED_TASK, text_of(tokenizer, count)) for count in counts]


def too_long_probe(tokenizer: Tokenizer) -> Probe:
    """Return a document that the checkpoint does not read whole."""
    return Probe("beyond the limit", TITLED_TASK, text_of(tokenizer, tokenizer.max_tokens * 5 // 4))


def text_of(tokenizer: Tokenizer, tokens: int) -> str:
    """Return whole sentences, all different, of at most `tokens` tokens and not many fewer."""
    text = "".join(SENTENCES[i % len(SENTENCES)].format(i) for i in range(tokens // 8))
    return text[: text.rindex(".", 0, tokenizer.tokens(text)[tokens].start) + 1]


def as_documents(probes: tuple[Probe, ...]) -> tuple[Probe, ...]:
    """Return the probes as documents without a title, for APIs that take neither task nor title."""
    return tuple(replace(probe, task=TITLED_TASK, title=None) for probe in probes)
