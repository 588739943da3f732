"""Which NPUs a host has, from the table that `npu-smi info` prints."""

from __future__ import annotations

import re
import shutil

from cfdist.ascend import call_tool
from cfdist.errors import UserError

_TIMEOUT_S = 60  # the driver answers within seconds; a chip that is being reset keeps it waiting
_BUS_ID = re.compile(r"[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]")


def parse_npu_smi(text: str) -> list[str]:
    """The name of each chip in the output of `npu-smi info`, as ATC's `--soc_version` takes it.

    A chip has two rows, card and chip; a card's further chips may come without a card row of
    their own. The rest (titles, rules, the table of processes) is ignored.
    """
    chips: list[str] = []
    name, card_is_new = "", False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if any(cell.startswith("Process") for cell in cells):
            break
        if len(cells) != 3 or not cells[0][:1].isdigit():
            continue
        if name and (card_is_new or _BUS_ID.fullmatch(cells[1])):
            chips.append(name)
            card_is_new = False
        else:
            name = "Ascend" + cells[0].partition(" ")[2].strip().removeprefix("Ascend")
            card_is_new = True
    return chips


def list_npus() -> list[str]:
    """The name of each chip of this host, "Ascend310P3"; none where `npu-smi` is not installed.

    Raises:
        UserError: `npu-smi` fails or does not answer.
    """
    tool = shutil.which("npu-smi")
    if tool is None:
        return []
    advice = "check the driver, and that this user may use the chips (group HwHiAiUser)"
    return parse_npu_smi(call_tool("npu-smi info", [tool, "info"], advice, limit_s=_TIMEOUT_S))


def soc_version() -> str:
    """The one name of this host's chips.

    Raises:
        UserError: no chip, or chips of several kinds.
    """
    names = sorted(set(list_npus()))
    if len(names) == 1:
        return names[0]
    what = f"this host has chips of several kinds ({', '.join(names)})" if names else "no NPU here"
    raise UserError(
        f"convert.soc_version: {what}; name the chip that the OM is for, as in "
        "convert.soc_version=Ascend310P3"
    )
