"""The prompt of each text: its task's, or the one that the text begins with."""

from engine.tokenizer import TextRefused
from tasks import TITLED_TASK, OwnPrompt, own_prompt, prompt_for
from texts.options import Options


class PromptRefused(TextRefused):
    """A text that begins with a prompt that contradicts what was asked for, or that has nothing behind it."""


def split_prompt(position: int, text: str, title: str | None, options: Options) -> tuple[str, str]:
    """Return the prompt of a text, and the text that the model is to read behind it.

    A text that begins with one of the model's prompts already gets no second one, which would cost quality: if no task
    was chosen it is taken as that prompt's. Raises PromptRefused, with the text's `position`, where another task or
    title was chosen, and where nothing stands behind the prompt.
    """
    own = own_prompt(text) if options.own_prompts and options.task != "none" else None
    if own is None:
        return prompt_for(options.prompt_task, title), text
    if conflict := _conflict(own, title, options):
        raise PromptRefused(
            position,
            f"begins with the prompt of task '{own.task}', and {conflict}; leave the prompt out, or ask for what it "
            "says (PROMPTS_IN_TEXTS=ignore takes prompts as text)",
        )
    rest = text[len(own.prompt) :]
    if not rest or rest.isspace():
        raise PromptRefused(position, f"is nothing but the prompt of task '{own.task}'; put a text behind it")
    return own.prompt, rest


def _conflict(own: OwnPrompt, title: str | None, options: Options) -> str | None:
    """Return what contradicts a text's own prompt, None if nothing does."""
    task = TITLED_TASK if title is not None else options.task
    if task is not None and own.task != task:
        return f"the task is '{task}'"
    if title is not None and own.prompt != prompt_for(own.task, title):
        return "another title was given than stands there"
    return None
