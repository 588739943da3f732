from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.ascend import Limit, npu_smi
from cfdist.ascend.npu_smi import (
    Npu,
    board_name,
    health_notes,
    list_npus,
    parse_npu_smi,
    read_npus,
    read_table,
    soc_version,
    usable_numbers,
)
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


A3 = """\
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 4     Ascend910           | OK            | 166.5       38                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3131 / 65536         |
+------------------------------------------------------------------------------------------------+
| 4     Ascend910           | OK            | -           37                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          2886 / 65536         |
"""
A3_BOARD = """\
        NPU ID                         : 4
        Product Name                   : IT21DK
        NPU Name                       : 9391
        Chip Name                      : Ascend910
        PCIe Bus Info                  : 0000:9D:00.0
"""


def names(text: str) -> list[str]:
    return [chip.name for chip in parse_npu_smi(text)]


def test_two_cards():
    assert parse_npu_smi(TWO_CARDS) == [Npu("Ascend310P3", 0, 0), Npu("Ascend310P3", 1, 0)]


def test_processes_are_no_chips():
    assert parse_npu_smi(TWO_CARDS + PROCESSES) == parse_npu_smi(TWO_CARDS)


def test_two_chips_on_one_card():
    assert parse_npu_smi(DUO + PROCESSES) == [
        Npu("Ascend310P3", 2, 0),
        Npu("Ascend310P3", 2, 1, "Alarm"),
    ]


def test_states_in_other_letters_and_colours():
    table = DUO.replace(" OK ", " \033[32mok\033[0m ").replace(" Alarm ", " CRITICAL ")
    assert [chip.health for chip in parse_npu_smi(table)] == ["OK", "Critical"]


def test_rows_that_are_none_of_a_chip_are_named():
    assert [read_table(text)[1] for text in (TWO_CARDS + PROCESSES, DUO, HBM, A3)] == [[]] * 4
    row = "| 1       310P3     | OK "
    chips, unread = read_table(TWO_CARDS.replace(row, "| ?       310P3     | OK "))
    assert chips[0] == Npu("Ascend310P3", 0, 0)
    assert [one[:25] for one in unread] == ["| ?       310P3     | OK "]
    (note,) = health_notes(chips, [0, 1], unread)
    assert note.startswith("npu-smi info: this row could not be read, and its chip may be left out")
    assert "| ?       310P3 " in note


def test_table_without_device_column_and_chip_without_card_row():
    assert names(HBM) == ["Ascend910B4", "Ascend910", "Ascend910"]


def test_digits_that_are_no_numbers_are_no_chips():
    for digit in ("\u00b2", "\u0663", "\u2460"):
        table = TWO_CARDS.replace("| 0       310P3", f"| {digit}       310P3")
        assert parse_npu_smi(table) == [Npu("Ascend310P3", 1, 0)]


@given(st.lists(st.sampled_from((TWO_CARDS + PROCESSES + DUO).splitlines()), max_size=12))
def test_torn_tables_give_no_traceback(lines):
    for name in names("\n".join(lines)):
        assert name.startswith("Ascend")


@given(st.text())
def test_any_text_gives_no_traceback(text):
    assert isinstance(parse_npu_smi(text), list)
    assert board_name(text) is None or board_name(text).startswith("Ascend")


@given(st.lists(st.text("|0123456789\u00b2 \u0663POK:.A", max_size=40), max_size=8))
def test_any_rows_give_no_traceback(rows):
    for chip in parse_npu_smi("\n".join(f"| {row} | OK | 1 |" for row in rows)):
        assert chip.name.startswith("Ascend")


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write an `npu-smi` that answers `info` with a text and a status; the only one on PATH.

    Other questions have answers by the words after "info".
    """

    def write(text: str, status: int = 0, seconds: int = 0, **boards: str) -> None:
        (tmp_path / "answer.txt").write_text(text)
        cases = ""
        for number, (words, board) in enumerate(boards.items()):
            (tmp_path / f"board{number}.txt").write_text(board)
            cases += f'"info -t board {words}") cat {tmp_path}/board{number}.txt; exit 0;;\n'
        script = tmp_path / "npu-smi"
        script.write_text(
            f'#!/bin/sh\ncase "$*" in\n{cases}info) ;;\n*) exit 9;;\nesac\nsleep {seconds}\n'
            f"cat {tmp_path}/answer.txt\nexit {status}\n"
        )
        script.chmod(0o755)

    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), "/usr/bin", "/bin"]))
    return write


def test_chips_of_this_host(tool):
    tool(TWO_CARDS)
    assert list_npus() == ["Ascend310P3", "Ascend310P3"]
    assert soc_version() == "Ascend310P3"


def test_chips_that_are_broken_are_not_taken(tool):
    broken = DUO.replace("OK      ", "Critical")
    tool(broken)
    assert list_npus() == ["Ascend310P3"]
    chips = read_npus()
    assert usable_numbers(chips) == [1]
    assert usable_numbers(chips, [1]) is None
    assert usable_numbers(chips, [0]) == []
    assert usable_numbers(parse_npu_smi(TWO_CARDS)) is None
    left_out, taken = health_notes(chips, [1])
    assert left_out == (
        "chip 0 (Ascend310P3, card 2): npu-smi says its health is Critical; the run leaves it out"
    )
    assert "chip 1 " in taken
    assert "Alarm; the run may take it" in taken
    tool(broken.replace("Alarm   ", "Critical"))
    with pytest.raises(UserError, match=r"all 2 chips of this host is Critical; .*openvino"):
        list_npus()


@pytest.mark.parametrize("words", ["-i 4", "-i 4 -c 0"])
def test_a_bare_series_is_asked_of_the_board(tool, words):
    tool(A3, **{words: A3_BOARD})
    assert soc_version() == "Ascend910_9391"


def test_a_chip_of_a_board_that_tells_no_name_has_to_be_given(tool):
    wanted = r"only the series .* Ascend910 .*convert\.soc_version=Ascend910_9391"
    tool(A3)
    with pytest.raises(UserError, match=wanted):
        soc_version()
    tool(A3, **{"-i 4": A3_BOARD.replace("NPU Name                       : 9391", "")})
    with pytest.raises(UserError, match=wanted):
        soc_version()


def test_names_on_a_board():
    assert board_name(A3_BOARD) == "Ascend910_9391"
    assert board_name("Chip Type : Ascend\nChip Name : 910B4\n") == "Ascend910B4"
    assert board_name("Chip Name : Ascend310P3\nNPU Name : NA\n") == "Ascend310P3"
    assert board_name("NPU ID : 0\n") is None


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
    monkeypatch.setattr(npu_smi, "_LIMIT", Limit(0.2, "look"))
    with pytest.raises(UserError, match="no answer"):
        list_npus()
