"""The model's names, which may carry a task: `embeddinggemma-300m:retrieval_query`.

That is how users choose the task in programs that let them set only a URL and a model's name.
"""

from collections.abc import Mapping

from api.fields import agreed, one_of
from api.refusal import Refusal
from service import Service
from tasks import PROMPTS

Tasks = dict[str, str | None]
"""An API's names of tasks, each with the task that it means here; None leaves the choice open."""
OUR_TASKS: Tasks = {task: task for task in PROMPTS}
FIRST = ("embeddinggemma-300m", "google/embeddinggemma-300m", "embeddinggemma", "embeddinggemma:300m")
SECOND = ("embeddinggemma-2", "google/embeddinggemma-2", "embeddinggemma2", "embeddinggemma:2")


def aliases(service: Service) -> tuple[str, ...]:
    """Return the names of the model that is served, its own first; those of its other generation mean other vectors."""
    return FIRST if service.engine.tokenizer.generation == 1 else SECOND


def listed(service: Service) -> list[str]:
    """Return the names that a list of models shows: the model's own, and one for each task."""
    model = aliases(service)[0]
    return [model, *(f"{model}:{task}" for task in PROMPTS)]


def task_of(
    service: Service, models: Mapping[str, str | None], asked: Mapping[str, str | None], tasks: Tasks
) -> str | None:
    """Return the task that a request asks for; None where it asks for none.

    `models` has the model's names in the request by field, `asked` the names of
    tasks, each None where the field was not sent. Raises ValueError where two of them ask for different tasks.
    """
    by_name = [(field, name, task_in(name, service)) for field, name in models.items() if name is not None]
    by_field = [(field, name, tasks[one_of(field, name, tasks)]) for field, name in asked.items() if name is not None]
    hint = ", and if your client sends a task by itself, the model's name without one" if by_name else ""
    return agreed(*by_name, *by_field, hint=hint)


def task_in(name: str, service: Service) -> str | None:
    """Return the task in a model's name, None if there is none.

    The name is one of `aliases` or that of the served checkpoint; it may begin with Gemini's `models/` or end in
    Ollama's `:latest`. Raises Refusal for any other name.
    """
    known = (*aliases(service), service.name)
    name = name.removeprefix("models/").removesuffix(":latest")
    if name in known:
        return None
    model, _, task = name.rpartition(":")
    if model in known and task in PROMPTS:
        return task
    raise Refusal(
        "model",
        f"model: {name[:80]!r} is not served here; use {known[0]!r}, or with a task {known[0] + ':retrieval_query'!r}; "
        f"tasks are {', '.join(PROMPTS)}",
    )
