"""Which NPUs a host has, from the table that `npu-smi info` prints."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from cfdist.ascend import Limit, call_tool
from cfdist.errors import UserError

_ADVICE = "check the driver, and that this user may use the chips (group HwHiAiUser)"
_LIMIT = Limit(60, _ADVICE)  # it answers in seconds, but waits for a chip that is being reset
_BUS_ID = re.compile(r"[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]")

_HEALTHY, _BROKEN = "OK", "Critical"  # the best and the worst of npu-smi's states
_STATES = {state.casefold(): state for state in (_HEALTHY, "Warning", "Alarm", _BROKEN)}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# Names that are a series of chips and no chip: ATC knows Ascend310, but no Ascend910 or Ascend950.
_SERIES = re.compile(r"Ascend(?!310$)[0-9]+")


@dataclass(frozen=True)
class Npu:
    """A chip of this host.

    Attributes:
        name: What the table calls it, "Ascend310P3"; an Atlas A3 says "Ascend910".
        card: The card's number, npu-smi's `-i`.
        chip: The chip's number on its card, npu-smi's `-c`.
        health: "OK", "Warning", "Alarm", "Critical" or what else the driver says.
    """

    name: str
    card: int
    chip: int
    health: str = _HEALTHY


def parse_npu_smi(text: str) -> list[Npu]:
    """The chips in the output of `npu-smi info`, in the order of their device numbers.

    See `read_table`.
    """
    return read_table(text)[0]


def read_table(text: str) -> tuple[list[Npu], list[str]]:
    """The chips in the output of `npu-smi info`, and the rows that are none of a chip's.

    A chip has two rows, card and chip; a card's further chips may come without a card row of
    their own. Titles, rules and the table of processes are ignored.
    """
    chips: list[Npu] = []
    unread: list[str] = []
    card: tuple[str, int, str] | None = None
    is_new = has_begun = False
    for line in _COLOUR.sub("", text).splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if any(cell.startswith("Process") for cell in cells):
            break
        number = re.match(r"[0-9]{1,4}(?![^\s])", cells[0])
        has_begun |= line.startswith("+=")  # the rule below the titles
        if len(cells) != 3 or not number:
            if has_begun and line.strip() and not line.startswith("+"):
                unread.append(line.strip())
            continue
        name, has_bus = cells[0][number.end() :].strip(), bool(_BUS_ID.fullmatch(cells[1]))
        if card and (is_new or has_bus):
            chips.append(Npu(card[0], card[1], int(number[0]), card[2]))
            is_new = False
        elif name and not has_bus:
            name = "Ascend" + name.removeprefix("Ascend")
            health = _STATES.get(cells[1].casefold(), cells[1])
            card, is_new = (name, int(number[0]), health), True
        else:
            unread.append(line.strip())
    return chips, unread


def read_npus() -> list[Npu]:
    """All chips of this host; none where `npu-smi` is not installed.

    Raises:
        UserError: `npu-smi` fails or does not answer.
    """
    return read_host()[0]


def read_host() -> tuple[list[Npu], list[str]]:
    """`read_table` of this host.

    Raises:
        UserError: `npu-smi` fails or does not answer.
    """
    tool = shutil.which("npu-smi")
    if tool is None:
        return [], []
    return read_table(call_tool("npu-smi info", [tool, "info"], _ADVICE, limit=_LIMIT))


def list_npus() -> list[str]:
    """The name of each chip of this host that a run can take; none where there is no `npu-smi`.

    Raises:
        UserError: `npu-smi` fails or does not answer, or all chips are broken.
    """
    chips = read_npus()
    usable = [chip.name for chip in chips if chip.health != _BROKEN]
    if chips and not usable:
        raise UserError(
            f"npu-smi info: the health of all {len(chips)} chips of this host is {_BROKEN}; reset "
            "or replace them, or choose a CPU backend (backend=openvino)"
        )
    return usable


def usable_numbers(chips: Sequence[Npu], visible: Sequence[int] | None = None) -> list[int] | None:
    """The device numbers that a run may take if the person names none.

    Args:
        chips: Those of `read_npus`.
        visible: The device numbers that this process sees; `None`: all.

    Returns:
        Those of `visible` whose chips are not broken; `None` if no chip has to be left out.
    """
    numbers = list(range(len(chips)) if visible is None else visible)
    good = [n for n in numbers if n >= len(chips) or chips[n].health != _BROKEN]
    return None if good == numbers else good


def health_notes(
    chips: Sequence[Npu], numbers: Sequence[int], unread: Sequence[str] = ()
) -> list[str]:
    """A sentence for each chip that is not well, and for each row that could not be read.

    Args:
        chips: Those of `read_host`.
        numbers: The device numbers that the run takes.
        unread: The rows of `read_host`.
    """
    notes = [
        f"npu-smi info: this row could not be read, and its chip may be left out: {row[:100]}"
        for row in unread
    ]
    for number, chip in enumerate(chips):
        if chip.health != _HEALTHY:
            use = "may take it all the same" if number in numbers else "leaves it out"
            notes.append(
                f"chip {number} ({chip.name}, card {chip.card}): npu-smi says its health is "
                f"{chip.health}; the run {use}"
            )
    return notes


def soc_version() -> str:
    """The one name of this host's chips, as ATC's `--soc_version` takes it.

    Raises:
        UserError: no chip, chips of several kinds, or chips whose name the driver does not tell.
    """
    names = sorted({_full_name(chip) for chip in _one_a_card(read_npus())})
    if len(names) == 1:
        return names[0]
    what = f"this host has chips of several kinds ({', '.join(names)})" if names else "no NPU here"
    raise UserError(
        f"convert.soc_version: {what}; name the chip that the OM is for, as in "
        "convert.soc_version=Ascend310P3"
    )


def _one_a_card(chips: Sequence[Npu]) -> list[Npu]:
    """The first chip of each name on each card: the chips of a card are the same."""
    return list({(chip.card, chip.name): chip for chip in reversed(chips)}.values())


def _full_name(chip: Npu) -> str:
    """What ATC calls a chip; where the table names only the series, the board is asked.

    The board of an Atlas A3 has a "Chip Name", Ascend910, and an "NPU Name", 9391: together they
    are Ascend910_9391. On an A2 the chip's name is whole, 910B4, and there is no NPU name
    (https://www.hiascend.com/document, `npu-smi info -t board`).

    Raises:
        UserError: `npu-smi` does not tell the name.
    """
    tool = shutil.which("npu-smi")
    if tool is None or not _SERIES.fullmatch(chip.name):
        return chip.name
    why = "it says no NPU Name"
    # Some drivers tell a chip's names only if they are asked for this chip.
    for which in ([], ["-c", str(chip.chip)]):
        command = [tool, "info", "-t", "board", "-i", str(chip.card), *which]
        try:
            text = call_tool("npu-smi info -t board", command, _ADVICE, limit=_LIMIT)
        except UserError as error:
            why = str(error)
        else:
            name = board_name(text)
            if name and not _SERIES.fullmatch(name):
                return name
    raise UserError(
        f"convert.soc_version: npu-smi names only the series of this host's chips, {chip.name} "
        f"({why}); name the chip that the OM is for, as in convert.soc_version={chip.name}_9391 "
        "(Chip Name and NPU Name of `npu-smi info -t board -i ID -c ID`)"
    )


def board_name(text: str) -> str | None:
    """The chip's name in the output of `npu-smi info -t board`; `None` if there is none."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and re.fullmatch(r"[\w-]+", value.strip()):
            values.setdefault(" ".join(key.split()).lower(), value.strip())
    name, npu = values.get("chip name"), values.get("npu name")
    if name is None or name.upper() in ("NA", "N/A"):
        return None
    name = "Ascend" + name.removeprefix("Ascend")
    return name if npu is None or npu.upper() in ("NA", "N/A") else f"{name}_{npu}"
