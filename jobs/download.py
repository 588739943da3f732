"""`job=download`: WIDER FACE's validation pictures and ground truth, whole and checked."""

from __future__ import annotations

import shlex
from pathlib import Path

from cfdist.config import Config
from cfdist.config.installation import COMMAND
from cfdist.download.published import (
    GROUND_TRUTH,
    PICTURES,
    TERMS,
    Published,
    alone_in,
    check_together,
    given_back,
)
from cfdist.errors import ExitCode, UserError
from cfdist.files import disk_as_user_error, expanded, removed_on_failure
from cfdist.monitoring.terminal import out


def main(config: Config, output: Path, started: float) -> int:
    """Have both files in the folder; returns the exit code. There is no results.json."""
    settings = config.download
    folder = expanded(settings.to)
    given = None if settings.from_ is None else expanded(settings.from_)
    if given is not None and not given.is_dir():
        raise UserError(f"download.from={given}: no such folder; name the one that holds the files")
    digests = {"md5": settings.md5, "sha256": settings.sha256}
    known = {name: digest for name, digest in digests.items() if digest}
    files = (Published(PICTURES, settings.size, known), Published(GROUND_TRUTH, None, {}))
    rest = (given, settings.mirrors, settings.stall_s)
    with (
        disk_as_user_error(folder),
        removed_on_failure(folder),
        alone_in(folder),
        given_back(files, folder, given),
    ):
        pictures, truth = (one.place(folder, *rest) for one in files)
        check_together(pictures, truth)
    print(
        f"\nall 3226 pictures of 61 events, and the four .mat files, are in {folder}\n\n{TERMS}\n",
        file=out(),
    )
    named = {"dataset.root": pictures, "dataset.ground_truth": truth}
    words = [shlex.quote(f"{key}={path}") for key, path in named.items()]
    print(f"next: {COMMAND} dataset=wider_val {' '.join(words)}", file=out())
    return ExitCode.DONE
