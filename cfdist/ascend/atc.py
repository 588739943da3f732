"""OM files from an ONNX with ATC, the converter of Ascend's toolkit.

There is one OM for each batch size, or one for all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfdist import __version__
from cfdist.ascend import Limit, call_tool, reason_of
from cfdist.errors import UserError
from cfdist.files import atomic_write, fsync, removed_on_failure, resolved, sha256_of, write_text
from cfdist.model import ModelSpec, model_sha256

OM_MAGIC = b"IMOD"  # the first bytes of every OM file
OM_HEADER_BYTES = 256  # an OM begins with a header of this size; the model follows

# The options that cfdist sets itself, or that would make something else than the asked-for OM.
ATC_OWN = (
    *("framework", "model", "weight", "input_format", "input_shape", "input_shape_range"),
    *("dynamic_batch_size", "dynamic_image_size", "dynamic_dims", "output", "log", "soc_version"),
    *("insert_op_conf", "enable_small_channel", "mode", "om", "json", "singleop", "flagfile"),
    *("check_report", "display_model_info", "help"),
)

# ATC takes 2 to 100 batch sizes, or image sizes, in one OM.
MAX_PROFILES = 100

_SIZES = "--dynamic_image_size="
InputSize = tuple[int, int]  # rows and columns of an input, pixels


@dataclass(frozen=True)
class AtcModel:
    """What one ONNX needs for all its OM files; plain data.

    Attributes:
        onnx: The ONNX file that ATC is given.
        input_name: Its input's name, "image".
        height: Input rows, pixels.
        width: Input columns, pixels.
        soc_version: The chip, "Ascend310P3".
        aipp: Text of the AIPP file (`aipp_config`); `None` for an OM with float32 NCHW input.
        log: ATC's log level.
        extra: Further options, "--precision_mode=force_fp16".
        content: What `convert` writes into `onnx`; `None` if the file is the person's own.
        sizes: The input sizes of OM files that take several, in place of `height` and `width`.
    """

    onnx: Path
    input_name: str
    height: int
    width: int
    soc_version: str
    aipp: str | None = None
    log: str = "error"
    extra: tuple[str, ...] = ()
    content: bytes | None = None
    sizes: tuple[InputSize, ...] = ()

    def aipp_path(self, folder: Path) -> Path:
        """Where `convert` puts the AIPP file, one for all batch sizes."""
        return resolved(folder) / f"{self.onnx.stem}{'_sizes' * bool(self.sizes)}.aippconfig"

    def onnx_sha256(self) -> str:
        """The digest of what ATC is given."""
        if self.content is None:
            return model_sha256(self.onnx)
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class AtcCall:
    """How ATC is called.

    Attributes:
        log_folder: Gets a file of all that ATC prints for each OM; `None`: none.
        limit_s: Seconds that ATC may take for an OM.
        say: Gets a line on each OM when ATC begins, works and ends.
    """

    log_folder: Path | None = None
    limit_s: float = math.inf
    say: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class ConvertResult:
    """One OM.

    Attributes:
        batch: Its batch size, or the batch sizes of an OM with several.
        om: Its path.
        command: The command line; ATC writes the OM into the current folder.
        made: Whether this call made it; if not, it was there already, or this is a dry run.
    """

    batch: int | tuple[int, ...]
    om: Path
    command: str
    made: bool


def aipp_config(spec: ModelSpec, has_sizes: bool = False) -> str:
    """The static AIPP file; the chip then takes letterboxed BGR bytes and normalises them itself.

    For an OM that `has_sizes`, several, ATC wants 0 in place of the source's sides.

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
        f"src_image_size_w:{0 if has_sizes else spec.width}",
        f"src_image_size_h:{0 if has_sizes else spec.height}",
        "crop:false",
        *(["rbuv_swap_switch:true"] if spec.color == "RGB" else []),
        *(f"min_chn_{i}:{value}" for i, value in enumerate(low)),
        *(f"var_reci_chn_{i}:{spec.scale / value:.7f}" for i, value in enumerate(spec.std)),
    ]
    return "aipp_op{\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def atc_command(model: AtcModel, output: Path, batch: int | Sequence[int]) -> list[str]:
    """ATC's arguments, in the order of the published guide.

    Args:
        model: What to convert.
        output: The OM. ATC is given its name only, for it is called in a temporary folder; the
            AIPP file lies beside the OM.
        batch: Static batch size, or the batch sizes of one OM, which a run chooses from.
    """
    size = batch if isinstance(batch, int) else -1
    height, width = (-1, -1) if model.sizes else (model.height, model.width)
    command = [
        "atc",
        "--framework=5",  # ONNX
        f"--model={resolved(model.onnx)}",
        "--input_format=NCHW",
        f"--input_shape={model.input_name}:{size},3,{height},{width}",
        f"--output={output.stem}",
        f"--log={model.log}",
        f"--soc_version={model.soc_version}",
    ]
    if not isinstance(batch, int):
        command.append(f"--dynamic_batch_size={','.join(map(str, batch))}")
    if model.sizes:
        command.append(_SIZES + ";".join(f"{rows},{columns}" for rows, columns in model.sizes))
    if model.aipp is not None:
        aipp_path = model.aipp_path(output.parent)
        command += [f"--insert_op_conf={aipp_path}", "--enable_small_channel=1"]
    return command + list(model.extra)


