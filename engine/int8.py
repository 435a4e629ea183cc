"""A loaded network in 8-bit integers: scales moved from activations to weights, then the layers' matrices quantised.

A channel that is much larger than the others would take all levels of a token's scale. So a power of two moves from
each such channel of an activation to the columns of the matrix that reads it, as in SmoothQuant (Xiao et al. 2023): no
digit of a float32 vector changes. How large channels are is measured on some texts.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from engine.kernels.int8 import quantise_matrix
from engine.linear import Linear
from engine.model import Attention, GeGLU, Layer, Network
from engine.packing import Segments

CALIBRATION = (
    "task: search result | query: how long does it take to boil an egg at high altitude",
    "title: none | text: Water boils at a lower temperature in the mountains, since the air presses less on it; at "
    "3,000 metres an egg takes about twelve minutes. Salt changes this by less than a degree.",
    "title: The treaty of 1648 | text: The envoys met in two towns, Münster and Osnabrück, as neither side would sit "
    "at the other's table. It took them five years (1644-48) to agree.",
    "task: code retrieval | query: remove duplicates from a list but keep its order",
    "title: none | text: def unique(items):\n    seen = set()\n    return [x for x in items if not (x in seen or "
    "seen.add(x))]\n",
    "task: classification | query: I was charged twice for the same order!!! Please refund me ASAP :-(",
    "task: sentence similarity | query: Die Katze schläft auf dem warmen Dach, während der Regen aufhört.",
    "task: clustering | query: 東京の夏はとても暑いです。 Летом в Москве тепло. Le marché ouvre à sept heures.",
)
"""Texts of some kinds, each with a task's prompt, whose activations show how large channels are."""
# How many times as large as the median channel's an outlier's ratio of activation to weight is.
OUTLIER = 4.0


@torch.no_grad()
def quantise(network: Network, token_ids: Tensor, segments: Segments, levels: int) -> None:
    """Quantise the matrices of a loaded float32 network's layers, after a pass over these texts to measure channels.

    `levels` is the largest whole number of an activation.
    """
    layers = [layer for layer in network.layers if isinstance(layer, Layer)]
    with largest_inputs(layers) as largest:
        network(token_ids, segments)
    for layer in layers:
        move_scales(layer, largest)
        for linear in matrices(layer):
            paired = linear is layer.mlp.gate_up
            linear.quantised = quantise_matrix(linear.get_parameter("weight"), levels, paired)
            del linear.weight


def matrices(layer: Layer) -> list[Linear]:
    """Return a layer's matrices in the order in which they are used."""
    return [layer.attention.qkv, layer.attention.out, layer.mlp.gate_up, layer.mlp.down]


@contextmanager
def largest_inputs(layers: list[Layer]) -> Iterator[dict[nn.Module, Tensor]]:
    """Within it, note the largest size of each column [columns] that the layers' matrices read."""
    largest: dict[nn.Module, Tensor] = {}

    def note(linear: nn.Module, inputs: tuple[Tensor]) -> None:
        largest[linear] = inputs[0].abs().amax(dim=0)

    with ExitStack() as stack:
        for layer in layers:
            for linear in matrices(layer):
                stack.callback(linear.register_forward_pre_hook(note).remove)
        yield largest


def move_scales(layer: Layer, largest: dict[nn.Module, Tensor]) -> None:
    """Divide what each matrix reads where it is made, and multiply the matrix's columns."""
    attention, mlp = layer.attention, layer.mlp
    for norm, linear in ((layer.pre_attention, attention.qkv), (layer.pre_mlp, mlp.gate_up)):
        weight = linear.get_parameter("weight")
        factors = _factors(largest[linear], _largest_columns(weight))
        norm.gain.div_(factors)
        weight.mul_(factors)
    _move_into_out(attention, largest[attention.out])
    _move_into_down(mlp, largest[mlp.down])


def _move_into_out(attention: Attention, largest: Tensor) -> None:
    """Divide the rows that make values; the query heads of a key/value head mix the same ones."""
    a = attention.a
    groups = (a.kv_heads, a.heads // a.kv_heads, a.head_dim)
    out = attention.out.get_parameter("weight")
    factors = _factors(largest.view(groups).amax(dim=1), _largest_columns(out).view(groups).amax(dim=1))
    attention.qkv.get_parameter("weight")[-factors.numel() :].div_(factors.view(-1, 1))
    out.view(-1, *groups).mul_(factors[:, None])


def _move_into_down(mlp: GeGLU, largest: Tensor) -> None:
    """Divide the rows of up, by which gates are multiplied."""
    down = mlp.down.get_parameter("weight")
    factors = _factors(largest, _largest_columns(down))
    mlp.gate_up.get_parameter("weight").chunk(2)[1].div_(factors[:, None])
    down.mul_(factors)


def _largest_columns(weight: Tensor) -> Tensor:
    return weight.abs().amax(dim=0)


def _factors(activation: Tensor, weight: Tensor) -> Tensor:
    """Return a power of two for each outlier channel, which makes it stand out as little in the activation as in the
    weight; 1 for the others, whose levels are spent best as they are."""
    ratios = activation / weight
    used = ratios.isfinite() & (ratios > 0)
    ratios = torch.where(used, ratios / ratios[used].median() if used.any() else 1.0, 1.0)
    return torch.where(ratios > OUTLIER, ratios.log2().div(2).round().exp2(), 1.0)
