"""The call of `python -m ais_bench`, against the double."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cfdist.ascend.ais_bench import command_line, run_ais_bench
from cfdist.errors import UserError
from tests.fakes.ascend import install_double


def test_the_command_line_is_the_guides():
    paths = (Path("a b.om"), Path("bins"), Path("result") / "dumpout_bs4")
    call = command_line(*paths, 4, None)
    assert call == [
        *(sys.executable, "-m", "ais_bench", "--model", "a b.om", "--input", "bins"),
        *("--output", "result", "--output_dirname", "dumpout_bs4", "--batchsize", "4"),
    ]
    assert command_line(*paths, 4, [0, 1]) == [*call, "--device", "0,1"]


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