def convert(
    model: AtcModel,
    out_dir: Path,
    batches: Sequence[int],
    dry_run: bool = False,
    dynamic: bool = False,
    call: AtcCall | None = None,
) -> list[ConvertResult]:
    """Make the OM of each batch size, unless the one that is there was made in the same way.

    The OM files are called "CenterFace_bs16.om", or with AIPP "CenterFace_bs16_aipp.om"; an OM of
    several batch sizes "CenterFace_dynamic.om", one of several input sizes
    "CenterFace_bs16_sizes.om". Beside each OM lies `<om>.json`: the digests of
    ONNX (`model_sha256`) and OM, command, AIPP text and versions.

    Args:
        model: What to convert.
        out_dir: Where the OM files go.
        batches: Batch sizes.
        dry_run: Only return the command lines, and write the files that they name.
        dynamic: Make one OM that takes any of the batch sizes.
        call: How ATC is called.

    Raises:
        UserError: `atc` is not there, failed or took too long (the lines that say why are in the
            message), or a file cannot be read or written. OM files that are complete stay; without
            one, nothing is left.
    """
    ends = "_aipp.om" if model.aipp else ".om"
    kind = "_sizes" if model.sizes else ""
    wanted: list[tuple[str, int | tuple[int, ...]]] = [(f"bs{b}{kind}", b) for b in batches]
    if dynamic:
        wanted = [("dynamic", _dynamic_batches(batches))]
    results: list[ConvertResult] = []
    with removed_on_failure(out_dir), _files_restored(out_dir, model, results):
        for name, batch in wanted:
            om = out_dir / f"{model.onnx.stem}_{name}{ends}"
            command = atc_command(model, om, batch)
            job = _Job(model, om, command, f"{om} ({len(results) + 1} of {len(wanted)})", name)
            try:
                made = job.write_inputs() if dry_run else job.make(call or AtcCall())
            except OSError as error:
                raise UserError(
                    f"convert: {error.filename or om} cannot be read or written ({error.strerror})"
                    f"{_finished(results)}"
                ) from None
            except UserError as error:
                raise UserError(f"{error}{_finished(results)}") from None
            results.append(ConvertResult(batch, om, shlex.join(command), made))
    return results


def _dynamic_batches(batches: Sequence[int]) -> tuple[int, ...]:
    """The different batch sizes, rising, as ATC wants them in one OM.

    Raises:
        UserError: fewer or more than ATC takes.
    """
    sizes = tuple(sorted(set(batches)))
    if not 2 <= len(sizes) <= MAX_PROFILES:
        raise UserError(
            f"convert.dynamic: one OM takes 2 to {MAX_PROFILES} batch sizes, "
            f"convert.batches={list(batches)} has {len(sizes)}; name others, or use "
            "convert.dynamic=false"
        )
    return sizes


