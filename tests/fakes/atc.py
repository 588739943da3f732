"""ATC's command line, played: strict about its options, writes the double's OM."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

REQUIRED = {"framework", "model", "input_format", "input_shape", "output", "soc_version"}
OPTIONAL = {
    *("log", "insert_op_conf", "enable_small_channel", "dynamic_batch_size"),
    "dynamic_image_size",
    *("precision_mode", "op_select_implmode", "buffer_optimize"),
}
LOG_LEVELS = {"debug", "info", "warning", "error", "null"}


def main(argv: list[str], calls: str) -> int:
    """Convert as told; returns the exit status."""
    with open(calls, "a", encoding="utf-8") as file:
        file.write(shlex.join(argv) + "\n")
    print("ATC start working now, please wait for a moment.")
    try:
        convert(parse(argv))
    except RefusalError as refusal:
        print("ATC run failed, Please check the detail log, Try 'atc --help' for more information")
        print(refusal)
        return 1
    print("ATC run success, welcome to the next use.")
    return 0


class RefusalError(Exception):
    """An option or a model that ATC does not take."""


def parse(argv: list[str]) -> dict[str, str]:
    """Options from `--name=value` and `--name value`."""
    options: dict[str, str] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        found = re.fullmatch(r"--(\w+)(?:=(.*))?", word, re.DOTALL)
        if found is None or found[1] not in REQUIRED | OPTIONAL:
            raise RefusalError(f"E10001: unknown option {word!r}")
        if found[1] in options:
            raise RefusalError(f"E10001: option {found[1]} twice")
        if found[2] is None and not rest:
            raise RefusalError(f"E10001: option {found[1]} without a value")
        options[found[1]] = found[2] if found[2] is not None else rest.pop(0)
    missing = REQUIRED - options.keys()
    if missing:
        raise RefusalError(f"E10004: missing {', '.join(sorted(missing))}")
    fixed = {"framework": "5", "input_format": "NCHW", "enable_small_channel": "1"}
    for name, value in fixed.items():
        if options.get(name, value) != value:
            raise RefusalError(f"E10002: {name} is {options[name]!r}, expected {value!r}")
    if not re.fullmatch(r"Ascend\w+", options["soc_version"]):
        raise RefusalError(f"E10003: soc_version {options['soc_version']!r}")
    if options.get("log", "null") not in LOG_LEVELS:
        raise RefusalError(f"E10003: log {options['log']!r}")
    return options


def image_sizes(options: dict[str, str]) -> list[list[int]]:
    """The [height, width] of `--dynamic_image_size`; none without the option."""
    if "dynamic_image_size" not in options:
        return []
    if "dynamic_batch_size" in options:
        raise RefusalError("E10009: dynamic_image_size and dynamic_batch_size exclude each other")
    text = options["dynamic_image_size"]
    if not re.fullmatch(r"\d+,\d+(;\d+,\d+)*", text):
        raise RefusalError(f"E10018: dynamic_image_size {text!r}")
    sizes = [[int(side) for side in one.split(",")] for one in text.split(";")]
    if not 2 <= len(sizes) <= 100 or len({tuple(size) for size in sizes}) < len(sizes):
        raise RefusalError(f"E10036: dynamic_image_size has {len(sizes)}, the range is (1, 100]")
    return sizes


def convert(options: dict[str, str]) -> None:
    """Write `<output>.om`."""
    import onnx
    from aclruntime.om import make_om

    shape = re.fullmatch(r"(.+):(-1|\d+),3,(-1|\d+),(-1|\d+)", options["input_shape"])
    dynamic, sizes = options.get("dynamic_batch_size"), image_sizes(options)
    if shape is None or (shape[2] == "-1") != (dynamic is not None):
        raise RefusalError(f"E10012: input_shape {options['input_shape']!r}")
    if {side == "-1" for side in shape.groups()[2:]} != {bool(sizes)}:
        raise RefusalError(f"E10012: input_shape {options['input_shape']!r}")
    # A toolkit of an operating system or processor of its own names its OM files after these.
    target = Path(options["output"] + os.environ.get("FAKE_ATC_PLATFORM", "") + ".om")
    if os.environ.get("FAKE_ATC_FAIL"):
        target.write_bytes(b"IMOD half")
        raise RefusalError(os.environ["FAKE_ATC_FAIL"])
    try:
        model = onnx.load(options["model"])
    except Exception as error:
        raise RefusalError(f"E16005: cannot parse {options['model']}: {error}") from None
    if shape[1] not in {value.name for value in model.graph.input}:
        raise RefusalError(f"E10016: no input {shape[1]!r}")
    aipp = None
    if "insert_op_conf" in options:
        aipp = Path(options["insert_op_conf"]).read_text(encoding="utf-8")
    size, height, width = (int(side) for side in shape.groups()[1:])
    height, width = sizes[0] if sizes else (height, width)
    batch = [int(one) for one in dynamic.split(",")] if dynamic else size
    make_om(
        model.SerializeToString(),
        target,
        batch,
        aipp,
        height=height,
        width=width,
        soc_version=options["soc_version"],
        flags={name: options[name] for name in OPTIONAL & options.keys()},
        sizes=sizes,
    )
    # ATC leaves these in the folder where it was called.
    Path("fusion_result.json").write_text(json.dumps([]))
    Path("kernel_meta").mkdir(exist_ok=True)
