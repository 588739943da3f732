"""What a host itself has: cores, memory, folders, locks, chips. On a cluster each node is asked."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from cfdist.ascend.npu_smi import read_host
from cfdist.backends import BACKENDS
from cfdist.distributed.starting import check_loopback, ray_folder, unusable
from cfdist.doctor.packages import remedy_of, try_imports
from cfdist.doctor.table import Finding, State, looked_at
from cfdist.errors import UserError
from cfdist.machine import available_cores, available_memory

_SHARED_MEMORY = Path("/dev/shm")
_LEAST_SHARED, _LEAST_MEMORY = 256 << 20, 2 << 30  # bytes
_NPU_FILES = "davinci[0-9]*"
_DRIVER = Path("/usr/local/Ascend/driver/version.info")
_SET_ENV = Path("/usr/local/Ascend/ascend-toolkit/set_env.sh")
_TOOLKIT = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")  # set by set_env.sh
_VERSION = re.compile(r"(?im)^version\s*=\s*\[?([\w.-]+)")


def host_findings(needs_npus: bool = False) -> list[Finding]:
    """What this host has; needs nothing but this process."""
    return [
        looked_at("cores", _cores),
        looked_at("memory", _memory, "note"),
        looked_at("/dev/shm", _shared_memory, "note"),
        looked_at("temporary files", _temporary),
        looked_at("loopback", _loopback),
        looked_at("Ray's token", _token),
        *_npus(needs_npus),
    ]


def _cores() -> str:
    cores, there = available_cores(), os.cpu_count() or 1
    limit = "" if cores >= there else f" of {there}: this process, or its control group, is limited"
    return f"{cores}{limit}"


def _memory() -> str:
    free, there = available_memory(), psutil.virtual_memory().total
    found = f"{free / 1e9:.1f} of {there / 1e9:.1f} GB free to this process"
    if free < _LEAST_MEMORY:
        raise UserError(
            f"{found}; end what else runs here, or raise the container's limit; devices=1 "
            "backend.streams=1 model.batch=1 takes the least"
        )
    return found


def _shared_memory() -> str:
    # A run was tried on each of these: it ends well.
    slow = (
        "so that Ray's object store goes to the temporary folder, which is slower; docker run "
        "--shm-size=2g, or as root: mount -t tmpfs -o size=2g tmpfs /dev/shm"
    )
    if not _SHARED_MEMORY.is_dir():
        raise UserError(f"is not there, {slow}")
    try:
        status = os.statvfs(_SHARED_MEMORY)
        # A name that nobody can foresee: everybody may write to this folder.
        with tempfile.NamedTemporaryFile(dir=_SHARED_MEMORY, prefix="cfdist-doctor-") as file:
            file.write(b"x")
    except OSError as error:
        raise UserError(f"cannot be written to ({error.strerror}), {slow}") from None
    free = status.f_bavail * status.f_frsize
    found = f"{free / 1e6:.0f} MB free"
    if free < _LEAST_SHARED:
        raise UserError(f"{found}, {slow}")
    return found


def _temporary() -> str:
    folder = ray_folder()
    asked = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or str(folder)
    free = shutil.disk_usage(folder).free
    why = "" if Path(asked) == folder else f" in place of {asked}: {unusable(Path(asked))}"
    return f"{folder}{why}, {free / 1e9:.1f} GB free"


def _loopback() -> str:
    check_loopback()
    return "works"


def _token() -> str:
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return f"RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']}: none is asked for"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    if named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        if not os.access(named, os.R_OK):
            raise UserError(
                f"RAY_AUTH_TOKEN_PATH={named}: cannot be read; unset RAY_AUTH_TOKEN_PATH, or name "
                "a file that holds the token"
            )
        return named
    path = Path(os.path.expanduser("~"), ".ray", "auth_token")
    return str(path) if os.access(path, os.R_OK) else "made by the first run"


def locks_and_room(folder: Path, needed: int) -> list[Finding]:
    """Whether results can be written to a folder that may not be there yet.

    Args:
        folder: The run's.
        needed: About how many bytes the run writes.
    """
    near = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    if not near.is_dir() or not os.access(near, os.W_OK | os.X_OK):
        return [
            Finding(
                "FAULT",
                "results",
                f"{near} cannot be written to",
                "choose another output_dir=FOLDER",
            )
        ]
    free = shutil.disk_usage(near).free
    room = Finding("ok", "results", f"{near}, {free / 1e9:.1f} GB free")
    if free < needed:
        room = Finding(
            "FAULT",
            "results",
            f"{near}: {free / 1e6:.0f} MB free, about {needed / 1e6:.0f} MB are written",
            "make room, or choose another output_dir=FOLDER",
        )
    locks = Finding("ok", "file locks", "work")
    try:
        with _opened(near) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    except OSError as error:
        locks = Finding(
            "note",
            "file locks",
            f"not in {near} ({error.strerror}): a file .holder says who uses a run's folder",
        )
    return [room, locks]


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _npus(is_needed: bool) -> list[Finding]:
    """The chips, their driver and the toolkit; one line where there are none, nor needed."""
    tool = shutil.which("npu-smi")
    files = sorted(Path("/dev").glob(_NPU_FILES))
    if not (is_needed or tool or files):
        return [Finding("ok", "NPUs", "none (no npu-smi, no /dev/davinci*)")]
    fault: State = "FAULT" if is_needed else "note"
    return [
        *_chips(fault),
        looked_at("NPU driver", _driver, "note"),
        looked_at("CANN toolkit", _toolkit, "note"),
        looked_at("ais_bench", _ais_bench, fault),
        looked_at("ATC", _atc, "note"),
    ]


def _chips(fault: State) -> list[Finding]:
    """The chips that were read, and in a line of their own the rows of the table that were not."""
    unread: list[str] = []
    found = [looked_at("NPUs", lambda: _well_chips(unread), fault)]
    if unread:
        rows = ", ".join(f'"{row[:100]}"' for row in unread)
        remedy = (
            "compare with `npu-smi info`; name chips that are left out yourself, all of them in "
            "ASCEND_RT_VISIBLE_DEVICES=0,1,..."
        )
        found.append(Finding("note", "npu-smi", f"cannot be read in all rows: {rows}", remedy))
    return found


def _well_chips(unread: list[str]) -> str:
    """How many chips of which names there are; `unread` gets the rows that are none of a chip's."""
    if shutil.which("npu-smi") is None:
        raise UserError(
            "no npu-smi on PATH; install the driver, or in a container mount "
            "/usr/local/bin/npu-smi and /usr/local/Ascend/driver from the host; "
            "backend=auto takes the CPU"
        )
    chips, rows = read_host()
    unread += rows
    if not chips:
        what = "no row that can be read as a chip's" if rows else "no chip"
        raise UserError(f"npu-smi shows {what}; see `npu-smi info` and the driver's log")
    ill = [f"chip {n} is {chip.health}" for n, chip in enumerate(chips) if chip.health != "OK"]
    if ill:
        raise UserError(
            f"{', '.join(ill)} of {len(chips)}; reset it (npu-smi set -t reset -i CARD -c CHIP), "
            "or leave it out: devices=[...]"
        )
    return f"{len(chips)} x {', '.join(sorted({chip.name for chip in chips}))}, all OK"