def size_text(size: InputSize) -> str:
    """A size as `convert.sizes` has it."""
    return f"{size[0]}x{size[1]}"


def image_sizes(wanted: Iterable[InputSize], whose: str) -> tuple[InputSize, ...]:
    """The different input sizes of one OM, rising.

    Raises:
        UserError: fewer or more than ATC takes; the message calls them `whose`.
    """
    sizes = tuple(sorted(set(wanted)))
    if not 2 <= len(sizes) <= MAX_PROFILES:
        shown = f" ({size_text(sizes[0])})" if len(sizes) == 1 else ""
        raise UserError(
            f"convert.sizes: one OM takes 2 to {MAX_PROFILES} input sizes, {whose} "
            f"{len(sizes)}{shown}; name others as in convert.sizes=[640x640,704x1024], rows x "
            "columns, or use preprocess.size=letterbox with an OM of convert.sizes=null"
        )
    return sizes


def made_for_sizes(om: Path, sha256: str) -> tuple[InputSize, ...] | None:
    """The input sizes that an OM was made for, as the record beside it says; none if it has one.

    Returns:
        `None` if there is no record of the OM with this digest.
    """
    try:
        sidecar = json.loads(om.with_name(om.name + ".json").read_text(encoding="utf-8"))
        if sidecar["om_sha256"] != sha256:
            return None
        (sizes,) = [one for one in sidecar["command"] if one.startswith(_SIZES)] or [""]
        pairs = [one.split(",") for one in sizes.removeprefix(_SIZES).split(";") if one]
        return tuple((int(rows), int(columns)) for rows, columns in pairs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _finished(results: Sequence[ConvertResult]) -> str:
    """Which OM files are there when a later one fails, to end its message."""
    names = ", ".join(one.om.name for one in results)
    return f"; finished before it, and kept: {names}" if names else ""


@contextlib.contextmanager
def _files_restored(
    out_dir: Path, model: AtcModel, results: Sequence[ConvertResult]
) -> Iterator[None]:
    """If the `with` block fails before an OM is there, leave what ATC is given as it was."""
    written = [model.onnx] if model.content is not None else []
    written += [model.aipp_path(out_dir)] if model.aipp is not None else []
    before = {path: path.read_bytes() if path.is_file() else None for path in written}
    try:
        yield
    except BaseException:
        if not results:
            for path, content in before.items():
                with contextlib.suppress(OSError):
                    if content is None:
                        path.unlink(missing_ok=True)
                    elif path.read_bytes() != content:
                        path.write_bytes(content)
        raise


def toolkit_version() -> str | None:
    """The version of the sourced Ascend toolkit, as its `version.info` says; `None` if unknown."""
    homes = [os.environ.get(name) for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")]
    for folder in [Path(home) / inner for home in homes if home for inner in ("compiler", ".")]:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = (folder / "version.info").read_text(encoding="utf-8")
            if found := re.search(r"^[ \t]*version[ \t]*=[ \t]*(\S+)", text, re.I | re.M):
                return found[1]
    return None


def is_om(path: Path) -> bool:
    """Whether a file can be an OM: its first bytes are right, and more than a header is there."""
    try:
        with open(path, "rb") as file:
            return len(start := file.read(OM_HEADER_BYTES + 1)) > OM_HEADER_BYTES and (
                start.startswith(OM_MAGIC)
            )
    except OSError:
        return False


@dataclass(frozen=True)
class _Job:
    """One OM that is to be made.

    Attributes:
        model: What to convert.
        om: The OM.
        command: ATC's arguments.
        title: What the OM is called in the lines on the progress.
        name: What its log is called after, "bs16".
    """

    model: AtcModel
    om: Path
    command: list[str]
    title: str
    name: str

    def make(self, call: AtcCall) -> bool:
        """Make the OM, unless it is there; returns whether it was made."""
        recipe = {
            "onnx_sha256": self.model.onnx_sha256(),
            "command": self.command,
            "aipp": self.model.aipp,
        }
        sidecar_path = self.om.with_name(self.om.name + ".json")
        if _is_made(self.om, sidecar_path, recipe):
            call.say(f"{self.title}: up to date")
            return False
        started = time.monotonic()
        self._call_atc(call)
        sidecar = recipe | {
            "om_sha256": sha256_of(self.om),
            "toolkit_version": toolkit_version(),
            "cfdist_version": __version__,
        }
        write_text(sidecar_path, json.dumps(sidecar, indent=2) + "\n")
        call.say(f"{self.title}: made in {time.monotonic() - started:.1f} s")
        return True

    def _call_atc(self, call: AtcCall) -> None:
        """Call ATC in a temporary folder beside the OM, then put the OM in place."""
        tool = shutil.which(self.command[0])
        if tool is None:
            raise UserError(
                "convert: `atc` is not on PATH; source set_env.sh of the Ascend toolkit (CANN) "
                "first, or see the commands with convert.dry_run=true"
            )
        self.write_inputs()
        call.say(f"{self.title}: ATC works on it")
        log = call.log_folder and call.log_folder / f"atc_{self.name}.log"
        # ATC also leaves kernel_meta and fusion_result.json in the current folder.
        with tempfile.TemporaryDirectory(dir=self.om.parent, prefix=f".{self.om.stem}.") as folder:
            printed = call_tool(
                f"convert: atc for {self.om.name}",
                [tool, *self.command[1:]],
                "convert.dry_run=true shows its command",
                Path(folder),
                Limit(call.limit_s, "convert.limit_s=SECONDS gives it longer"),
                log,
                lambda seconds: call.say(f"{self.title}: ATC still works, {seconds:.0f} s"),
            )
            made = self._found(Path(folder), printed)
            fsync(made)
            made.replace(self.om)
            fsync(self.om.parent)

    def write_inputs(self) -> bool:
        """Write what ATC is given and is not the person's own; no OM is made by that."""
        self.om.parent.mkdir(parents=True, exist_ok=True)
        if self.model.content is not None:
            with atomic_write(self.model.onnx) as temporary:
                temporary.write_bytes(self.model.content)
        if self.model.aipp is not None:
            write_text(self.model.aipp_path(self.om.parent), self.model.aipp)
        return False

    def _found(self, folder: Path, printed: str) -> Path:
        """The OM that ATC has left in a folder.

        For an operating system or processor of its own the toolkit adds these to the name:
        "CenterFace_bs1_linux_aarch64.om".

        Raises:
            UserError: no OM, or a file that is none.
        """
        exact = folder / self.om.name
        made = [exact] if exact.is_file() else sorted(folder.glob("*.om"))
        if len(made) == 1 and is_om(made[0]):
            return made[0]
        found = ", ".join(f"{path.name} of {path.stat().st_size} bytes" for path in made)
        why = (
            f", which is not {self.om.name} (an OM begins with {OM_MAGIC.decode()} and has more "
            f"than {OM_HEADER_BYTES} bytes)"
        )
        raise UserError(
            f"convert: atc said it succeeded but left {found or 'no OM'}{why * bool(made)}; it "
            f"said: {reason_of(printed)}; see to the disk's free space, and run the job again"
        )


def _is_made(om: Path, sidecar_path: Path, recipe: dict[str, Any]) -> bool:
    """Whether the OM is there, whole, and made by the same recipe."""
    try:
        sidecar = json.loads(sidecar_path.read_text(encoding="utf-8"))
        same = all(sidecar[key] == value for key, value in recipe.items())
        return same and is_om(om) and bool(sidecar["om_sha256"] == sha256_of(om))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
