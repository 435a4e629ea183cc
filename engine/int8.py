"""A loaded network in 8-bit integers: scales moved from activations to weights, then the layers' matrices quantised.

A channel that is much larger than the others would take all levels of a token's scale. So a power of two moves from
each such channel of an activation to the columns of the matrix that reads it, as in SmoothQuant (Xiao et al. 2023); but
it is divided by where the activation is quantised, as not every one is made by a matrix or a gain. How large channels
are is measured on some texts.
"""

import torch
from torch import Tensor, nn

from engine.kernels.int8 import quantise_matrix
from engine.linear import Linear
from engine.model import Layer, Network
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
    largest: dict[nn.Module, Tensor] = {}

    def note(linear: nn.Module, inputs: tuple[Tensor]) -> None:
        largest[linear] = inputs[0].abs().amax(dim=0)

    hooks = [linear.register_forward_pre_hook(note) for layer in layers for linear in matrices(layer)]
    network(token_ids, segments)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        query, kv, width, _ = layer.attention.heads
        for linear in matrices(layer):
            weight = linear.get_parameter("weight")
            # The query heads of a key/value head mix the same values.
            groups = (kv, query // kv, width) if linear is layer.attention.out else (1, 1, -1)
            factors = _factors(largest[linear].view(groups), weight.abs().amax(dim=0).view(groups))
            linear.quantised = quantise_matrix(weight, factors, levels, paired=linear is layer.mlp.gate_up)
            del linear.weight


def matrices(layer: Layer) -> list[Linear]:
    """Return a layer's matrices in the order in which they are used."""
    own = layer.per_layer
    of_all = [layer.attention.qkv, layer.attention.out, layer.mlp.gate_up, layer.mlp.down]
    return of_all + ([own.gate, own.inputs, own.out] if own else [])


def _factors(activation: Tensor, weight: Tensor) -> Tensor:
    """Return a power of two for each outlier channel, which makes it stand out as little in the activation as in the
    weight; 1 for the others, whose levels are spent best as they are.

    Both have the largest size of each column, [groups, heads, width]; heads of a group have the same powers.
    """
    ratios = activation.amax(dim=1, keepdim=True) / weight.amax(dim=1, keepdim=True)
    used = ratios.isfinite() & (ratios > 0)
    ratios = torch.where(used, ratios / ratios[used].median() if used.any() else 1.0, 1.0)
    return torch.where(ratios > OUTLIER, ratios.log2().div(2).round().exp2(), 1.0).expand_as(weight).flatten()
