from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.ascend import npu_smi
from cfdist.ascend.npu_smi import list_npus, parse_npu_smi, soc_version
from cfdist.errors import UserError

TWO_CARDS = """\
+--------------------------------------------------------------------------------------------+
| npu-smi 22.0.3                   Version: 22.0.3                                           |
+-------------------+-----------------+------------------------------------------------------+
| NPU     Name      | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device    | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===================+=================+======================================================+
| 0       310P3     | OK              | 15.8         42                0    / 0              |
| 0       0         | 0000:82:00.0    | 0            1074 / 21534                            |
+===================+=================+======================================================+
| 1       310P3     | OK              | 15.4         43                0    / 0              |
| 0       1         | 0000:89:00.0    | 0            1070 / 21534                            |
+===================+=================+======================================================+
"""

PROCESSES = """\
+-------------------------------+-----------------+------------------------------------------+
| NPU     Chip                  | Process id      | Process name             | Process memory(MB) |
+===============================+=================+==========================================+
| 0       0                     | 4242            | python                   | 1024               |
| No running processes found in NPU 1                                                        |
+===============================+=================+==========================================+
"""

# A card with two chips, no power reading, and a bus that no chip is on.
DUO = """\
| NPU     Name      | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device    | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===================+=================+======================================================+
| 2       310P3     | OK              | NA           45                0     / 0             |
| 0       0         | 0000:01:00.0    | 0            1529 / 44280                            |
+-------------------+-----------------+------------------------------------------------------+
| 2       310P3     | Alarm           | NA           43                0     / 0             |
| 1       1         | NA              | 0            1412 / 43693                            |
+===================+=================+======================================================+
"""

HBM = """\
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B4               | OK            | 88.2        30                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          26838/ 32768         |
+===========================+===============+====================================================+
| 3     Ascend910           | OK            | -           30                0    / 0             |
| 0                         | 0000:C2:00.0  | 0           0    / 0          29356/ 65536         |
| 1                         | 0000:C3:00.0  | 0           0    / 0          12   / 65536         |
"""


def test_two_cards():
    assert parse_npu_smi(TWO_CARDS) == ["Ascend310P3", "Ascend310P3"]


def test_processes_are_no_chips():
    assert parse_npu_smi(TWO_CARDS + PROCESSES) == parse_npu_smi(TWO_CARDS)


def test_two_chips_on_one_card():
    assert parse_npu_smi(DUO + PROCESSES) == ["Ascend310P3", "Ascend310P3"]


def test_table_without_device_column_and_chip_without_card_row():
    assert parse_npu_smi(HBM) == ["Ascend910B4", "Ascend910", "Ascend910"]


@given(st.lists(st.sampled_from((TWO_CARDS + PROCESSES + DUO).splitlines()), max_size=12))
def test_torn_tables_give_no_traceback(lines):
    for name in parse_npu_smi("\n".join(lines)):
        assert name.startswith("Ascend")


@given(st.text())
def test_any_text_gives_no_traceback(text):
    assert isinstance(parse_npu_smi(text), list)


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write an `npu-smi` that answers `info` with a text and a status; the only one on PATH."""

    def write(text: str, status: int = 0, seconds: int = 0) -> None:
        (tmp_path / "answer.txt").write_text(text)
        script = tmp_path / "npu-smi"
        script.write_text(
            f'#!/bin/sh\n[ "$*" = info ] || exit 9\nsleep {seconds}\n'
            f"cat {tmp_path}/answer.txt\nexit {status}\n"
        )
        script.chmod(0o755)

    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), "/usr/bin", "/bin"]))
    return write


def test_chips_of_this_host(tool):
    tool(TWO_CARDS)
    assert list_npus() == ["Ascend310P3", "Ascend310P3"]
    assert soc_version() == "Ascend310P3"


def test_no_tool_no_chips(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_npus() == []
    with pytest.raises(UserError, match=r"no NPU here.*convert\.soc_version=Ascend310P3"):
        soc_version()


def test_chips_of_several_kinds(tool):
    tool(TWO_CARDS.replace("1       310P3", "1       910B4"))
    with pytest.raises(UserError, match="Ascend310P3, Ascend910B4"):
        soc_version()


def test_tool_that_fails(tool):
    tool("DrvMngGetConsoleLogLevel failed.\ndcmi module initialize failed. ret is -8005\n", 255)
    with pytest.raises(
        UserError, match=r"npu-smi info failed with exit code 255: .*dcmi module in"
    ) as caught:
        list_npus()
    assert "\n" not in str(caught.value)


def test_tool_that_hangs(tool, monkeypatch):
    tool(TWO_CARDS, seconds=2)
    monkeypatch.setattr(npu_smi, "_TIMEOUT_S", 0.2)
    with pytest.raises(UserError, match="no answer"):
        list_npus()
