"""OM files from an ONNX with ATC, the converter of Ascend's toolkit; one file a batch size."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfdist import __version__
from cfdist.ascend import call_tool
from cfdist.errors import UserError
from cfdist.files import fsync, sha256_of, write_text
from cfdist.model import ModelSpec, model_sha256


@dataclass(frozen=True)
class AtcModel:
    """What one ONNX needs for all its OM files; plain data.

    Attributes:
        onnx: The ONNX file.
        input_name: Its input's name, "image".
        height: Input rows, pixels.
        width: Input columns, pixels.
        soc_version: The chip, "Ascend310P3".
        aipp: Text of the AIPP file (`aipp_config`); `None` for an OM with float32 NCHW input.
        log: ATC's log level.
    """

    onnx: Path
    input_name: str
    height: int
    width: int
    soc_version: str
    aipp: str | None = None
    log: str = "error"

    def aipp_path(self, folder: Path) -> Path:
        """Where `convert` puts the AIPP file, one for all batch sizes."""
        return folder.resolve() / f"{self.onnx.stem}.aippconfig"


@dataclass(frozen=True)
class ConvertResult:
    """One OM.

    Attributes:
        batch: Its batch size.
        om: Its path.
        command: The command line; ATC writes the OM into the current folder.
        made: Whether this call made it; if not, it was there already, or this is a dry run.
    """

    batch: int
    om: Path
    command: str
    made: bool


def aipp_config(spec: ModelSpec) -> str:
    """The static AIPP file; the chip then takes letterboxed BGR bytes and normalises them itself.

    The network wants (u8 * scale - mean) / std, AIPP gives (u8 - min) * var_reci: min = mean/scale,
    rounded to an integer, and var_reci = scale/std, 7 decimals. Both apply after the chip's swap of
    red and blue, so they are in the order of `spec.color`
    (https://www.hiascend.com/document/detail/en/canncommercial/800/devaids/atc/atlasatc_16_0022.html).

    Raises:
        UserError: values outside AIPP's ranges.
    """
    low = [round(value / spec.scale) for value in spec.mean]
    # AIPP's own ranges: min_chn 0 to 255, var_reci_chn a float16.
    if not all(0 <= value <= 255 for value in low) or not all(
        value > 0 and spec.scale / value <= 65504 for value in spec.std
    ):
        raise UserError(
            f"model.mean={list(spec.mean)} model.std={list(spec.std)}: AIPP cannot normalise like "
            "this (mean in u8 values must be 0 to 255, std above 0); use convert.aipp=false"
        )
    lines = [
        "aipp_mode:static",
        "input_format:RGB888_U8",
        f"src_image_size_w:{spec.width}",
        f"src_image_size_h:{spec.height}",
        "crop:false",
        *(["rbuv_swap_switch:true"] if spec.color == "RGB" else []),
        *(f"min_chn_{i}:{value}" for i, value in enumerate(low)),
        *(f"var_reci_chn_{i}:{spec.scale / value:.7f}" for i, value in enumerate(spec.std)),
    ]
    return "aipp_op{\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def atc_command(model: AtcModel, output: Path, batch: int) -> list[str]:
    """ATC's arguments, in the order of the published guide.

    Args:
        model: What to convert.
        output: The OM. ATC is given its name only, for it is called in a temporary folder; the
            AIPP file lies beside the OM.
        batch: Static batch size.
    """
    command = [
        "atc",
        "--framework=5",  # ONNX
        f"--model={model.onnx.resolve()}",
        "--input_format=NCHW",
        f"--input_shape={model.input_name}:{batch},3,{model.height},{model.width}",
        f"--output={output.stem}",
        f"--log={model.log}",
        f"--soc_version={model.soc_version}",
    ]
    if model.aipp is not None:
        aipp_path = model.aipp_path(output.parent)
        command += [f"--insert_op_conf={aipp_path}", "--enable_small_channel=1"]
    return command


def convert(
    model: AtcModel, out_dir: Path, batches: Sequence[int], dry_run: bool = False
) -> list[ConvertResult]:
    """Make the OM of each batch size, unless the one that is there was made in the same way.

    The OM files are called "CenterFace_bs16.om", or with AIPP "CenterFace_bs16_aipp.om". Beside
    each OM lies `<om>.json`: the digests of ONNX (`model_sha256`) and OM, command, AIPP text and
    versions.

    Args:
        model: What to convert.
        out_dir: Where the OM files go.
        batches: Batch sizes.
        dry_run: Only return the command lines; nothing is written.

    Raises:
        UserError: `atc` is not there or failed (its last lines are in the message), or a file
            cannot be read or written. OM files that are complete stay.
    """
    results = []
    for batch in batches:
        om = out_dir / f"{model.onnx.stem}_bs{batch}{'_aipp' if model.aipp else ''}.om"
        command = atc_command(model, om, batch)
        try:
            made = not dry_run and _make(model, om, command)
        except OSError as error:
            raise UserError(
                f"convert: {error.filename or om} cannot be read or written ({error.strerror})"
            ) from None
        results.append(ConvertResult(batch, om, shlex.join(command), made))
    return results


def toolkit_version() -> str | None:
    """The version of the sourced Ascend toolkit, as its `version.info` says; `None` if unknown."""
    homes = [os.environ.get(name) for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")]
    for folder in [Path(home) / inner for home in homes if home for inner in ("compiler", ".")]:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = (folder / "version.info").read_text(encoding="utf-8")
            if found := re.search(r"^[ \t]*version[ \t]*=[ \t]*(\S+)", text, re.I | re.M):
                return found[1]
    return None


def _make(model: AtcModel, om: Path, command: list[str]) -> bool:
    """Make one OM, unless it is there; returns whether it was made."""
    recipe = {"onnx_sha256": model_sha256(model.onnx), "command": command, "aipp": model.aipp}
    sidecar_path = om.with_name(om.name + ".json")
    if _is_made(om, sidecar_path, recipe):
        return False
    _call_atc(model, om, command)
    sidecar = recipe | {
        "om_sha256": sha256_of(om),
        "toolkit_version": toolkit_version(),
        "cfdist_version": __version__,
    }
    write_text(sidecar_path, json.dumps(sidecar, indent=2) + "\n")
    return True


def _is_made(om: Path, sidecar_path: Path, recipe: dict[str, Any]) -> bool:
    """Whether the OM is there, whole, and made by the same recipe."""
    try:
        sidecar = json.loads(sidecar_path.read_text(encoding="utf-8"))
        same = all(sidecar[key] == value for key, value in recipe.items())
        return same and bool(sidecar["om_sha256"] == sha256_of(om))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _call_atc(model: AtcModel, om: Path, command: list[str]) -> None:
    """Call ATC in a temporary folder beside the OM, then put the OM in place."""
    om.parent.mkdir(parents=True, exist_ok=True)
    if model.aipp is not None:
        write_text(model.aipp_path(om.parent), model.aipp)
    tool = shutil.which(command[0])
    if tool is None:
        raise UserError(
            "convert: `atc` is not on PATH; source set_env.sh of the Ascend toolkit (CANN) first, "
            "or see the commands with convert.dry_run=true"
        )
    by_hand = f"call it by hand: {shlex.join(command)}"
    # ATC also leaves kernel_meta and fusion_result.json in the current folder.
    with tempfile.TemporaryDirectory(dir=om.parent, prefix=f".{om.stem}.") as folder:
        call_tool("convert: atc", [tool, *command[1:]], by_hand, Path(folder))
        made = Path(folder) / om.name
        if not made.is_file():
            raise UserError(f"convert: atc said it succeeded but wrote no {om.name}; {by_hand}")
        fsync(made)
        made.replace(om)
        fsync(om.parent)
