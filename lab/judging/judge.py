"""The judgement, stage by stage: each difference is compared with what the known faults compute."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lab.clients import AskError, Client
from lab.judging import long_texts, probes, short_texts
from lab.judging.evidence import Evidence
from lab.judging.expected import Expected
from lab.judging.faults import Hypothesis
from lab.judging.judgement import Judgement, distance, distances
from lab.judging.probes import Probe
from lab.judging.variants import RIGHT

SMALL = 256


def judge(client: Client, expected: Expected, client_prompts: bool = False) -> Judgement:
    """Judge a server by what its checkpoint should compute, in some 40 requests.

    With `client_prompts` the texts are sent with their prompts before them. Raises AskError where the server cannot be
    asked.
    """
    evidence = Evidence(client, expected, client_prompts)
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
    """Find whether a small vector is the leading part of the large one, normalised again."""
    try:
        [full] = evidence.ask([probe]).vectors
        [small] = evidence.ask([probe], dimensions=SMALL).vectors
    except AskError:
        evidence.judgement.remarks.append(f"The server has no vectors of {SMALL} components: cut them yourself.")
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
    """Find whether a text's vector depends on the texts that are sent with it."""
    shortest, middle, longest, *_ = probes.long_probes(evidence.expected.tokenizer)
    for each, company in ((probe, [shortest]), (middle, [longest])):
        others = [replace(other, task=each.task, title=each.title) for other in company]
        _judge_batch(evidence, each, [each] * 4, "equal", server_is)
        _judge_batch(evidence, each, [*others, each], "longer", server_is)


def _judge_batch(
    evidence: Evidence, probe: Probe, batch: Sequence[Probe], kind: str, server_is: Hypothesis | None
) -> None:
    try:
        alone, company = evidence.ask([probe]).vectors, evidence.ask(batch).vectors[-1:]
    except AskError as error:
        evidence.judgement.remarks.append(f"A batch of {len(batch)} texts is refused: {str(error)[:200]}")
        return
    if not np.isfinite(alone).all():
        return  # noted before
    if not np.isfinite(company).all():
        figure = f"{probe.name!r} has a finite vector alone, and none among {kind} texts"
        evidence.judgement.find("vectors depend on their batch", figure)
        return
    errors = distances(company, alone)
    evidence.step(f"{probe.name!r} alone and among {kind} texts", errors)
    if not evidence.is_noise(errors):
        windows = _windows(evidence, server_is, probe, [alone, company])
        figure = f"{probe.name!r} alone and among {kind} texts: 1 - cosine {errors[0]:.1e}{windows}"
        evidence.judgement.find("vectors depend on their batch", figure)


def _windows(evidence: Evidence, server_is: Hypothesis | None, probe: Probe, vectors: Sequence[np.ndarray]) -> str:
    """Return in words which window each of the two vectors has, "" where both have the same."""
    if server_is is None:
        return ""
    plain = replace(server_is, variant=server_is.variant._replace(attention=RIGHT.attention))
    choices = [("window right", plain)] + [(each.faults[-1], each) for each in plain.with_windows()]
    names = []
    for vector in vectors:
        errors = [(evidence.errors(vector, each, [probe])[0], name) for name, each in choices]
        names.append(min(errors)[1])
    return "" if len(set(names)) == 1 else f"; alone: {names[0]}, in company: {names[1]}"
