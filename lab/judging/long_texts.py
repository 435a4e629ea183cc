"""Longer texts: the window, cuts below the limit, and what happens beyond it."""

from dataclasses import replace

import numpy as np

from lab.clients import Refused
from lab.judging import probes
from lab.judging.evidence import CLEARER, FLOOR, Evidence
from lab.judging.faults import CUTS, Hypothesis
from lab.judging.judgement import figures

OTHER_CUT = "cut at another length"
LOST = "<eos> lost in the cut"
Tried = tuple[str, Hypothesis]
"""A server, and where it cuts, in words."""


def judge(evidence: Evidence, server_is: Hypothesis) -> Hypothesis:
    """Find the window and the cut of a server, and return it with both."""
    asked, vectors = evidence.ask_alone(probes.long_probes(evidence.expected.tokenizer))
    if not asked:
        return server_is
    right = evidence.errors(vectors, server_is, asked)
    evidence.step(f"texts of {asked[0].name.split()[0]} to {asked[-1].name}", right)
    if right.max() <= FLOOR:
        return server_is
    windows = server_is.with_windows()
    rounds: list[list[Tried]] = [
        [("", each) for each in (server_is, *windows)],
        _with_cuts(server_is, evidence),
        [tried for each in windows for tried in _with_cuts(each, evidence)],
    ]
    scored: list[tuple[float, str, Hypothesis]] = []
    for tried in rounds:
        scored += [(float(evidence.errors(vectors, each, asked).mean()), where, each) for where, each in tried]
        least = min(error for error, *_ in scored)
        if evidence.is_only_rounded(np.array([least])):
            break
    simple = [each for each in scored if each[0] <= max(2 * least, FLOOR)]
    error, where, best = min(simple, key=lambda each: len(each[2].faults))
    if best is server_is or error * CLEARER > right.mean():
        if not evidence.is_noise(right):
            evidence.judgement.find("unexplained", f"Texts of 420 tokens and more: 1 - cosine {figures(right)}")
        return server_is
    for name in best.faults[len(server_is.faults) :]:
        figure = f"{where}mean 1 - cosine {error:.1e} with this fault, {right.mean():.1e} without"
        evidence.judgement.find(name, figure)
    return best


def _with_cuts(hypothesis: Hypothesis, evidence: Evidence) -> list[Tried]:
    """Return the server with each cut below the limit."""
    tried: list[Tried] = []
    for limit in _cuts(evidence):
        cut = hypothesis.with_fault(OTHER_CUT).cut_to(limit, evidence.expected.tokenizer.eos)
        tried.append((f"At {limit} tokens; ", cut))
        tried.append((f"At {limit} tokens; ", cut.with_fault(LOST).cut_to(limit, None)))
    return tried


def _cuts(evidence: Evidence) -> list[int]:
    return [limit for limit in CUTS if limit < evidence.expected.tokenizer.max_tokens]


def judge_beyond(evidence: Evidence, server_is: Hypothesis) -> None:
    """Find what happens to a text beyond the limit when the server is to refuse it, and when it is to cut it."""
    probe, judgement = probes.too_long_probe(evidence.expected.tokenizer), evidence.judgement
    try:
        answered = evidence.ask([probe], refuse=True)
        if evidence.client.dialect.can_refuse:
            judgement.find("cut silently", "A vector came back although the request asked for an error")
        elif not answered.said_cut:
            judgement.remarks.append("A text beyond the limit is cut silently: count tokens before you send.")
    except Refused:
        judgement.remarks.append("A text beyond the limit is refused when a request asks for that.")
        try:
            answered = evidence.ask([probe], refuse=False)
        except Refused:
            return
    if not np.isfinite(answered.vectors).all():
        judgement.find("16-bit overflow or NaN", "The vector of a text beyond the limit is not finite")
    elif server_is.special == (0, None) and not any(finding.fault.name == OTHER_CUT for finding in judgement.found):
        # A server that drops <bos> or <eos> everywhere says nothing by where they are after a cut.
        _judge_cut(evidence, server_is, probe, answered.vectors)


def _judge_cut(evidence: Evidence, server_is: Hypothesis, probe: probes.Probe, vector: np.ndarray) -> None:
    """Find where a text beyond the limit was cut."""
    limit, eos = evidence.expected.tokenizer.max_tokens, evidence.expected.tokenizer.eos
    before = len(evidence.expected.tokenizer.tokens(server_is.prompting(probe))) - 1
    whole = replace(server_is, reads_all=True)

    def error(hypothesis: Hypothesis) -> float:
        return float(evidence.errors(vector, hypothesis, [probe])[0])

    right = error(whole.cut_to(limit, eos))
    evidence.step("a text beyond the limit", np.array([right]))
    if evidence.is_only_rounded(np.array([right])):
        return
    tried = [
        (LOST, "", whole.cut_to(limit, None)),
        ("cut at the start", "", replace(whole, change=lambda ids: [*ids[:before], *ids[before - limit :]])),
        ("not cut", "", whole),
    ]
    tried += [(OTHER_CUT, f"At {n:,} tokens; ", whole.cut_to(n, eos)) for n in (*_cuts(evidence), limit - 2, limit - 1)]
    least, name, where = min((error(each), name, where) for name, where, each in tried)
    if least * CLEARER <= right:
        evidence.judgement.find(name, f"{where}1 - cosine {least:.1e} with this fault, {right:.1e} without")
    elif not evidence.is_noise(np.array([right])):
        evidence.judgement.find("unexplained", f"A text beyond the limit: 1 - cosine {right:.1e}")
