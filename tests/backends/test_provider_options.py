"""Options of ONNX Runtime's providers: whose they are, and what is refused."""

from __future__ import annotations

import pytest

from cfdist.backends.provider_options import as_words, numeric, settings_of_providers
from cfdist.errors import UserError

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
ALL = [TENSORRT, CUDA, CPU]


def test_each_option_goes_to_the_provider_that_has_it():
    options = {"prefer_nhwc": 1, "trt_fp16_enable": True, "trt_engine_cache_path": "a b"}
    found = settings_of_providers(ALL, options)
    assert found[TENSORRT] == {"trt_fp16_enable": "1", "trt_engine_cache_path": "a b"}
    assert found[CUDA]["prefer_nhwc"] == "1"
    assert found[CPU] == {}
    assert list(found) == ALL


def test_float32_stays_float32_unless_it_is_asked_for():
    assert settings_of_providers([CUDA, CPU], None)[CUDA]["use_tf32"] == "0"
    assert settings_of_providers([CUDA, CPU], {"use_tf32": True})[CUDA]["use_tf32"] == "1"


def test_a_provider_whose_options_are_not_known_reads_them_itself():
    found = settings_of_providers(["XnnpackExecutionProvider", CPU], {"intra_op_num_threads": 2})
    assert found == {"XnnpackExecutionProvider": {"intra_op_num_threads": "2"}, CPU: {}}


@pytest.mark.parametrize(
    ("providers", "options", "words"),
    [
        ([CPU], {"use_arena": 1}, f"'use_arena' is no option of {CPU}; leave it out, or add"),
        ([CUDA, CPU], {"use_tf23": 1}, "did you mean use_tf32"),
        ([CUDA, CPU], {"trt_fp16_enable": 1}, f"an option of {TENSORRT}, which is not in"),
        (ALL, {"device_id": 1}, r"'device_id' cannot be set: devices=\[0\] names the device"),
        ([CUDA], {"enable_cuda_graph": True}, "cannot be set: CUDA graphs need"),
        ([CUDA], {"user_compute_stream": 1}, "is no option of CUDA"),
        ([CUDA], {"use_tf32": "yes"}, "use_tf32=yes: must be true or false"),
        ([CUDA], {"use_tf32": 2}, "use_tf32=2: must be true or false"),
        ([CUDA], {"gpu_mem_limit": 1.5}, "gpu_mem_limit=1.5: must be a whole number from 0 up"),
        ([CUDA], {"gpu_mem_limit": True}, "must be a whole number"),
        ([CUDA], {"gpu_mem_limit": -1}, "must be a whole number"),
        ([CUDA], {"cudnn_conv_algo_search": "FAST"}, "must be EXHAUSTIVE or HEURISTIC or DEFAULT"),
    ],
)
def test_what_no_provider_takes_is_refused_by_name(providers, options, words):
    with pytest.raises(UserError, match=words):
        settings_of_providers(providers, options)


def test_a_cache_s_place_changes_no_number():
    assert numeric({"trt_engine_cache_path": "x", "trt_int8_enable": True}) == {
        "trt_int8_enable": True
    }
    assert numeric(None) == {}


def test_options_are_told_in_order():
    assert as_words({"b": True, "a": 1}) == " with a=1, b=true"
    assert as_words(None) == as_words({}) == ""
