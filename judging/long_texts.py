"""Longer texts: the window, cuts below the limit, and what happens beyond it."""

from collections.abc import Sequence

import numpy as np

from judging import faults, probes
from judging.evidence import CLEARER, FLOOR, Evidence
from judging.expected import Change
from judging.faults import Hypothesis
from judging.judgement import figures
from judging.probes import Probe
from judging.servers import Refused

Cut = tuple[tuple[str, ...], str, Change]
"""The names of a cut's faults, where it cuts in words, and what is left of the tokens."""
Trial = tuple[float, tuple[str, ...], str, Hypothesis]
"""1 - cosine in the mean, the names of the faults, the words of the cut, and the server without the cut."""
OTHER_CUT = "cut at another length"
LOST = "<eos> lost in the cut"


def judge(evidence: Evidence, server_is: Hypothesis) -> Hypothesis:
    """Find window and cut, given what is known of the server, and return it with its window."""
    asked, vectors = evidence.ask_alone(probes.long_probes(evidence.expected.tokenizer))
    if not asked:
        return server_is
    right = evidence.errors(vectors, evidence.expected.vectors(server_is, asked))
    evidence.step(f"texts of {probes.LONG_TOKENS[0]} to {probes.LONG_TOKENS[-1]:,} tokens", right)
    if right.max() <= FLOOR:
        return server_is
    windows = [server_is, *faults.with_windows(server_is)]
    trials = _trials(evidence, asked, vectors, windows, [((), "", list)])
    if not _explain(evidence, trials):
        trials += _trials(evidence, asked, vectors, [server_is], _cuts(evidence))
        if not _explain(evidence, trials):
            trials += _trials(evidence, asked, vectors, windows[1:], _cuts(evidence))
    least = min(error for error, *_ in trials)
    simple = [trial for trial in trials if trial[0] <= max(2 * least, FLOOR)]
    error, names, detail, best = min(simple, key=lambda trial: len(trial[1]))
    if not names or error * CLEARER > right.mean():
        if evidence.is_noise(right):
            return server_is
        evidence.judgement.find("unexplained", f"Texts of 420 tokens and more: 1 - cosine {figures(right)}")
        return server_is
    for name in names:
        figure = f"{detail}1 - cosine {error:.1e} in the mean with it, {right.mean():.1e} without"
        evidence.judgement.find(name, figure)
    return best


def _trials(
    evidence: Evidence,
    asked: Sequence[Probe],
    vectors: np.ndarray,
    hypotheses: Sequence[Hypothesis],
    cuts: Sequence[Cut],
) -> list[Trial]:
    """Return how far each server with each cut is from the vectors."""
    trials: list[Trial] = []
    for hypothesis in hypotheses:
        window = tuple(name for name in hypothesis.faults if name in faults.WINDOWS)
        for cut, detail, change in cuts:
            error = float(evidence.errors(vectors, evidence.expected.vectors(hypothesis, asked, change)).mean())
            trials.append((error, (*window, *cut), detail, hypothesis))
    return trials


def _explain(evidence: Evidence, trials: Sequence[Trial]) -> bool:
    """Return whether one of the trials is so near that further ones can be no nearer."""
    return evidence.is_only_rounded(np.array([min(error for error, *_ in trials)]))


def _cuts(evidence: Evidence) -> list[Cut]:
    cuts: list[Cut] = []
    for limit in faults.CUTS:
        cuts.append(((OTHER_CUT,), f"At {limit} tokens; ", _cutting(limit, evidence.expected.tokenizer.eos)))
        cuts.append(((OTHER_CUT, LOST), f"At {limit} tokens; ", _cutting(limit, None)))
    return cuts


def judge_beyond(evidence: Evidence, server_is: Hypothesis) -> None:
    """Find what happens to a text beyond the limit, asked to refuse it and asked to cut it."""
    probe, judgement = probes.too_long_probe(evidence.expected.tokenizer), evidence.judgement
    try:
        answered = evidence.ask([probe], refuse=True)
        if not evidence.server.api.can_refuse:
            if not answered.said_cut:
                judgement.remarks.append("A text beyond the limit is cut without a word: count tokens before you send.")
        else:
            judgement.find("cut without a word", "A vector came back although refusing was asked for")
    except Refused:
        judgement.remarks.append("A text beyond the limit is refused where that is asked for.")
        try:
            answered = evidence.ask([probe], refuse=False)
        except Refused:
            return
    if not np.isfinite(answered.vectors).all():
        judgement.find("16-bit overflow or NaN", "The vector of a text beyond the limit is not finite")
    elif server_is.special == (0, None) and not any(finding.fault.name == OTHER_CUT for finding in judgement.found):
        # Without <bos> or <eos> anywhere, where they stand after a cut says nothing.
        _judge_cut(evidence, server_is, probe, answered.vectors)


def _judge_cut(evidence: Evidence, server_is: Hypothesis, probe: Probe, vector: np.ndarray) -> None:
    """Find where a text beyond the limit was cut."""
    limit, eos = evidence.expected.tokenizer.max_tokens, evidence.expected.tokenizer.eos
    before = len(evidence.expected.tokenizer.tokens(server_is.prompting(probe))) - 1
    far = 2 * probes.TOO_LONG_TOKENS

    def error(change: Change) -> float:
        return float(evidence.errors(vector, evidence.expected.vectors(server_is, [probe], change, far))[0])

    right = error(_cutting(limit, eos))
    evidence.step("a text beyond the limit", np.array([right]))
    if evidence.is_only_rounded(np.array([right])):
        return
    reads: dict[tuple[str, ...], Change] = {
        (LOST,): _cutting(limit, None),
        ("cut at the start",): lambda ids: [*ids[:before], *ids[before - limit :]],
        ("not cut",): list,
    }
    reads |= {(OTHER_CUT, f"{n:,}"): _cutting(n, eos) for n in (*faults.CUTS, limit - 2, limit - 1)}
    errors = {names: error(change) for names, change in reads.items()}
    best = min(errors, key=lambda names: errors[names])
    if errors[best] * CLEARER <= right:
        at = f"At {best[1]} tokens; " if len(best) > 1 else ""
        evidence.judgement.find(best[0], f"{at}1 - cosine {errors[best]:.1e} with it, {right:.1e} without")
    elif not evidence.is_noise(np.array([right])):
        evidence.judgement.find("unexplained", f"A text beyond the limit: 1 - cosine {right:.1e}")


def _cutting(limit: int, eos: int | None) -> Change:
    return lambda ids: faults.cut(ids, limit, eos)
