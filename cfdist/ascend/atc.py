"""OM files from an ONNX with ATC, the converter of Ascend's toolkit; one file a batch size."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cfdist import __version__
from cfdist.errors import UserError
from cfdist.files import fsync, sha256_of, write_text

_LAST_LINES = 5  # of the output when ATC fails; they hold the reason


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

    def stem(self, batch: int) -> str:
        """The OM's file name without `.om`: "CenterFace_bs16", "CenterFace_bs16_aipp"."""
        return f"{self.onnx.stem}_bs{batch}{'_aipp' if self.aipp else ''}"

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


@dataclass(frozen=True)
class _Recipe:
    """Everything that decides what is in an OM."""

    onnx_sha256: str
    command: list[str]
    aipp: str | None


def aipp_config(
    mean: Sequence[float],
    std: Sequence[float],
    scale: float,
    color: str,
    height: int,
    width: int,
) -> str:
    """The static AIPP file; the chip then takes letterboxed BGR bytes and normalises them itself.

    The network wants (u8 * scale - mean) / std, AIPP gives (u8 - min) * var_reci: min = mean/scale,
    rounded to an integer, and var_reci = scale/std, 7 decimals. Both apply after the chip's swap of
    red and blue, so they are in `color` order
    (https://www.hiascend.com/document/detail/en/canncommercial/800/devaids/atc/atlasatc_16_0022.html).

    Args:
        mean: Per channel, in `color` order, as in `cfdist.model.ModelSpec`.
        std: Per channel, in `color` order.
        scale: What a u8 value is multiplied with before `mean` and `std`: 1/255 or 1.
        color: The order that the network wants; "RGB" has the chip swap.
        height: Input rows, pixels.
        width: Input columns, pixels.

    Raises:
        UserError: an order other than "BGR" or "RGB", or values outside AIPP's ranges.
    """
    if color not in ("BGR", "RGB"):
        raise UserError(f"model.color={color}: AIPP can give a network BGR or RGB; choose one")
    low = [round(value / scale) for value in mean]
    # AIPP's own ranges: min_chn 0 to 255, var_reci_chn a float16.
    if not all(0 <= value <= 255 for value in low) or not all(
        value > 0 and scale / value <= 65504 for value in std
    ):
        raise UserError(
            f"model.mean={list(mean)} model.std={list(std)}: AIPP cannot normalise like this (mean "
            "in u8 values must be 0 to 255, std above 0); use convert.aipp=false"
        )
    lines = [
        "aipp_mode:static",
        "input_format:RGB888_U8",
        f"src_image_size_w:{width}",
        f"src_image_size_h:{height}",
        "crop:false",
        *(["rbuv_swap_switch:true"] if color == "RGB" else []),
        *(f"min_chn_{i}:{value}" for i, value in enumerate(low)),
        *(f"var_reci_chn_{i}:{scale / value:.7f}" for i, value in enumerate(std)),
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

    Beside each OM lies `<om>.json`: the digests of ONNX and OM, command, AIPP text and versions.

    Args:
        model: What to convert.
        out_dir: Where the OM files go.
        batches: Batch sizes.
        dry_run: Only return the command lines; nothing is written.

    Raises:
        UserError: `atc` is not there or failed (its last lines are in the message), or a file
            cannot be read or written. OM files that are complete stay.
    """
    oms = {batch: Path(out_dir) / f"{model.stem(batch)}.om" for batch in batches}
    if dry_run:
        return [
            ConvertResult(batch, om, shlex.join(atc_command(model, om, batch)), made=False)
            for batch, om in oms.items()
        ]
    try:
        digest = sha256_of(model.onnx)
    except OSError as error:
        raise UserError(
            f"convert: {model.onnx} cannot be read ({error.strerror}); give an ONNX, as made with "
            "job=export"
        ) from None
    results = []
    for batch, om in oms.items():
        recipe = _Recipe(digest, atc_command(model, om, batch), model.aipp)
        made = not _is_made(om, recipe)
        if made:
            try:
                _make(model, om, recipe)
            except OSError as error:
                raise UserError(
                    f"convert: {error.filename or om} cannot be written ({error.strerror})"
                ) from None
        results.append(ConvertResult(batch, om, shlex.join(recipe.command), made))
    return results


def toolkit_version() -> str | None:
    """The version of the sourced Ascend toolkit, as its `version.info` says; `None` if unknown."""
    homes = [os.environ.get(name) for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")]
    folders = [Path(home) / inner for home in homes if home for inner in ("compiler", ".")]
    for folder in folders:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for line in (folder / "version.info").read_text(encoding="utf-8").splitlines():
                key, _, value = line.partition("=")
                if key.strip().lower() == "version" and value.strip():
                    return value.strip()
    return None


def _sidecar_path(om: Path) -> Path:
    return om.with_name(om.name + ".json")


def _is_made(om: Path, recipe: _Recipe) -> bool:
    """Whether the OM is there, whole, and made by the same recipe."""
    try:
        sidecar = json.loads(_sidecar_path(om).read_text(encoding="utf-8"))
        same = all(sidecar[key] == value for key, value in asdict(recipe).items())
        return same and bool(sidecar["om_sha256"] == sha256_of(om))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _make(model: AtcModel, om: Path, recipe: _Recipe) -> None:
    """Call ATC in a temporary folder beside the target, then put OM and sidecar in place."""
    om.parent.mkdir(parents=True, exist_ok=True)
    if model.aipp is not None:
        write_text(model.aipp_path(om.parent), model.aipp)
    # ATC also leaves kernel_meta and fusion_result.json in the current folder.
    with tempfile.TemporaryDirectory(dir=om.parent, prefix=f".{om.stem}.") as folder:
        _call(recipe.command, Path(folder))
        made = Path(folder) / om.name
        if not made.is_file():
            raise UserError(
                f"convert: atc said it succeeded but wrote no {om.name}; call it by hand: "
                f"{shlex.join(recipe.command)}"
            )
        fsync(made)
        made.replace(om)
        fsync(om.parent)
    sidecar = asdict(recipe) | {
        "om_sha256": sha256_of(om),
        "toolkit_version": toolkit_version(),
        "cfdist_version": __version__,
    }
    write_text(_sidecar_path(om), json.dumps(sidecar, indent=2) + "\n")


def _call(command: list[str], folder: Path) -> None:
    """Run ATC in a folder.

    Raises:
        UserError: ATC is not there, or failed.
    """
    tool = shutil.which(command[0])
    if tool is None:
        raise UserError(
            "convert: `atc` is not on PATH; source set_env.sh of the Ascend toolkit (CANN) first, "
            "or see the commands with convert.dry_run=true"
        )
    try:
        done = subprocess.run(
            [tool, *command[1:]],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise UserError(f"convert: {tool} cannot be run ({error.strerror})") from None
    if done.returncode != 0:
        said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise UserError(
            f"convert: atc failed with status {done.returncode}: "
            f"{' | '.join(said[-_LAST_LINES:]) or 'it said nothing'} (command: "
            f"{shlex.join(command)})"
        )
