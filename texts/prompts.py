"""The prompt of each text: its task's, or the prompt that the text begins with."""

from engine.tokenizer import TextRefused
from tasks import TITLED_TASK, OwnPrompt, own_prompt, prompt_for
from texts.checks import is_blank
from texts.options import Options


class PromptRefused(TextRefused):
    """A text that begins with a prompt that contradicts the request, or that consists of nothing else."""


def split_prompt(position: int, text: str, title: str | None, options: Options, generation: int = 1) -> tuple[str, str]:
    """Return a text's prompt, and the text that the model, of this generation, reads after it.

    A text that already begins with one of the model's prompts gets no second prompt, which would cost quality. Without
    a chosen task it is embedded for that prompt's task. Raises PromptRefused, with the text's `position`, where another
    task or title was chosen, and where nothing follows the prompt.
    """
    own = own_prompt(text, generation) if options.own_prompts and options.task != "none" else None
    if own is None:
        return prompt_for(options.prompt_task, title, generation), text
    if conflict := _conflict(own, title, options, generation):
        raise PromptRefused(
            position,
            f"begins with the prompt of task '{own.task}', and {conflict}; leave the prompt out, or ask for what it "
            "says (PROMPTS_IN_TEXTS=ignore takes prompts as text)",
        )
    rest = text[len(own.prompt) :]
    if is_blank(rest):
        raise PromptRefused(position, f"is nothing but the prompt of task '{own.task}'; put a text after it")
    return own.prompt, rest


def _conflict(own: OwnPrompt, title: str | None, options: Options, generation: int) -> str | None:
    """Return in words what contradicts a text's own prompt, None if nothing does."""
    task = TITLED_TASK if title is not None else options.task
    if task is not None and own.task != task and own.prompt != prompt_for(task, None, generation):
        return f"the task is '{task}'"
    if title is not None and own.prompt != prompt_for(own.task, title):
        return "another title was given than stands there"
    return None
