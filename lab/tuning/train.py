"""Training with sentence-transformers' trainer, which goes on where it was killed."""

import json
import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.modules import Dense
from torch import Tensor
from transformers import ProgressCallback, TrainerCallback

from engine.reference import load_pipeline
from fetching.whole import put_in_place
from lab.tuning.batches import Batches
from lab.tuning.columns import Prepared, prepare, write_json
from lab.tuning.data import SCORES, Example, Kind
from lab.tuning.loss import loss_of
from lab.tuning.recipe import Recipe, TuningError

logger = logging.getLogger("tuning")

# How often a training is saved; the checkpoints of its second half are averaged at the end.
SAVES = 8
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# What EmbeddingGemma 2 has besides.
LORA_TARGETS += ["per_layer_input_gate", "per_layer_projection", "per_layer_model_projection", "embedding_projection"]

State = dict[str, Tensor]


def load_model(directory: Path) -> SentenceTransformer:
    """Return the checkpoint in float32 without prompts, on the GPU if there is one.

    Raises CheckpointError for another pipeline than EmbeddingGemma's.
    """
    model = load_pipeline(directory, "cuda" if torch.cuda.is_available() else "cpu", "float32")
    model.model_card_data.widget = [{}]  # or the trainer would choose texts for a card that nobody reads
    model.prompts = {}  # texts have theirs already, and mining would add the checkpoint's
    return model


def train(
    kind: Kind, examples: Sequence[Example], base: Path, recipe: Recipe, work: Path
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Train and return files of weights, `last` and the `average` of the second half, and steps, losses and notes.

    Progress is kept in the folder `work`. Raises OSError where the disk is full: the same call then goes on. Raises
    TuningError where no batch can be made or the training diverges.
    """
    history, files = work / "loss.json", {name: work / f"{name}.safetensors" for name in ("last", "average")}
    if not history.is_file():
        torch.manual_seed(recipe.seed)
        model = load_model(base)
        prepared = prepare(kind, examples, model, recipe, work)
        notes = left_out(prepared, len(examples), recipe.epochs)
        for note in notes:
            logger.info("%s", note)
        columns = Dataset.from_dict(prepared.columns)
        if kind is not SCORES:
            columns = columns.add_column("label", list(range(len(columns))))  # the rows' numbers, for the loss
        if recipe.lora:
            model.add_adapter(lora_config(recipe))
        saver = Saver(model, work / "snapshots")
        trainer = Trainer(
            model, settings(recipe, work / "trainer", prepared.batches), train_dataset=columns, callbacks=[saver],
            loss=loss_of(kind, model, recipe, prepared.groups, prepared.teacher),
        )  # fmt: skip
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Bar)
        trainer.train(resume_from_checkpoint=newest_complete(work / "trainer"))
        check_finite(last := merged_state(model), recipe, work)
        write_state(files["last"], last)
        write_state(files["average"], average(sorted(saver.folder.glob("*.safetensors"))))
        losses = [{key: each[key] for key in ("step", "loss")} for each in trainer.state.log_history if "loss" in each]
        write_json(history, {"steps": trainer.state.global_step, "loss": losses, "notes": notes})
        shutil.rmtree(work / "trainer")
        shutil.rmtree(saver.folder)
    return files, json.loads(history.read_text(encoding="utf-8"))


def settings(recipe: Recipe, folder: Path, batches: Batches) -> SentenceTransformerTrainingArguments:
    """Return the trainer's settings."""
    on_gpu = torch.cuda.is_available()
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder), report_to="none", seed=recipe.seed, bf16=on_gpu, use_cpu=not on_gpu,
        learning_rate=recipe.learning_rate, warmup_steps=recipe.warmup, weight_decay=0.0,
        per_device_train_batch_size=recipe.batch, batch_sampler=partial(listed, batches),
        num_train_epochs=1,  # `batches` has those of all epochs
        save_steps=max(1, len(batches) // SAVES), save_total_limit=1, logging_steps=max(1, len(batches) // 50),
    )  # fmt: skip


