"""Files with random damage: every reader takes them or says one line, and no process dies."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.fakes import onnx_forms

MUTATIONS = 300
SECONDS = 10.0  # that one file may take

# Reads the files in a folder one after the other; prints a line before and after each.
READER = """
    import sys, time
    from pathlib import Path
    from cfdist.errors import UserError
    from tests.end_to_end.test_damaged_files import READERS
    read = READERS[sys.argv[1]]
    for path in sorted(Path(sys.argv[2]).glob("[0-9]*")):
        print("reads", path.name, flush=True)
        start = time.perf_counter()
        try:
            read(path)
            outcome = "taken"
        except UserError as error:
            outcome = "refused" if "\\n" not in str(error) else "more than one line"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}".replace("\\n", " ")[:300]
        print("ended", path.name, f"{time.perf_counter() - start:.2f}", outcome, flush=True)
"""


def read_onnx(path: Path) -> None:
    """What a command does with an ONNX before its run, and then a device."""
    from cfdist.backends.model import BackendModel
    from cfdist.model import verify_model
    from tests.conftest import make_spec

    digest = verify_model(path, None, None)
    spec = make_spec(path, sha256=digest, outputs=None, height=64, width=64, batch=1)
    for name in ("openvino", "onnxruntime"):
        options = {"precision": "f32", "providers": ["CPUExecutionProvider"]}
        BackendModel(name, spec, options).check()


def read_om(path: Path) -> None:
    from cfdist.backends.om import inspect_om
    from cfdist.model import verify_model
    from cfdist.model.formats import format_of

    verify_model(path, None, None)
    format_of(path)
    inspect_om(path)


def read_checkpoint(path: Path) -> None:
    from cfdist.model import verify_model
    from cfdist.model.formats import refuse_other_format
    from cfdist.network.checkpoint import load_network

    verify_model(path, None, None)
    refuse_other_format(path, ["torch"], "backend=torch")
    load_network(path, "centerface_pytorch")


def read_sidecar(path: Path) -> None:
    from cfdist.ascend.atc import _is_made

    assert _is_made(path, path, {"command": ["atc"]}) in (True, False)


READERS = {
    "onnx": read_onnx,
    "om": read_om,
    "pth": read_checkpoint,
    "json": read_sidecar,
}


def damage(content: bytes, seed: int) -> bytes:
    """Some bytes flipped, cut away, zeroed or inserted, mostly near the start or the end."""
    chance = random.Random(seed)
    data = bytearray(content)

    def place() -> int:
        span = chance.choice([64, 4096, len(data)])
        near = chance.randrange(max(1, min(span, len(data))))
        return near if chance.random() < 0.5 else max(0, len(data) - 1 - near)

    for _ in range(chance.choice([1, 1, 2, 8])):
        if not data:
            break
        at = place()
        match chance.choice(["flip", "cut", "zero", "insert", "drop"]):
            case "flip":
                data[at] ^= 1 << chance.randrange(8)
            case "cut":
                del data[at:]
            case "zero":
                data[at : at + chance.choice([1, 4, 64])] = bytes(chance.choice([1, 4, 64]))
            case "insert":
                data[at:at] = chance.randbytes(chance.choice([1, 4, 64]))
            case "drop":
                del data[at : at + chance.choice([1, 4, 64])]
    return bytes(data)


def whole_file(kind: str, folder: Path) -> bytes:
    if kind == "onnx":
        return onnx_forms.network(folder / "whole").read_bytes()
    if kind == "om":
        return b"IMOD" + random.Random(0).randbytes(2000)
    if kind == "json":
        return b'{"onnx_sha256": "00", "command": ["atc"], "aipp": null, "om_sha256": "11"}\n'
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from cfdist.network.centerface import CenterFace

    # The names and shapes of the network, one value each: small, so that the damage meets them.
    state = CenterFace("centerface_pytorch", 24).state_dict()
    torch.save({"state_dict": {k: torch.zeros(()).expand(v.shape) for k, v in state.items()}},
               folder / "whole")  # fmt: skip
    return (folder / "whole").read_bytes()


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files(tmp_path, kind):
    content = whole_file(kind, tmp_path)
    for seed in range(MUTATIONS):
        (tmp_path / f"{seed:03}").write_bytes(damage(content, seed))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(READER), kind, str(tmp_path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (lines[-1:], done.stderr[-500:])
    ended = [line.split(" ", 3) for line in lines if line.startswith("ended")]
    assert len(ended) == MUTATIONS
    bad = [one for one in ended if one[3] not in ("taken", "refused") or float(one[2]) > SECONDS]
    assert not bad, bad[:10]
    assert any(one[3] == "refused" for one in ended) or kind == "json"
