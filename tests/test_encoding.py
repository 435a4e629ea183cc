import base64
import json

import numpy as np
import pytest

import encoding

PRECISIONS = list(encoding.WIRE_DTYPES)

rng = np.random.default_rng(0)
VECTORS = (rng.standard_normal((5, 768)) * 30).astype(np.float32)
UNIT = encoding.cut(VECTORS, 768, normalize=True)


def prediction(vectors: np.ndarray, precision: str, output_format: str) -> dict[str, object]:
    array = encoding.convert(vectors, precision)
    return {
        "embedding": encoding.encode(array, output_format),
        "output_format": output_format,
        "precision": precision,
        "shape": list(array.shape),
    }


def one_minus_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return float((1 - cosines).max())


@pytest.mark.parametrize("dim", [768, 512, 256, 128])
def test_cut_comes_before_the_normalisation(dim: int) -> None:
    result = encoding.cut(VECTORS, dim, normalize=True)
    assert result.shape == (5, dim)
    assert result.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1, atol=1e-6)
    assert one_minus_cosine(result, VECTORS[:, :dim]) < 1e-7


def test_without_normalisation_the_length_is_kept() -> None:
    np.testing.assert_array_equal(encoding.cut(VECTORS, 256, normalize=False), VECTORS[:, :256])


def test_a_zero_vector_stays_zero_in_every_precision() -> None:
    zero = encoding.cut(np.zeros((1, 768), np.float32), 128, normalize=True)
    for precision in ("float32", "float16", "int8", "uint8"):
        decoded = encoding.decode(prediction(zero, precision, "base64"))
        np.testing.assert_array_equal(encoding.dequantize(decoded, precision), np.zeros((1, 128)))


@pytest.mark.parametrize("output_format", ["base64", "array"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_decode_returns_what_was_encoded(precision: str, output_format: str) -> None:
    sent = json.loads(json.dumps(prediction(UNIT, precision, output_format)))
    decoded = encoding.decode(sent)
    expected = encoding.convert(UNIT, precision)
    assert decoded.dtype == expected.dtype
    np.testing.assert_array_equal(decoded, expected)


# Half a step of the format, relative to a unit vector: what rounding costs and no more.
@pytest.mark.parametrize(
    ("precision", "bound"), [("float32", 1e-12), ("float16", 1e-6), ("int8", 2e-4), ("uint8", 2e-4)]
)
def test_direction_survives_the_precision(precision: str, bound: float) -> None:
    decoded = encoding.decode(prediction(UNIT, precision, "base64"))
    assert one_minus_cosine(encoding.dequantize(decoded, precision), UNIT) < bound


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_bits_become_their_signs_again(precision: str) -> None:
    array = encoding.convert(UNIT, precision)
    assert array.shape == (5, 96)
    np.testing.assert_array_equal(encoding.dequantize(array, precision), np.where(UNIT > 0, 1, -1))


def test_int8_is_symmetric_and_uses_its_range() -> None:
    array = encoding.convert(UNIT, "int8")
    assert np.abs(array.astype(int)).max(axis=1).tolist() == [127] * 5
    np.testing.assert_array_equal(encoding.convert(-UNIT, "int8"), -array)
    np.testing.assert_array_equal(encoding.convert(UNIT, "uint8").astype(int), array.astype(int) + 128)


def test_base64_is_little_endian_bytes_in_c_order() -> None:
    array = encoding.convert(UNIT, "float32")
    data = base64.b64decode(str(encoding.encode(np.asfortranarray(array), "base64")))
    assert data == np.ascontiguousarray(UNIT).astype("<f4").tobytes()


def test_float16_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"precision: a component of 70000 is beyond float16's 65504; use .*float32"):
        encoding.convert(np.array([[7e4, 1.0]], np.float32), "float16")


def test_decode_takes_a_whole_response_and_names_a_failure() -> None:
    output = prediction(UNIT, "float32", "base64")
    np.testing.assert_array_equal(encoding.decode({"status": "succeeded", "output": output}), UNIT)
    with pytest.raises(ValueError, match="nothing to decode: texts: too many"):
        encoding.decode({"status": "failed", "error": "texts: too many"})


def test_decode_refuses_bytes_that_do_not_fit_the_shape() -> None:
    output = prediction(UNIT, "float32", "base64") | {"shape": [6, 768]}
    with pytest.raises(ValueError, match=r"embedding: 3840 numbers do not make shape \[6, 768\]"):
        encoding.decode(output)


def test_unknown_precision_and_format_are_refused() -> None:
    with pytest.raises(ValueError, match=r"precision: 'int4' is unknown; use one of float32, .*ubinary"):
        encoding.convert(UNIT, "int4")
    with pytest.raises(ValueError, match="output_format: 'csv' is unknown; use 'base64' or 'array'"):
        encoding.encode(UNIT, "csv")


@pytest.mark.parametrize("dim", [768, 128])
def test_norms_and_quotients_are_of_float64_and_rounded_once(dim: int) -> None:
    exact = VECTORS[:, :dim].astype(np.float64)
    expected = exact / np.sqrt((exact * exact).sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(encoding.cut(VECTORS, dim, normalize=True), expected.astype(np.float32))


@pytest.mark.parametrize("dim", [768, 128])
def test_a_vector_alone_has_the_bits_that_it_has_among_others(dim: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 768)).astype(np.float32)
    vectors[:3] *= np.array([[1e-20], [1e15], [0]], np.float32)
    together = encoding.cut(vectors, dim, normalize=True)
    for vector, expected in zip(vectors, together, strict=True):
        for alone in (encoding.cut(vector, dim, normalize=True), encoding.cut(vector[None], dim, normalize=True)[0]):
            assert alone.dtype == np.float32 and alone.tobytes() == expected.tobytes()
