"""The names that the model goes by, each with the task that it may carry: `embeddinggemma-300m:retrieval_query`.

Programs that let a user set nothing but a URL and a model's name choose the task so.
"""

from collections.abc import Mapping

from api.fields import agreed, one_of
from api.refusal import Refusal
from service import Service
from tasks import PROMPTS

MODEL = "embeddinggemma-300m"
ALIASES = (MODEL, "google/embeddinggemma-300m", "embeddinggemma", "embeddinggemma:300m")


def listed() -> list[str]:
    """Return the names that a list of models has: the model's own, and one for each task."""
    return [MODEL, *(f"{MODEL}:{task}" for task in PROMPTS)]


def task_of(
    service: Service, models: Mapping[str, str | None], asked: Mapping[str, str | None], tasks: Mapping[str, str | None]
) -> str | None:
    """Return the task that a request asks for; None where it asks for none.

    `models` are the model's names in the request, `asked` its names of tasks, each by its field or None; `tasks` are
    all names that the API has. Raises ValueError where two of them ask for different tasks.
    """
    by_name = [(field, name, task_in(name, service)) for field, name in models.items() if name is not None]
    by_field = [(field, name, tasks[one_of(field, name, tasks)]) for field, name in asked.items() if name is not None]
    hint = ", and if your client sends a task by itself, the model's name without one" if by_name else ""
    return agreed(*by_name, *by_field, hint=hint)


def task_in(name: str, service: Service) -> str | None:
    """Return the task in a model's name, None if there is none.

    The name is one of ALIASES or that of the checkpoint that is served, with Gemini's `models/` before it or Ollama's
    `:latest` behind it. Raises Refusal for any other.
    """
    known = (*ALIASES, service.name)
    name = name.removeprefix("models/").removesuffix(":latest")
    if name in known:
        return None
    model, _, task = name.rpartition(":")
    if model in known and task in PROMPTS:
        return task
    raise Refusal(
        "model",
        f"model: {name[:80]!r} is not served here; use {MODEL!r}, or with a task {MODEL + ':retrieval_query'!r}; tasks "
        f"are {', '.join(PROMPTS)}",
    )
