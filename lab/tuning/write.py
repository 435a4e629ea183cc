"""A tuned checkpoint on the disk: the base checkpoint's files with other weights, canaries and a card."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from engine.contract import OTHER_TOWERS
from fetching.files import CANARIES, RECORD, check_complete
from fetching.whole import fsync
from lab.judging import canaries
from lab.report import in_words, table
from lab.tuning.page import comparison_table, draw, recipe_table
from texts.options import EMBEDDING_DIMS

NOTICE = (
    "These weights were made from the base model's by fine-tuning: they are modified, and under its licence. "
    "EmbeddingGemma 2 is under the Apache License 2.0. Where the base is EmbeddingGemma-300M or was made from it, they "
    "are a model derivative under the Gemma Terms of Use: Gemma is provided under and subject to the Gemma "
    "Terms of Use found at [ai.google.dev/gemma/terms](https://ai.google.dev/gemma/terms). These terms and the "
    "[prohibited use policy](https://ai.google.dev/gemma/prohibited_use_policy) bind everyone who uses the weights or "
    "passes them on; pass this notice on with them."
)


def write_weights(base: Path, weights: Path, out: Path) -> None:
    """Make the directory `out` of the base checkpoint's files and the weights in `weights`, in float32.

    Other towers that the base checkpoint has beside the text's stay as they are.

    Every configuration is copied: libraries today save another layout, and some halve the window again.
    """
    shutil.rmtree(out, ignore_errors=True)
    names = check_complete(base)
    others = [path.name for path in base.iterdir() if path.is_file() and path.suffix in (".json", ".model")]
    for name in sorted({*names, *others} - {RECORD, CANARIES}):
        if not name.endswith(".safetensors"):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base / name, out / name)
    state = load_file(weights)
    modules = json.loads((base / "modules.json").read_text(encoding="utf-8"))
    for i, module in enumerate(modules):
        if (dense := state.pop(f"dense.{i}", None)) is not None:
            save_file({"linear.weight": dense}, out / module["path"] / "model.safetensors", {"format": "pt"})
    with safe_open(base / "model.safetensors", "pt") as file:
        state |= {name: file.get_tensor(name) for name in file.keys() if name.startswith(OTHER_TOWERS)}  # noqa: SIM118
        save_file(state, out / "model.safetensors", {"format": "pt"})
    for path in out.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def finish(directory: Path, figures: dict[str, Any]) -> None:
    """Add canaries with hashes, the figures, the plots and the card to a checkpoint directory."""
    canaries.write(directory)
    (directory / "tuning.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    draw(figures, directory)
    (directory / "README.md").write_text(card(figures), encoding="utf-8")


def place(directory: Path, out: Path) -> None:
    """Move a finished directory to its place, at once or not at all."""
    for path in directory.rglob("*"):
        if path.is_file():
            fsync(path)
    directory.rename(out)


def card(figures: dict[str, Any]) -> str:
    """Return the model card: data, recipe, figures and the notice of the terms."""
    data = figures["data"]
    front = [
        "---", "library_name: sentence-transformers", "pipeline_tag: sentence-similarity",
        f"base_model: {figures['base'].partition('@')[0]}", "tags: [sentence-transformers, feature-extraction]", "---",
    ]  # fmt: skip
    licences = {"google/embeddinggemma-300m": "gemma", "google/embeddinggemma-2": "apache-2.0"}
    if licence := licences.get(figures["base"].partition("@")[0]):
        front[1:1] = [f"license: {licence}"]
    verdict = "" if not figures["reasons"] else "**Rejected:** " + " ".join(figures["reasons"])
    parts = [
        "\n".join(front),
        f"# {figures['name']}",
        f"`{figures['base']}`, fine-tuned on {data['rows']:,} {data['kind']} of {data['file']}.",
        verdict,
        "## Results",
        "Scores are mteb's, times 100, with the interval that holds 95 % of a thousand drawings of the difference.",
        comparison_table(figures["held_out"]),
        "General tasks, which the checkpoint must not forget:",
        comparison_table(figures["general"]),
        "## Data",
        table(["", ""], [[name, str(value)] for name, value in data.items()]),
        *figures["notes"],
        "## Recipe",
        recipe_table(figures),
        f"{in_words(figures['machine'] | figures['versions'])}.",
        "## Use",
        "Prompts, layout and file names are the base model's, so whatever loads that loads this. Vectors of the two "
        f"are not comparable. Vectors of {', '.join(map(str, EMBEDDING_DIMS))} components are trained alike.",
        "## Terms",
        NOTICE,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
