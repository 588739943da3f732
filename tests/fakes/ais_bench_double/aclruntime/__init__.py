"""The C++ extension `aclruntime`, played by a CPU.

Environment variables, all optional:
    ASCEND_RT_VISIBLE_DEVICES: as on a real host; an index counts within this list.
    AIS_BENCH_DOUBLE_DEVICES: chips of the host (default 2).
    AIS_BENCH_DOUBLE_ENGINE: "onnxruntime" (default) or "openvino" (about 3 times faster).
    AIS_BENCH_DOUBLE_THREADS: CPU threads a session (default 1).
    AIS_BENCH_DOUBLE_LOG: a file that gets one JSON line for every chip opened.
    AIS_BENCH_DOUBLE_FLAT: where "1", outputs come as flat arrays.
    AIS_BENCH_DOUBLE_TIMES: where "pairs", `exec_time_list` holds (start, end), not durations.
    AIS_BENCH_DOUBLE_IMPORTS: a module that the command line imports, as the real one does
        pkg_resources.
    AIS_BENCH_DOUBLE_GENERATION: see `ais_bench.infer.interface`.
"""

from aclruntime.om import AclError, dtype, make_om, parse_aipp
from aclruntime.session import BaseTensor, InferenceSession, Tensor, session_options

__all__ = [
    "AclError",
    "BaseTensor",
    "InferenceSession",
    "Tensor",
    "dtype",
    "make_om",
    "parse_aipp",
    "session_options",
]
