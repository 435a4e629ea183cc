"""8-bit integers: exact sums by every set of instructions, vectors that no company changes, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import engine
from engine.checkpoint import load_network
from engine.configs import read_architecture
from engine.contract import DeviceError
from engine.int8 import matrices, quantise
from engine.kernels import int8
from engine.kernels.int8 import quantise_matrix, quantise_rows
from engine.model import FLOAT32, INT8, Layer
from engine.native import choice, library
from engine.native.choice import multiplies_exactly, trial
from engine.native.library import NotAvailable
from engine.packed import PackedEngine
from engine.packing import packed
from tests.support.vectors import FULL, SECOND, errors, random_ids
from weights import SMALL

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def levels() -> list[int]:
    """The largest whole numbers of activations, for each set of instructions that this processor has."""
    try:
        library.load()
    except NotAvailable as reason:
        pytest.skip(f"no extension on this machine: {reason}")
    found: list[int] = torch.ops.embeddinggemma.int8_levels()
    return found


@pytest.fixture(scope="module")
def packed_engine(levels: list[int]) -> PackedEngine:
    """The small checkpoint in 8 bits."""
    return PackedEngine(SMALL, "cpu", INT8)


@pytest.mark.parametrize("rows", [*range(1, 14), 100])
def test_sums_are_exact_by_every_set_of_instructions(levels: list[int], rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    for columns, inputs in ((64, 16), (128, 48), (320, 192), (768, 1152)):
        x = torch.randn(rows, inputs, generator=generator) * torch.logspace(-30, 30, rows)[:, None]
        weight = torch.randn(columns, inputs, generator=generator)
        weight[3], weight[5] = 0.0, 127.0  # a row without numbers, and one of the largest
        matrix = quantise_matrix(weight, 2.0 ** torch.randint(-3, 9, (inputs,), generator=generator), 127)
        for instructions, most in enumerate(levels):
            matrix = replace(matrix, levels=most)
            product = torch.ops.embeddinggemma.linear_int8(x, matrix.tensors, instructions)
            assert torch.equal(product, int8.linear(x, matrix)), (columns, inputs, instructions)


def test_a_product_is_as_near_as_its_steps(levels: list[int]) -> None:
    x, weight = torch.randn(9, 256), torch.randn(64, 256)
    for most in {*levels, 127}:
        error = int8.linear(x, quantise_matrix(weight, torch.ones(256), most)) - x @ weight.T
        step = x.abs().amax(dim=1)[:, None] / most + weight.abs().amax(dim=1) / 127
        assert (error.abs() <= 4 * step * 256**0.5 / 12**0.5).all()  # four deviations of that many roundings


def test_every_number_of_a_row_is_rounded_to_the_nearest_step() -> None:
    x = torch.tensor([[127.0, -127.0, 0.49, 0.5, 1.5, -0.5, 63.51, 0.0], [0.0] * 8, [1e-39] * 7 + [-2e-39]])
    whole, scales = quantise_rows(x, 127)
    assert whole[0].tolist() == [127, -127, 0, 0, 2, 0, 64, 0] and scales[0] == 1
    assert whole[1].tolist() == [0] * 8 and scales[1] == 0
    assert whole[2].tolist() == [64] * 7 + [-127]


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_gives_nan_and_harms_no_other(levels: list[int], wrong: float) -> None:
    x, matrix = torch.randn(8, 64), quantise_matrix(torch.randn(64, 64), torch.ones(64), levels[0])
    expected = int8.linear(x, matrix)
    x[5, 60] = wrong
    for product in (int8.linear(x, matrix), torch.ops.embeddinggemma.linear_int8(x, matrix.tensors, 0)):
        others = [row for row in range(8) if row != 5]
        assert product[5].isnan().all() and torch.equal(product[others], expected[others])


def test_a_paired_matrix_gives_gates_then_ups() -> None:
    x, weight = torch.randn(3, 32), torch.randn(256, 32)
    plain, paired = (int8.linear(x, quantise_matrix(weight, torch.ones(32), 127, pair)) for pair in (False, True))
    assert torch.equal(plain, paired)


def test_the_comparison_at_load_accepts_every_set_of_instructions(levels: list[int]) -> None:
    for architecture in (read_architecture(SMALL), FULL, SECOND):
        network = trial(architecture, INT8)
        assert all(multiplies_exactly(network, instructions) for instructions in range(len(levels)))


def test_neither_company_nor_threads_change_a_bit(packed_engine: PackedEngine) -> None:
    texts = [random_ids(n, n) for n in (1, 2, 5, 16, 17, 33, 64, 90, 128, 130, 200, 257, 300, 513, 700)] * 2
    ranges = [[(0, len(ids)), (0, 1)] for ids in texts]
    alone = np.concatenate([packed_engine.launch([ids])() for ids in texts])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert np.array_equal(packed_engine.embed(texts), alone)
            assert np.array_equal(packed_engine.launch(texts[::-1])()[::-1], alone)
            assert np.array_equal(packed_engine.launch(texts, ranges)()[::2], alone)
    finally:
        torch.set_num_threads(threads)


def enlarge(linear: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Make column 5 of what a matrix reads larger."""
    larger = inputs[0].clone()
    larger[:, 5] *= 2**16
    return (larger,)


