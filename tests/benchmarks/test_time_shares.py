"""What a kernel's name tells of its work, and shares in words."""

import pytest

from benchmarks.time_shares import in_percent, kernel_category

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


def test_shares_in_words() -> None:
    assert (
        in_percent({"matmul": 0.3, "host": 0.6, "attention": 0.1, "wall": 1.0}) == "host 60%, matmul 30%, attention 10%"
    )
