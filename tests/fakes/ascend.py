"""The Ascend host's parts for tests: an `ais_bench` to import, an `atc`, a small network."""

from __future__ import annotations

import os
import stat
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

DOUBLE = Path(__file__).resolve().parent / "ais_bench_double"
GENERATIONS = ("0.0.2", "later")
OUTPUT_NAMES = ("output1", "output2", "output3", "output4")


NPU_SMI_CARD = """\
| {card}       310P3     | OK              | 15.8         42                0    / 0              |
| 0       {card}         | 0000:8{card}:00.0    | 0            1074 / 21534                    |
+===================+=================+======================================================+
"""


def install_npu_smi(monkeypatch: pytest.MonkeyPatch, folder: Path, chips: int = 2) -> None:
    """Put an `npu-smi` on PATH whose table shows so many 310P3 cards."""
    folder.mkdir(parents=True, exist_ok=True)
    table = """\
| NPU     Name      | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device    | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===================+=================+======================================================+
""" + "".join(NPU_SMI_CARD.format(card=card) for card in range(chips))
    script = folder / "npu-smi"
    script.write_text(f"#!/bin/sh\ncat <<'TABLE'\n{table}TABLE\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def double_environment(generation: str = "later") -> dict[str, str]:
    """The variables with which a process finds the double of a generation."""
    places = filter(None, [str(DOUBLE), os.environ.get("PYTHONPATH")])
    return {"PYTHONPATH": os.pathsep.join(places), "AIS_BENCH_DOUBLE_GENERATION": generation}


def install_double(monkeypatch: pytest.MonkeyPatch, generation: str = "later") -> None:
    """Make `ais_bench` of one generation importable, in this process and in its children."""
    for name in [n for n in sys.modules if n.split(".")[0] in ("ais_bench", "aclruntime")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(DOUBLE)
    for name, value in double_environment(generation).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)


def small_network(
    height: int = 64,
    width: int = 64,
    names: tuple[str, ...] = OUTPUT_NAMES,
    channels: tuple[int, ...] = (1, 2, 2, 10),
) -> bytes:
    """An ONNX with CenterFace's surface: input `image`, four heads at a quarter of the size.

    One strided convolution a head with weights of its own, so that no two heads, pictures,
    channels or colours can be exchanged unnoticed.
    """
    random = np.random.default_rng(7)
    nodes, weights, outputs = [], [], []
    for name, count in zip(names, channels, strict=True):
        kernel = random.normal(size=(count, 3, 4, 4)).astype(np.float32) / 7
        weights.append(numpy_helper.from_array(kernel, f"{name}.weight"))
        inputs = ["image", f"{name}.weight"]
        if count == 1:
            nodes.append(helper.make_node("Conv", inputs, ["hm.logit"], "Conv_hm", strides=[4, 4]))
            nodes.append(helper.make_node("Sigmoid", ["hm.logit"], [name], "Sigmoid_103"))
        else:
            nodes.append(helper.make_node("Conv", inputs, [name], f"Conv_{name}", strides=[4, 4]))
        shape = ["batch", count, height // 4, width // 4]
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, height, width])
    graph = helper.make_graph(nodes, "heads", [image], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def install_atc(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Put an `atc` on PATH that is strict about its arguments and writes the double's OM.

    Every call appends its arguments to the returned file, one line a call. Where the environment
    has FAKE_ATC_FAIL, the call writes half an OM, says why, and fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    calls = folder / "calls.txt"
    script = folder / "atc"
    script.write_text(
        textwrap.dedent(
            f"""\
            #!{sys.executable}
            import sys
            sys.path[:0] = [{str(DOUBLE)!r}, {str(DOUBLE.parent)!r}]
            from atc import main
            sys.exit(main(sys.argv[1:], {str(calls)!r}))
            """
        )
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return calls
