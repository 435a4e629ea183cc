"""The network's parts, what loading accepts, and what it refuses and in which words."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from engine.checkpoint import load_network
from engine.configs import read_architecture
from engine.contract import CheckpointError
from engine.kernels import PLAIN
from engine.kernels.rotary import Rotation
from engine.linear import Linear
from engine.model import FLOAT16, FLOAT32, Network, NumberFormat
from engine.packed import PackedEngine
from engine.tokenizer import TokenizerError
from lab.checkpoints import make_random as make_random_checkpoint
from tests.support.vectors import errors, random_ids, segments_of
from weights import SMALL

CPU = torch.device("cpu")
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the small checkpoint to spoil."""
    return Path(shutil.copytree(SMALL, tmp_path / "checkpoint"))


def edit(path: Path, change: Edit) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        PackedEngine(directory, "cpu")
    return str(caught.value)


@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_a_packed_linear_layer_is_the_public_one(tokens: int) -> None:
    linear = Linear(130, 70, torch.float32)
    linear.weight.normal_()
    x = torch.randn(tokens, 70)
    expected = F.linear(x, linear.weight)
    linear.pack()
    assert torch.allclose(linear(x), expected, atol=1e-4)


def test_positions_restart_with_each_text() -> None:
    rotation = Rotation(segments_of([3, 3]).positions, 3, 1e4, 8)
    cos, sin = rotation.of_tokens
    assert torch.equal(cos[:3], cos[3:]) and torch.equal(sin[:3], sin[3:])
    x = torch.randn(1, 2, 8)
    assert torch.allclose(rotation(x.expand(6, 2, 8))[0], x[0])


def sliding_only(directory: Path) -> Network:
    """One layer of the checkpoint, a sliding one."""
    edit(directory / "config.json", lambda c: c.update(num_hidden_layers=1, layer_types=["sliding_attention"]))
    weights = load_file(directory / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("layers") or "layers.0." in name}
    save_file(kept, directory / "model.safetensors")
    return load_network(directory, read_architecture(directory), FLOAT32, CPU)


@torch.inference_mode()
def test_a_token_257_away_changes_nothing_and_256_away_does(copy: Path) -> None:
    network = sliding_only(copy)
    ids, segments = torch.tensor(random_ids(600)), segments_of([600])
    rotation = Rotation(segments.positions, 600, 1e4, network.architecture.head_dim)
    table, scale = network.embedding.table, network.embedding.scale

    def layer(ids: torch.Tensor) -> torch.Tensor:
        x, normed = PLAIN.embed_norm(ids, table, scale, network.layers[0].pre_attention, torch.float32)
        network.layers[0](x, normed, rotation, segments, network.norm, PLAIN)
        return x

    before = layer(ids)
    ids[300] = 77
    changed = (layer(ids) != before).any(-1).nonzero().flatten()
    assert changed.min() == 300 - 256 and changed.max() == 300 + 256 and len(changed) == 513


@torch.inference_mode()
@pytest.mark.parametrize("shift", [7, 3])
def test_rescaling_changes_no_bit_in_float32(shift: int) -> None:
    ids, segments = torch.tensor(random_ids(300)), segments_of([200, 100])
    architecture = read_architecture(SMALL)
    plain, rescaled = (
        load_network(SMALL, architecture, replace(FLOAT32, shift=s), CPU)(ids, segments) for s in (0, shift)
    )
    assert torch.equal(plain, rescaled)


@torch.inference_mode()
def test_rescaled_float16_stays_finite_where_float16_does_not(random_weights: Path) -> None:
    ids, segments, vectors = torch.tensor(random_ids(20)), segments_of([20]), []
    for numbers in (FLOAT32, FLOAT16, NumberFormat(torch.float16, torch.float16)):
        network = load_network(random_weights, read_architecture(random_weights), numbers, CPU)
        for layer in network.layers:
            layer.get_parameter("post_mlp.gain").mul_(20)  # residuals of 1e6
        vectors.append(network(ids, segments).numpy())
    expected, rescaled, plain = vectors
    assert np.isfinite(rescaled).all() and errors(rescaled, expected)[0] <= 1e-3
    assert not np.isfinite(plain).all()


