"""What the server answers, and how far that is from what a server with some faults would answer."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lab.clients import Answered, AskError, Client, Refused
from lab.judging import faults, probes
from lab.judging.expected import Expected
from lab.judging.faults import Hypothesis
from lab.judging.judgement import Judgement, Rows, distances, figures
from lab.judging.probes import Probe
from tasks import prompt_for

EXACT = 1e-6
"""Up to this 1 - cosine vectors are right; the order of float32 additions explains less than a hundredth of it."""
FLOOR = 1e-8
"""1 - cosine below which no fault is looked for."""
NOISE = 3.0
"""How many times as far off as sentence-transformers in bfloat16 a server in 16 bits may be."""
CLEARER = 10.0
"""How many times nearer than a right server a faulty one must be before the fault is named."""
FEW = 4
"""Of fewer texts than these the median says nothing."""


class Evidence:
    """Asks the server, compares, and notes in `judgement` what is found."""

    def __init__(self, client: Client, expected: Expected, client_prompts: bool = False) -> None:
        """With `client_prompts` the texts are sent with their prompts before them."""
        self.client, self.expected, self.client_prompts = client, expected, client_prompts
        self.judgement = Judgement()
        self._has_answered = False
        self.rounding = (0.0, 0.0)
        """1 - cosine, median and worst, that the server's weights are found to cost."""
        self.is_rounded = False
        """Whether every short text is off by more than float32 explains, so that a small fault would not show."""

    def short_probes(self) -> Sequence[Probe]:
        """Return the short probes whose tasks and titles the server can be told."""
        unknown = [task for task in self.client.forget_unknown_tasks() if task != "none"]
        if self.client_prompts:
            return probes.SHORT
        if unknown:
            self.judgement.remarks.append(f"The server has no prompts for {', '.join(unknown)}: not judged.")
        if not self.client.tasks:
            self.judgement.remarks.append("The API names no task, so every text should have a document's prompt.")
            return probes.as_documents(probes.SHORT)
        known = [probe for probe in probes.SHORT if probe.task in self.client.tasks]
        if not known:
            return probes.as_documents(probes.SHORT)
        return known if self.client.dialect.takes_title else [replace(probe, title=None) for probe in known]

    def ask(self, texts: Sequence[Probe], dimensions: int | None = None, refuse: bool | None = None) -> Answered:
        """Return the answer to probes of one task and title in one request. Raises what `Client.ask` does."""
        task: str | None = texts[0].task
        title = texts[0].title
        if self.client_prompts:
            texts = [replace(each, text=prompt_for(each.task, each.title) + each.text) for each in texts]
            task, title = "none", None
        return self.client.ask([each.text for each in texts], task, title, dimensions, refuse)

    def ask_alone(self, asked: Sequence[Probe]) -> tuple[list[Probe], np.ndarray]:
        """Ask for each probe alone and return those that have vectors, with their vectors; note the others as faults.

        Raises AskError where the very first is refused: then the request is wrong, not the text.
        """
        answered, vectors, refused = list[Probe](), list[np.ndarray](), list[str]()
        for probe in asked:
            try:
                [vector] = self.ask([probe]).vectors
            except Refused as refusal:
                if refusal.status < 500 and not self._has_answered:
                    raise AskError(f"{self.client.url}: {refusal}; check --url, --api, --model and --key") from refusal
                refused.append(f"{probe.name}: {refusal}")
                continue
            self._has_answered = True
            if np.isfinite(vector).all() and vector.any():
                answered.append(probe)
                vectors.append(vector)
            else:
                kind = "all zero" if np.isfinite(vector).all() else "not finite"
                self.judgement.find("16-bit overflow or NaN", f"The vector of {probe.name!r} is {kind}")
        if refused:
            self.judgement.find("requests fail", f"{len(refused)} of {len(asked)}, such as {refused[0]}")
        return answered, np.stack(vectors) if vectors else np.empty((0, 0))

    def errors(self, vectors: Rows, hypothesis: Hypothesis, asked: Sequence[Probe]) -> np.ndarray:
        """Return the distance of each vector from what such a server would compute."""
        return distances(vectors, self.expected.vectors(hypothesis, asked))

    def is_noise(self, errors: np.ndarray) -> bool:
        """Return whether 16-bit arithmetic explains the errors. Of a few texts only the worst counts."""
        if errors.max() <= EXACT:
            return True
        median, worst = NOISE * np.maximum(self.expected.noise, self.rounding) + EXACT
        return bool(errors.max() <= worst and (len(errors) < FEW or np.median(errors) <= median))

    def is_only_rounded(self, errors: np.ndarray) -> bool:
        """Return whether rounding alone explains the errors, so that no fault need be looked for."""
        return errors.max() <= FLOOR or (self.is_rounded and self.is_noise(errors))

    def step(self, what: str, errors: np.ndarray, meaning: str = "") -> None:
        """Add a line of figures."""
        self.judgement.steps.append((what, len(errors), figures(errors), meaning))

    def check_width(self, vectors: np.ndarray) -> bool:
        """Return whether the vectors have the right width; a missing Dense layer may show in this alone."""
        one, width = probes.SHORT[:1], vectors.shape[1]
        full = len(self.expected.vectors(Hypothesis(), one)[0])
        if width == full:
            return True
        networks = faults.NETWORKS.items()
        widths = {len(self.expected.vectors(Hypothesis(variant=variant), one)[0]): name for name, variant in networks}
        name = widths.get(width, "unexplained")
        self.judgement.find(name, f"Vectors have {width} components, expected {full}")
        return False
