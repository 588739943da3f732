"""Options of ONNX Runtime's execution providers: whose each one is, and whether its value fits.

Sources of the tables: the provider pages of ONNX Runtime's documentation, and the parsers of its
sources (`cuda_execution_provider_info.cc`, `tensorrt_execution_provider_info.cc`). Left out are
addresses in a process's memory, and CUDA graphs, which would read each batch from the place of the
first one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cfdist.errors import UserError, did_you_mean

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"

# An option's value: a type, or the words that it may be.
_Kind = type | tuple[str, ...]


def _of(kind: type, names: str) -> dict[str, _Kind]:
    return dict.fromkeys(names.split(), kind)


# Providers whose options are known. ONNX Runtime ignores any option of the first two.
_OPTIONS: dict[str, dict[str, _Kind]] = {
    CPU_PROVIDER: {},
    "AzureExecutionProvider": {},
    CUDA_PROVIDER: {
        "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
        "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    }
    | _of(int, "gpu_mem_limit tunable_op_max_tuning_duration_ms")
    | _of(
        bool,
        "cudnn_conv1d_pad_to_nc1d cudnn_conv_use_max_workspace do_copy_in_default_stream "
        "enable_skip_layer_norm_strict_mode prefer_nhwc tunable_op_enable tunable_op_tuning_enable "
        "use_ep_level_unified_stream use_tf32",
    ),
    TENSORRT_PROVIDER: _of(
        int,
        "trt_auxiliary_streams trt_builder_optimization_level trt_dla_core "
        "trt_ep_context_embed_mode trt_max_partition_iterations trt_max_workspace_size "
        "trt_min_subgraph_size",
    )
    | _of(
        str,
        "trt_engine_cache_path trt_engine_cache_prefix trt_engine_decryption_lib_path "
        "trt_ep_context_file_path trt_extra_plugin_lib_paths trt_int8_calibration_table_name "
        "trt_onnx_model_folder_path trt_op_types_to_exclude trt_profile_max_shapes "
        "trt_profile_min_shapes trt_profile_opt_shapes trt_tactic_sources trt_timing_cache_path",
    )
    | _of(
        bool,
        "trt_bf16_enable trt_build_heuristics_enable trt_context_memory_sharing_enable "
        "trt_detailed_build_log trt_dla_enable trt_dump_ep_context_model trt_dump_subgraphs "
        "trt_engine_cache_enable trt_engine_decryption_enable trt_engine_hw_compatible "
        "trt_force_sequential_engine_build trt_force_timing_cache trt_fp16_enable trt_int8_enable "
        "trt_int8_use_native_calibration_table trt_layer_norm_fp32_fallback trt_sparsity_enable "
        "trt_timing_cache_enable trt_weight_stripped_engine_enable",
    ),
}

# What holds unless an option says otherwise: float32 is float32, and no kernel is chosen by timing,
# so that two devices, and two runs, compute the same.
_DEFAULTS = {CUDA_PROVIDER: {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}}

# They say where caches lie and what is written beside, and change no number.
_NOT_NUMERIC = _of(
    bool,
    "trt_detailed_build_log trt_dump_subgraphs trt_engine_cache_enable trt_timing_cache_enable",
) | _of(str, "trt_engine_cache_path trt_engine_cache_prefix trt_timing_cache_path")
_ELSEWHERE = {
    "device_id": "devices=[0] names the device",
    "enable_cuda_graph": "CUDA graphs need inputs at one address, which this backend does not keep",
    "trt_cuda_graph_enable": "CUDA graphs need inputs at one address, which this backend does not "
    "keep",
}


def settings_of_providers(
    providers: Sequence[str], options: Mapping[str, Any] | None
) -> dict[str, dict[str, str]]:
    """Each provider with the options that ONNX Runtime gets for it.

    An option belongs to the first provider that knows it, else to the first one whose options are
    not known here: that one reads them itself.

    Args:
        providers: By falling preference.
        options: `backend.provider_options`.

    Raises:
        UserError: no provider has such an option, or not with such a value.
    """
    found = {name: dict(_DEFAULTS.get(name, {})) for name in providers}
    for option, value in (options or {}).items():
        owners = [name for name in providers if option in _OPTIONS.get(name, {})]
        owners += [name for name in providers if name not in _OPTIONS]
        if option in _ELSEWHERE or not owners:
            _refuse(option, providers)
        found[owners[0]][option] = _as_text(option, value, _OPTIONS.get(owners[0], {}).get(option))
    return found


def numeric(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those of the options that may change a model's numbers."""
    return {name: value for name, value in (options or {}).items() if name not in _NOT_NUMERIC}


def as_words(options: Mapping[str, Any] | None) -> str:
    """The options for a line of results: " with trt_fp16_enable=true"; empty without any."""
    words = [
        f"{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in sorted((options or {}).items())
    ]
    return f" with {', '.join(words)}" if words else ""


def _refuse(option: str, providers: Iterable[str]) -> None:
    """Raise a `UserError` for an option that no provider of the run has."""
    message = f"backend.provider_options: {option!r} "
    if option in _ELSEWHERE:
        raise UserError(f"{message}cannot be set: {_ELSEWHERE[option]}; leave it out")
    other = [name for name, known in _OPTIONS.items() if option in known]
    if other:
        raise UserError(
            f"{message}is an option of {other[0]}, which is not in backend.providers="
            f"[{', '.join(providers)}]; add it there, before the others"
        )
    known = [name for one in providers for name in _OPTIONS[one]]
    hint = did_you_mean(option, known) or "; leave it out" + (
        "" if known else f", or add {CUDA_PROVIDER} or another one that has options"
    )
    raise UserError(f"{message}is no option of {' or '.join(providers)}{hint}")


def _as_text(option: str, value: Any, kind: _Kind | None) -> str:
    """A value as ONNX Runtime reads it; `kind` is `None` for an option that is not known here.

    Raises:
        UserError: it is of another kind.
    """
    wanted = ""
    if isinstance(kind, tuple):
        wanted = "" if value in kind else " or ".join(kind)
    elif kind is bool:
        wanted = "" if isinstance(value, bool) or value in (0, 1) else "true or false"
    elif kind is int:
        is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        wanted = "" if is_whole else "a whole number from 0 up"
    if wanted:
        raise UserError(f"backend.provider_options: {option}={value}: must be {wanted}")
    return str(int(value)) if isinstance(value, bool) else str(value)
