"""The judgement, stage by stage: each difference is held against what the known faults compute."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from engine.variants import RIGHT
from judging import faults, long_texts, probes, short_texts
from judging.evidence import Evidence
from judging.expected import Expected
from judging.faults import Hypothesis
from judging.judgement import Judgement, distance
from judging.probes import Probe
from judging.servers import AskError, Refused, Server

SMALL = 256


def judge(server: Server, expected: Expected, client_prompts: bool = False) -> Judgement:
    """Judge a server by what its checkpoint should compute, asking some 40 times.

    With `client_prompts` the texts are sent with their prompts before them. Raises AskError where the server cannot be
    asked.
    """
    evidence = Evidence(server, expected, client_prompts)
    asked, vectors = evidence.ask_alone(evidence.short_probes())
    if not asked or not evidence.check_width(vectors):
        return evidence.judgement
    server_is = short_texts.judge(evidence, asked, vectors)
    if server_is is not None:
        server_is = long_texts.judge(evidence, server_is)
        long_texts.judge_beyond(evidence, server_is)
    judge_sizes(evidence, asked[0])
    judge_batches(evidence, asked[0], server_is)
    return evidence.judgement


def judge_sizes(evidence: Evidence, probe: Probe) -> None:
    """Find whether a smaller vector is the leading part of the large one, made unit length again."""
    try:
        [full] = evidence.ask([probe]).vectors
        [small] = evidence.ask([probe], dimensions=SMALL).vectors
    except (Refused, AskError):
        evidence.judgement.remarks.append(f"It has no vectors of {SMALL} components: cut them yourself.")
        return
    if len(small) != SMALL:
        evidence.judgement.find("dimensions ignored", f"{len(small)} components, asked for {SMALL}")
        return
    error, length = np.array([distance(small, full[:SMALL])]), float(np.linalg.norm(small))
    evidence.step(f"{SMALL} components, against the leading ones", error, f"length {length:.4f}")
    if not evidence.is_noise(error):
        evidence.judgement.find("not the leading components", f"1 - cosine {error[0]:.1e}")
    elif not abs(length - 1) <= short_texts.UNIT and abs(float(np.linalg.norm(full)) - 1) <= short_texts.UNIT:
        evidence.judgement.find("not normalised after the cut", f"Length {length:.4f}")


def judge_batches(evidence: Evidence, probe: Probe, server_is: Hypothesis | None) -> None:
    """Find whether a text's vector depends on what it is sent with."""
    shortest, middle, longest = probes.long_probes(evidence.expected.tokenizer)
    for each, company in ((probe, [shortest]), (middle, [longest])):
        others = [replace(other, task=each.task, title=each.title) for other in company]
        _judge_batch(evidence, each, [each] * 4, "equal", server_is)
        _judge_batch(evidence, each, [*others, each], "longer", server_is)


def _judge_batch(
    evidence: Evidence, probe: Probe, batch: Sequence[Probe], kind: str, server_is: Hypothesis | None
) -> None:
    try:
        alone, company = evidence.ask([probe]).vectors, evidence.ask(batch).vectors[-1:]
    except (Refused, AskError) as error:
        evidence.judgement.remarks.append(f"A batch of {len(batch)} texts is refused: {str(error)[:200]}")
        return
    if not np.isfinite(alone).all():
        return  # which was found before
    if not np.isfinite(company).all():
        figure = f"{probe.name!r} has numbers alone, and none among {kind} texts"
        evidence.judgement.find("vectors depend on their batch", figure)
        return
    errors = evidence.errors(company, list(alone))
    evidence.step(f"{probe.name!r} alone and among {kind} texts", errors)
    if not evidence.is_noise(errors):
        windows = _windows(evidence, server_is, probe, [alone, company])
        figure = f"{probe.name!r} alone and among {kind} texts: 1 - cosine {errors[0]:.1e}{windows}"
        evidence.judgement.find("vectors depend on their batch", figure)


def _windows(evidence: Evidence, server_is: Hypothesis | None, probe: Probe, vectors: Sequence[np.ndarray]) -> str:
    """Return in words which window each of the vectors has, where that tells them apart."""
    if server_is is None:
        return ""
    plain = faults.with_variant(server_is, server_is.variant._replace(attention=RIGHT.attention))
    choices = {"window right": plain} | {each.faults[-1]: each for each in faults.with_windows(plain)}
    names = []
    for vector in vectors:
        errors = {
            name: evidence.errors(vector, evidence.expected.vectors(each, [probe]))[0] for name, each in choices.items()
        }
        names.append(min(errors, key=lambda name: errors[name]))
    return "" if len(set(names)) == 1 else f"; alone: {names[0]}, in company: {names[1]}"
