"""The largest activations of a network, by layer: whether float16 holds them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engine.checkpoint import load_network
from engine.configs import read_architecture
from engine.device import choose_device
from engine.model import FLOAT16, FLOAT32
from engine.packing import layout_of, spans_of

FLOAT16_MAX = torch.finfo(torch.float16).max
MATMULS = ("qkv", "out", "gate_up", "down")
OWN = ("per_layer.gate", "per_layer.inputs")
COLUMNS = (*(f"{name} {end}" for name in MATMULS for end in ("in", "out")), "stream")
"""The input and output of each matmul of a layer, and the residual stream as float16 holds it, rescaled."""


@torch.inference_mode()
def largest_activations(directory: Path, token_ids: Sequence[Sequence[int]]) -> list[dict[str, float]]:
    """Return for each layer the largest absolute value in each of COLUMNS over these texts, computed in float32."""
    device = choose_device()
    network = load_network(directory, read_architecture(directory), FLOAT32, device)
    largest: list[dict[str, float]] = [dict.fromkeys(COLUMNS, 0.0) for _ in network.layers]
    for layer, of_layer in zip(network.layers, largest, strict=True):
        for name, module in layer.named_modules():
            if (matmul := name.rpartition(".")[2]) in MATMULS:
                module.register_forward_hook(partial(_note_matmul, of_layer, matmul))
            elif name in OWN:
                module.register_forward_hook(partial(_note_own, of_layer))
        layer.register_forward_hook(partial(_note_stream, of_layer))
    for ids in token_ids:
        layout = layout_of([len(ids)], None)
        network(*layout.segments(layout.pack([ids]).to(device), [len(ids)], spans_of([len(ids)], None)))
    return largest


def _note_matmul(largest: dict[str, float], name: str, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    _note(largest, f"{name} in", inputs[0])
    _note(largest, f"{name} out", output)


def _note_own(largest: dict[str, float], _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    _note(largest, "gate_up out", output)  # its input is the stream, or the embeddings


def _note_stream(largest: dict[str, float], _: nn.Module, inputs: tuple[Tensor, ...], normed: Tensor) -> None:
    _note(largest, "stream", inputs[0] * 2.0**-FLOAT16.shift)  # the layer has overwritten it


def _note(largest: dict[str, float], column: str, values: Tensor) -> None:
    largest[column] = float(np.maximum(largest[column], values.abs().max().item()))  # NaN stays