@pytest.mark.usefixtures("levels")
@pytest.mark.parametrize("weights", ["small", "second_weights"])
def test_a_scale_moves_from_the_outlier_of_each_matrix(
    weights: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A factor changes no number of a matrix by more than its rounding."""
    monkeypatch.setattr("engine.checkpoint.quantise", lambda *inputs: None)
    directory = request.getfixturevalue(weights)
    network = load_network(directory, read_architecture(directory), INT8, CPU, calibration=[[2, 1]])
    linears = [linear for layer in network.layers if isinstance(layer, Layer) for linear in matrices(layer)]
    before = [linear.get_parameter("weight").clone() for linear in linears]
    for linear in linears:
        linear.register_forward_pre_hook(enlarge)
    quantise(network, *packed([random_ids(n, n) for n in (3, 40, 120)], CPU), 127)
    assert len(linears) == len(network.layers) * (7 if network.architecture.per_layer else 4)
    for linear, weight in zip(linears, before, strict=True):
        assert linear.quantised is not None
        inverses, actual = linear.quantised.inverses, int8.linear(torch.eye(weight.shape[1]), linear.quantised).T
        step = (weight / inverses).abs().amax(dim=1, keepdim=True) / 127
        assert inverses.argmin() == 5 and inverses[5] <= 1 / 8
        assert ((actual - weight).abs() <= 0.51 * step * inverses + 1e-6 * weight.abs()).all()


@pytest.mark.usefixtures("no_binary")
def test_without_the_extension_int8_is_refused_in_a_sentence() -> None:
    with pytest.raises(DeviceError, match=r"^DTYPE is int8, which cannot be computed here: no binary .*; set DTYPE to"):
        engine.load(SMALL, "int8")


@pytest.mark.usefixtures("levels")
def test_a_network_that_fits_no_panels_is_refused_in_a_sentence() -> None:
    with pytest.raises(NotAvailable, match="sizes"):
        choice.check_int8(replace(FULL, hidden=FULL.hidden + 32))
    choice.check_int8(FULL)
    choice.check_int8(SECOND)


def test_the_trained_checkpoint_keeps_its_vectors(packed_engine: PackedEngine) -> None:
    texts = [random_ids(n, n) for n in range(4, 200, 4)]
    found = errors(packed_engine.embed(texts), PackedEngine(SMALL, "cpu", FLOAT32).embed(texts))
    print(f"{packed_engine.description}: 1 - cosine {found[0]:.1e}, norm {found[1]:.1e}")
    assert packed_engine.number_format == "int8" and found[0] <= 5e-4
