"""Short texts: prompts, special tokens, Dense layers, mask, pooling, and the format of the weights."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lab.judging import faults
from lab.judging.evidence import CLEARER, EXACT, FLOOR, NOISE, Evidence
from lab.judging.faults import QUANTISED, Hypothesis
from lab.judging.judgement import figures
from lab.judging.probes import Probe
from lab.judging.variants import Variant

UNIT = 5e-3
"""How far off 1 a length may be: in bfloat16 it is off by three thousandths."""
TRIED = 8
"""All pairs of faults are tried on this many probes, the worst; the best pair is then tried on all probes."""


def judge(evidence: Evidence, asked: Sequence[Probe], vectors: np.ndarray) -> Hypothesis | None:
    """Find and return what the server does to short texts; None where nothing explains its vectors."""
    judgement = evidence.judgement
    lengths = np.linalg.norm(vectors, axis=1)
    if not np.abs(lengths - 1).max() <= UNIT:
        judgement.find("not normalised", f"Lengths from {lengths.min():.4g} to {lengths.max():.4g}")
    errors = evidence.errors(vectors, Hypothesis(), asked)
    evidence.step("short texts, against a right server", errors)
    if errors.max() <= EXACT:
        return Hypothesis()
    best, best_errors = nearest(evidence, asked, vectors, errors)
    evidence.is_rounded = bool(best_errors.min() > FLOOR)
    if best.faults:
        evidence.step(f"short texts, against: {', '.join(best.faults)}", best_errors)
        for name in best.faults:
            judgement.find(name, f"With this fault 1 - cosine is {figures(best_errors)}, without {figures(errors)}")
    elif not evidence.is_noise(errors):
        judgement.find("unexplained", f"1 - cosine {figures(errors)}; no known fault explains it")
        return None
    else:
        median, worst = evidence.expected.noise
        judgement.remarks.append(
            f"The differences are those of 16-bit arithmetic: bfloat16 gives {median:.1e} (median) and {worst:.1e} "
            "(worst) here. Weights of 8 bits in a scheme that the judge does not know would look the same, and so does "
            "a server of this project with DTYPE=int8, which says +int8 in the name of its model."
        )
    return best


def nearest(
    evidence: Evidence, asked: Sequence[Probe], vectors: np.ndarray, errors: np.ndarray
) -> tuple[Hypothesis, np.ndarray]:
    """Return the simplest server that explains the vectors clearly better than a right server, else the right one."""
    best, best_errors = _nearest_of(evidence, asked, vectors, errors, most=1)
    if best_errors.max() > EXACT and not (best_errors.min() > FLOOR and evidence.is_noise(best_errors)):
        best, best_errors = _nearest_of(evidence, asked, vectors, errors)
    is_clear = best_errors.mean() * CLEARER <= errors.mean()
    if best.faults and not (is_clear or _is_of_rounding(evidence, best, asked, best_errors)):
        best, best_errors = Hypothesis(), errors
    if best_errors.max() <= EXACT:
        return best, best_errors
    candidates = [(each, evidence.errors(vectors, each, asked)) for each in best.with_weights()]
    rounded, rounded_errors = min(candidates, key=lambda each: each[1].mean())
    if rounded_errors.mean() * CLEARER <= best_errors.mean():
        return rounded, rounded_errors
    if evidence.is_noise(best_errors):
        return best, best_errors
    if _is_of_rounding(evidence, best, asked, best_errors):
        evidence.rounding = (float(np.median(best_errors)), float(best_errors.max()))
        return best.with_fault(QUANTISED), best_errors
    return Hypothesis(), errors


def _nearest_of(
    evidence: Evidence, asked: Sequence[Probe], vectors: np.ndarray, errors: np.ndarray, most: int | None = None
) -> tuple[Hypothesis, np.ndarray]:
    """Return the nearest server with at most `most` faults, the simplest of those that are about as near."""
    tried = np.argsort(-errors, kind="stable")[:TRIED]
    some = [asked[i] for i in tried]
    hypotheses = [each for each in faults.of_short_texts() if most is None or len(each.faults) <= most]
    evidence.expected.prepare(hypotheses, some)
    scored = [(evidence.errors(vectors[tried], each, some).mean(), each) for each in hypotheses]
    least = min(score for score, _ in scored)
    best = next(each for score, each in scored if score <= max(2 * least, EXACT))  # those with the fewest come first
    return best, evidence.errors(vectors, best, asked)


def _is_of_rounding(evidence: Evidence, best: Hypothesis, asked: Sequence[Probe], errors: np.ndarray) -> bool:
    """Return whether the errors are at most those of weights of 4 bits."""
    coarse = replace(best, variant=Variant(weights="int4 blocks"))
    four_bits = evidence.errors(evidence.expected.vectors(coarse, asked), best, asked)
    return bool(np.median(errors) <= NOISE * np.median(four_bits) and errors.max() <= NOISE * four_bits.max())
