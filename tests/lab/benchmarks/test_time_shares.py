"""What a kernel's name tells about its work."""

import pytest

from lab.benchmarks.time_shares import kernel_category, longest_kernels, short_gaps, short_name

KERNELS = {
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<256, 64, 64, 4, cutlass::half_t>>": "attention",
    "fmha_cutlassF_f16_aligned_64x64_rf_sm80": "attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "nvjet_hsh_128x160_64x5_2x1_v_bz_TNT": "matmul",
    "sm90_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_cublas": "matmul",
    "ampere_fp16_s16816gemm_fp16_128x64_ldg8_f2f_stages_64x4_tn": "matmul",
    "void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_128x128_16x5_tn_align4>": "matmul",
    "mkldnn::_linear_pointwise": "matmul",
    "_add_norm": "elementwise",
    "_segment_mean": "elementwise",
    "Memcpy DtoH (Device -> Pinned)": "copies",
}


@pytest.mark.parametrize(("name", "category"), KERNELS.items())
def test_kernels_are_told_apart_by_name(name: str, category: str) -> None:
    assert kernel_category(name) == category


def test_the_longest_kernels_come_first_and_names_that_are_cut_alike_are_one() -> None:
    templates = [f"void at::native::(anonymous namespace)::fill<{'int, ' * 20}{i}>(float*)" for i in range(2)]
    kernels = {"_add_norm": (24, 0.3), "rest": (1, 0.1), templates[0]: (2, 0.2), templates[1]: (3, 0.4)}
    longest = longest_kernels(kernels, most=2)
    assert list(longest) == [short_name(templates[0]), "_add_norm"]
    assert short_name(templates[0]).startswith("fill<int, ") and len(short_name(templates[0])) == 70
    assert longest["_add_norm"] == {"calls": 24, "ms": pytest.approx(300), "share": pytest.approx(0.3)}
    assert longest[short_name(templates[0])]["calls"] == 5
    assert longest_kernels({}) == {}


def test_a_gap_is_short_and_between_kernels_of_which_some_run_side_by_side() -> None:
    kernels = [
        (100.0, 110.0),
        (112.0, 130.0),
        (115.0, 120.0),
        (131.0, 140.0),
        (10_000.0, 10_001.0),
        (10_051.0, 10_052.0),
    ]
    assert short_gaps(reversed(kernels)) == 2 + 1 + 50
    assert short_gaps([]) == 0