def listed(batches: Batches, dataset: Dataset, **options: Any) -> Batches:
    """Return the batches, which are made already, in place of a sampler."""
    return batches


def left_out(prepared: Prepared, rows: int, epochs: int) -> list[str]:
    """Return a sentence that says how many rows are in no batch, and why; nothing where all are in one."""
    count = rows * epochs - sum(map(len, prepared.batches))
    of = f"{rows:,} rows" if epochs == 1 else f"{epochs} times {rows:,} rows"
    return [f"{count:,} of {of} to train on are left out, {prepared.why_left_out}."] if count else []


def check_finite(state: State, recipe: Recipe, work: Path) -> None:
    """Raise TuningError where weights are infinite or not numbers."""
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise TuningError(
            f"--learning-rate: with {recipe.learning_rate} the training diverged, to weights that are no numbers; "
            f"remove {work} and give a smaller one"
        )


def lora_config(recipe: Recipe) -> LoraConfig:
    """Return adapters for every matrix but the table, with alpha twice the rank; Dense modules stay trainable."""
    return LoraConfig(
        r=recipe.lora, lora_alpha=2 * recipe.lora, target_modules=LORA_TARGETS, task_type=TaskType.FEATURE_EXTRACTION
    )


class Trainer(SentenceTransformerTrainer):
    """Saves weights alone, as loading a whole EmbeddingGemma 2 again needs more libraries, for images and sounds."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_state(folder / "weights.safetensors", self.model.state_dict())

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        self.model.load_state_dict(load_file(Path(checkpoint_path) / "weights.safetensors"))


class Saver(TrainerCallback):
    """Writes the weights of the second half's checkpoints, each before the trainer writes its own.

    So a killed training that goes on from a checkpoint has the weights of all before it.
    """

    def __init__(self, model: SentenceTransformer, folder: Path) -> None:
        self.model, self.folder = model, folder
        folder.mkdir(parents=True, exist_ok=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write them; see TrainerCallback."""
        step, last = state.global_step, state.max_steps
        if step == last or (step % args.save_steps == 0 and 2 * step > last):
            write_state(self.folder / f"{step:09}.safetensors", merged_state(self.model))


class Bar(ProgressCallback):
    """The trainer's progress bar, with the loss in it rather than lines between."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss; see TrainerCallback."""
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


def newest_complete(folder: Path) -> str | None:
    """Return the trainer's newest checkpoint, and remove those it had not finished when it was killed."""
    complete = None
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))  # which is written last
            complete = str(path)
        except (OSError, ValueError):
            shutil.rmtree(path)
    return complete


def merged_state(model: SentenceTransformer) -> State:
    """Return the weights, adapters added, under a checkpoint's names: the network's, then any `dense.2`, `dense.3`."""
    network, state = model[0].auto_model, {}
    adapted = {name: module for name, module in network.named_modules() if hasattr(module, "get_delta_weight")}
    for name, tensor in network.state_dict().items():
        if "lora_" not in name:
            plain = name.replace(".base_layer", "")
            module = adapted.get(plain.removesuffix(".weight"))
            tensor = tensor if module is None else tensor + module.get_delta_weight(module.active_adapters[0])
            state[plain] = tensor.detach().float().cpu()
    dense = {f"dense.{i}": module for i, module in enumerate(model) if isinstance(module, Dense)}
    return state | {name: module.linear.weight.detach().float().cpu() for name, module in dense.items()}


def average(files: Sequence[Path]) -> State:
    """Return the mean of the weights in files: a soup of checkpoints (Wortsman et al. 2022, arXiv:2203.05482)."""
    total = load_file(files[0])
    for path in files[1:]:
        for name, tensor in load_file(path).items():
            total[name] += tensor
    return {name: tensor / len(files) for name, tensor in total.items()}


def write_state(path: Path, state: State) -> None:
    """Write weights so that the file is whole whenever it is there."""
    unfinished = path.with_suffix(".unfinished")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, unfinished, {"format": "pt"})
    put_in_place(unfinished, path)