def _driver() -> str:
    found = _VERSION.search(_DRIVER.read_text(errors="replace")) if _DRIVER.is_file() else None
    if found is None:
        raise UserError(
            f"its version is not known ({_DRIVER} is not there); if npu-smi shows the chips, "
            "nothing has to be done"
        )
    return found[1]


def _toolkit() -> str:
    home = next((os.environ[name] for name in _TOOLKIT if os.environ.get(name)), None)
    if home is None:
        where = _SET_ENV if _SET_ENV.is_file() else f"{_SET_ENV} (install the CANN toolkit first)"
        raise UserError(f"not in this shell's environment; source {where}")
    names = ("ascend_toolkit_install.info", "*/ascend_toolkit_install.info", "version.cfg")
    for path in (path for name in names for path in sorted(Path(home).glob(name))):
        if found := _VERSION.search(path.read_text(errors="replace")):
            return f"{found[1]}, {home}"
    return f"{home}, its version is not known"


def _ais_bench() -> str:
    modules = ("aclruntime", "ais_bench.infer.interface")
    for name, one in try_imports(modules).items():
        if "No module named" in one["error"]:
            raise UserError(f"{name} is not installed; get {BACKENDS['om'].install}")
        # A module of it has no version of its own.
        if one["error"] and "PackageNotFoundError" not in one["error"]:
            raise UserError(f"{name}: {one['error']}; {remedy_of(name)}")
    from ais_bench.infer.interface import InferSession

    later = hasattr(InferSession, "free_resource")
    return "the later generation" if later else "generation 0.0.2 (CANN 6)"


def _atc() -> str:
    if tool := shutil.which("atc"):
        return tool
    raise UserError(f"not on PATH (only job=convert calls it); source {_SET_ENV}")