@torch.inference_mode()
def test_a_folded_head_is_the_two_layers(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float16 too, whose head is float32. Each of its numbers is rounded once."""
    monkeypatch.setattr(Linear, "pack", lambda linear: None)
    lengths = [1, 2, 3, 9, 40, 258]
    ids, segments = torch.tensor([i for length in lengths for i in random_ids(length)]), segments_of(lengths)
    for numbers in (FLOAT32, FLOAT16):
        network = load_network(checkpoint, read_architecture(checkpoint), numbers, CPU)
        expected = network(ids, segments).numpy()
        first, second = (layer.get_parameter("weight").double() for layer in network.dense)
        network.fold_head()
        (folded,) = (layer.get_parameter("weight") for layer in network.dense)
        cosine, norm = errors(network(ids, segments).numpy(), expected)
        print(f"{checkpoint.name}, {numbers.dtype}: 1 - cosine {cosine:.1e}, relative norm error {norm:.1e}")
        assert cosine <= 1e-12 and norm <= 1e-6
        product = second @ first
        assert folded.dtype == torch.float32 and ((folded - product).abs() <= 2**-23.9 * product.abs() + 1e-14).all()


def test_only_a_cpu_keeps_two_dense_layers() -> None:
    """`meta` stands for a GPU: a device whose tensors have shapes alone."""
    for device, sizes in (("cpu", [(384, 192), (768, 384)]), ("meta", [(768, 192)])):
        network = Network(read_architecture(SMALL), FLOAT32).to(device)
        network.finish()
        layers = [layer for layer in network.dense if isinstance(layer, Linear)]
        shapes = [(layer.weight if layer.packed is None else layer.packed).shape for layer in layers]
        assert list(map(tuple, shapes)) == sizes


def test_todays_and_older_configs_are_one_architecture(copy: Path) -> None:
    expected = read_architecture(SMALL)

    def todays(config: dict[str, Any]) -> None:
        full, sliding = config.pop("rope_theta", 1e6), config.pop("rope_local_base_freq", 1e4)
        config["rope_parameters"] = {
            "full_attention": {"rope_theta": full, "rope_type": "default"},
            "sliding_attention": {"rope_theta": sliding, "rope_type": "default"},
        }

    edit(copy / "config.json", todays)
    modules = json.loads((copy / "modules.json").read_text())
    for module in modules:
        kind = module["type"].rsplit(".", 1)[-1]
        module["type"] = f"sentence_transformers.base.modules.{kind.lower()}.{kind}"
    (copy / "modules.json").write_text(json.dumps(modules))
    pooling = {"embedding_dimension": expected.hidden, "pooling_mode": "mean", "include_prompt": True}
    (copy / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    assert read_architecture(copy) == expected


def test_an_older_config_without_layer_types(copy: Path) -> None:
    edit(copy / "config.json", lambda c: c.pop("layer_types"))
    assert read_architecture(copy).windows == (256, 256, 256, 256, 256, None)


CONFIG_REFUSALS: list[tuple[Edit, str]] = [
    (lambda c: c.update(model_type="bert"), 'model_type is "bert"; expected "gemma3_text"'),
    (lambda c: c.update(use_bidirectional_attention=False), "use_bidirectional_attention is false; expected true"),
    (lambda c: c.update(sliding_window=257), "sliding_window is 257 (already halved by the library that saved it)"),
    (lambda c: c.update(sliding_window=1024), "window of 1024 // 2 + 1 = 513; expected 512, which gives 257"),
    (lambda c: c.update(attention_bias=True), "attention_bias is true; expected false; ENGINE=reference can run it"),
    (lambda c: c.update(hidden_activation="silu"), 'expected "gelu_pytorch_tanh"; ENGINE=reference can run it'),
    (lambda c: c.update(rope_scaling={"rope_type": "linear"}), "expected null; ENGINE=reference can run it"),
    (lambda c: c.update(num_key_value_heads=2), "3 attention heads share 2 key/value heads; expected a multiple"),
    (lambda c: c.update(hidden_size="wide"), 'hidden_size is "wide"; expected a positive whole number'),
    (lambda c: c.update(layer_types=["chunked"]), 'layer_types is ["chunked"]; expected 6 of sliding_attention and'),
    (lambda c: c.update(vocab_size=20_000), "embed_tokens.weight has shape"),
]


@pytest.mark.parametrize(("change", "words"), CONFIG_REFUSALS)
def test_another_architecture_is_refused(copy: Path, change: Edit, words: str) -> None:
    edit(copy / "config.json", change)
    message = refusal(copy)
    assert words in message and str(copy) in message


MODULE_REFUSALS: list[tuple[str, Edit, str]] = [
    ("1_Pooling", lambda c: c.update(pooling_mode_mean_tokens=False, pooling_mode_cls_token=True), "the pooling is"),
    ("1_Pooling", lambda c: c.update(pooling_mode=["mean", "cls"]), 'expected "mean"; ENGINE=reference'),
    ("1_Pooling", lambda c: c.update(include_prompt=False), "include_prompt is false; expected true; ENGINE=reference"),
    ("2_Dense", lambda c: c.update(bias=True), "bias is true; expected false; ENGINE=reference can run it"),
    ("2_Dense", lambda c: c.pop("activation_function"), "activation_function is null; expected"),
    ("3_Dense", lambda c: c.update(activation_function="torch.nn.modules.activation.Tanh"), "ENGINE=reference"),
    ("3_Dense", lambda c: c.update(out_features=256), "the vectors have 256 dimensions; expected 768"),
    ("3_Dense", lambda c: c.update(in_features=77), "in_features is 77; expected 384"),
]


@pytest.mark.parametrize(("module", "change", "words"), MODULE_REFUSALS)
def test_other_modules_are_refused(copy: Path, module: str, change: Edit, words: str) -> None:
    edit(copy / module / "config.json", change)
    message = refusal(copy)
    assert words in message and str(copy / module / "config.json") in message


def test_a_pipeline_without_its_dense_layers_is_refused(copy: Path) -> None:
    modules = json.loads((copy / "modules.json").read_text())
    (copy / "modules.json").write_text(json.dumps(modules[:2] + modules[4:]))
    assert "modules are Transformer -> Pooling -> Normalize; expected Transformer -> Pooling -> Dense" in refusal(copy)


@pytest.mark.parametrize("name", ["config.json", "modules.json", "1_Pooling/config.json", "model.safetensors"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert str(copy / name) in refusal(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "3_Dense/model.safetensors"])
def test_truncated_and_mislabelled_tensors_are_refused(copy: Path, name: str) -> None:
    whole = (copy / name).read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:4], b"", pointer, b"<html>not found</html>"):
        (copy / name).write_bytes(content)
        assert f"{copy / name}: expected a whole safetensors file: " in refusal(copy)


def test_missing_misshapen_and_unknown_tensors_are_refused(copy: Path) -> None:
    path = copy / "model.safetensors"
    weights = load_file(path)
    name = "layers.3.mlp.up_proj.weight"

    def save(changed: dict[str, torch.Tensor]) -> str:
        save_file(changed, path)
        return refusal(copy)

    without = {n: t for n, t in weights.items() if n != name}
    assert f"{path}: no tensor {name}; expected one of shape [384, 192]" in save(without)
    assert f"{name} has shape [192, 384]; expected [384, 192]" in save(weights | {name: weights[name].t().contiguous()})
    assert f"{name} holds torch.int32; expected float32" in save(weights | {name: weights[name].int()})
    bias = {"layers.3.mlp.up_proj.bias": torch.zeros(384)}
    assert "no place for, first layers.3.mlp.up_proj.bias" in save(weights | bias)
    assert "no tensor embed_tokens.weight" in save({f"model.{n}": t for n, t in weights.items()})


def test_a_tokenizer_without_bos_and_eos_is_refused(copy: Path) -> None:
    edit(copy / "tokenizer.json", lambda t: t.update(post_processor=None))
    with pytest.raises(TokenizerError, match="an empty text must become <bos> <eos>"):
        PackedEngine(copy, "cpu")


MEMORY = """
import sys, torch
from pathlib import Path
from engine.checkpoint import load_network
from engine.configs import read_architecture
from engine.model import FORMATS
def peak(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
architecture, before = read_architecture(Path(sys.argv[1])), peak()
network = load_network(Path(sys.argv[1]), architecture, FORMATS[sys.argv[2]], torch.device("cpu"))
torch.nn.functional.embedding(torch.arange(5), network.embedding.table)
print(peak() - before)
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full width, a quarter of the vocabulary, two layers: the table is where a second copy would show."""
    directory = tmp_path_factory.mktemp("wide") / "wide"
    make_random_checkpoint.make(directory, layers=2, vocab_size=65536)
    return directory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its peak memory from Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_makes_no_second_copy(dtype: str, wide: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(wide), dtype], capture_output=True, text=True, check=True,
        cwd=SMALL.parent.parent,
    )  # fmt: skip
    weights = (65536 * 768 + 2 * 4_230_000 + 4_718_592) * getattr(torch, dtype).itemsize
    print(f"{dtype}: peak {int(run.stdout) / 1e6:.0f} MB more for {weights / 1e6:.0f} MB of weights")
    assert int(run.stdout) < 1.3 * weights + 50e6
