"""The call of `python -m ais_bench`, against the double."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cfdist.ascend import ais_bench
from cfdist.ascend.ais_bench import run_ais_bench
from cfdist.errors import UserError
from tests.fakes.ascend import install_double


def test_the_command_line_is_the_guides(monkeypatch, tmp_path):
    calls: list[list[str]] = []
    monkeypatch.setattr(ais_bench, "call_tool", lambda what, call, advice: calls.append(call))
    result = tmp_path / "result"
    for devices in (None, [0, 1]):
        run_ais_bench(Path("a b.om"), Path("bins"), result / "dumpout_bs4", 4, devices)
    call = [
        *(sys.executable, "-m", "ais_bench", "--model", "a b.om", "--input", "bins"),
        *("--output", str(result), "--output_dirname", "dumpout_bs4", "--batchsize", "4"),
    ]
    assert calls == [call, [*call, "--device", "0,1"]]


def test_a_failing_call_is_one_line_and_leaves_nothing(monkeypatch, tmp_path):
    install_double(monkeypatch)
    (tmp_path / "bins").mkdir()
    (tmp_path / "bins" / "a.bin").write_bytes(b"1234")
    (tmp_path / "net.om").write_bytes(b"IMOD and no more")
    with pytest.raises(UserError) as failure:
        run_ais_bench(tmp_path / "net.om", tmp_path / "bins", tmp_path / "out" / "dump", 1, None)
    message = str(failure.value)
    assert "\n" not in message
    assert "ais_bench failed with exit code 1" in message
    assert "145000" in message  # the tool's own last words
    assert not any((tmp_path / "out").iterdir())
