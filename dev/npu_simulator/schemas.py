"""Schemas of the fused operators in torch_npu, as ``str(torch.ops.npu.<name>.default._schema)`` prints them.

tests/npu/torch_npu compares them with the installed package, for each release that `make test-torch-npu` runs on.
"""

from __future__ import annotations


SCHEMAS: dict[str, str] = {
    "npu_rms_norm": (
        "npu_rms_norm(Tensor input, Tensor gamma, float epsilon=9.9999999999999995e-07) -> (Tensor, Tensor)"
    ),
    "npu_add_rms_norm": (
        "npu_add_rms_norm(Tensor x1, Tensor x2, Tensor gamma, float epsilon=9.9999999999999995e-07) -> (Tensor, "
        "Tensor, Tensor)"
    ),
    "npu_layer_norm_eval": (
        "npu_layer_norm_eval(Tensor input, int[] normalized_shape, Tensor? weight=None, Tensor? bias=None, float "
        "eps=1.0000000000000001e-05) -> Tensor"
    ),
    "npu_swiglu": "npu_swiglu(Tensor input, int dim=-1) -> Tensor",
    "npu_geglu": (
        "npu_geglu(Tensor input, int dim=-1, int approximate=1, bool activate_left=False) -> (Tensor, Tensor)"
    ),
    "npu_fast_gelu": "npu_fast_gelu(Tensor input) -> Tensor",
    "npu_gelu": 'npu_gelu(Tensor input, *, str approximate="none") -> Tensor',
    "npu_rotary_mul": (
        'npu_rotary_mul(Tensor input, Tensor r1, Tensor r2, str rotary_mode="half", Tensor? rotate=None) -> Tensor'
    ),
    "npu_fusion_attention": (
        "npu_fusion_attention(Tensor query, Tensor key, Tensor value, int head_num, str input_layout, Tensor? "
        "pse=None, Tensor? padding_mask=None, Tensor? atten_mask=None, float scale=1., float keep_prob=1., int "
        "pre_tockens=2147483647, int next_tockens=2147483647, int inner_precise=0, int[]? prefix=None, int[]? "
        "actual_seq_qlen=None, int[]? actual_seq_kvlen=None, int sparse_mode=0, bool gen_mask_parallel=True, bool "
        'sync=False, str softmax_layout="", Tensor? sink=None, Tensor? dropout_mask=None, int seed=0, int '
        "offset=0) -> (Tensor, Tensor, Tensor, Tensor, int, int, int)"
    ),
    "npu_fusion_attention_v3": (
        "npu_fusion_attention_v3(Tensor query, Tensor key, Tensor value, int head_num, str input_layout, Tensor? "
        "pse=None, Tensor? padding_mask=None, Tensor? atten_mask=None, float scale=1., float keep_prob=1., int "
        "pre_tockens=2147483647, int next_tockens=2147483647, int inner_precise=0, SymInt[]? prefix=None, Tensor? "
        "actual_seq_qlen=None, Tensor? actual_seq_kvlen=None, int sparse_mode=0, bool gen_mask_parallel=True, bool "
        'sync=False, str softmax_layout="", Tensor? sink=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor, '
        "Tensor)"
    ),
    "npu_prompt_flash_attention": (
        "npu_prompt_flash_attention(Tensor query, Tensor key, Tensor value, *, Tensor? padding_mask=None, Tensor? "
        "atten_mask=None, Tensor? pse_shift=None, int[]? actual_seq_lengths=None, Tensor? deq_scale1=None, Tensor? "
        "quant_scale1=None, Tensor? deq_scale2=None, Tensor? quant_scale2=None, Tensor? quant_offset2=None, int "
        'num_heads=1, float scale_value=1., int pre_tokens=2147483647, int next_tokens=0, str input_layout="BSH", '
        "int num_key_value_heads=0, int[]? actual_seq_lengths_kv=None, int sparse_mode=0) -> Tensor"
    ),
    "npu_dynamic_quant": (
        "npu_dynamic_quant(Tensor input, *, Tensor? smooth_scales=None, Tensor? group_index=None, int? "
        'dst_type=None, str quant_mode="pertoken", float dst_type_max=0.) -> (Tensor, Tensor)'
    ),
    "npu_quant_matmul": (
        "npu_quant_matmul(Tensor x1, Tensor x2, Tensor scale, *, Tensor? offset=None, Tensor? pertoken_scale=None, "
        "Tensor? bias=None, int? output_dtype=None, int? x1_dtype=None, int? x2_dtype=None, int? "
        "pertoken_scale_dtype=None, int? scale_dtype=None, int[]? group_sizes=None, Tensor? y_scale=None) -> Tensor"
    ),
    "npu_rotate_quant": (
        "npu_rotate_quant(Tensor x, Tensor rotation, *, Tensor? alpha=None, int? dst_dtype=None, int? axis=-1, str? "
        'round_mode="rint", int? scale_alg=0, float? dst_type_max=0., bool? transpose_y=False) -> (Tensor, Tensor)'
    ),
}
"""Those of torch_npu 2.14.0 and 2.13.0, by the name of the operator in torch.ops.npu; without the namespace."""

_DIFFERENT: dict[str, dict[str, str | None]] = {
    "2.9.0": {
        "npu_rotary_mul": 'npu_rotary_mul(Tensor input, Tensor r1, Tensor r2, str rotary_mode="half") -> Tensor',
        "npu_fusion_attention": SCHEMAS["npu_fusion_attention"].replace(
            ", Tensor? dropout_mask=None, int seed=0, int offset=0", ""
        ),
        "npu_fusion_attention_v3": None,
        "npu_dynamic_quant": (
            "npu_dynamic_quant(Tensor input, *, Tensor? smooth_scales=None, Tensor? group_index=None, ScalarType? "
            "dst_type=None) -> (Tensor, Tensor)"
        ),
        "npu_quant_matmul": (
            "npu_quant_matmul(Tensor x1, Tensor x2, Tensor scale, *, Tensor? offset=None, Tensor? "
            "pertoken_scale=None, Tensor? bias=None, ScalarType? output_dtype=None, SymInt[]? group_sizes=None) -> "
            "Tensor"
        ),
        "npu_rotate_quant": None,
    }
}
"""What differs in older releases; None where the operator is missing."""


def of(release: str) -> dict[str, str]:
    """The schemas of a release of torch_npu, without the operators that it lacks."""
    schemas = {**SCHEMAS, **_DIFFERENT.get(release, {})}
    return {name: schema for name, schema in schemas.items() if schema is not None}
