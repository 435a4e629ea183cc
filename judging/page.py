"""The judgement as a page of Markdown that can be pasted into an issue."""

import re

from judging.judgement import Judgement


def page(judgement: Judgement, asked: dict[str, str]) -> str:
    """Return the page: what was asked, the verdict, what else was noticed, and the figures."""
    lines = ["# Are these vectors EmbeddingGemma's?", "", "## Asked", ""]
    lines += [f"- {name}: {value}" for name, value in asked.items()]
    lines += ["", "## Verdict", "", verdict(judgement), ""]
    for finding in judgement.found:
        fault = finding.fault
        told = f"{fault.effect}. {finding.figures}. Remedy: {fault.remedy}."
        lines.append(f"- **{inline(fault.name)}**: {inline(told)}")
    lines += [f"- {inline(remark)}" for remark in judgement.remarks]
    lines += ["", "## Answered", "", "1 - cosine between the server's vectors and those computed here in float32:", ""]
    lines += ["| compared | texts | 1 - cosine | |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {cell(what)} | {texts} | {error} | {cell(meaning)} |" for what, texts, error, meaning in judgement.steps
    ]
    return "\n".join(lines) + "\n"


def verdict(judgement: Judgement) -> str:
    """Return the verdict in one sentence."""
    if judgement.is_right:
        return "**Right**: the vectors are this checkpoint's."
    names = [inline(finding.fault.name) for finding in judgement.found]
    return f"**Wrong**: {'; '.join(names)}."


def inline(text: str) -> str:
    """Return the text on one line of Markdown, in which `<eos>` does not vanish as HTML would."""
    return re.sub(r"(?<!`)<([^<>`]*)>(?!`)", r"`<\1>`", " ".join(text.split()))


def cell(text: str) -> str:
    """Return the text as a cell of a table."""
    return inline(text).replace("|", "\\|")
