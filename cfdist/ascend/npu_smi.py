"""Which NPUs a host has, from the table that `npu-smi info` prints."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from cfdist.errors import UserError

_TIMEOUT_S = 60  # the driver answers within seconds; a chip that is being reset keeps it waiting
_BUS_ID = re.compile(r"[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]")
_USAGE = re.compile(r"(\d+)\s*/\s*(\d+)")


@dataclass(frozen=True)
class Npu:
    """One chip.

    Attributes:
        id: The card's number (column NPU).
        chip: The chip's number on its card.
        device: The chip's number on the host, as ASCEND_RT_VISIBLE_DEVICES counts.
        name: The name that ATC's `--soc_version` takes: "Ascend310P3".
        health: "OK", or what is wrong: "Warning", "Alarm", "Critical".
        bus_id: PCI address, "0000:82:00.0"; "NA" where the chip has none.
        memory_used_mb: In use, MB.
        memory_total_mb: The chip's memory (its HBM if it has some), MB.
        power_w: Watts; `None` if the card does not report it.
        temperature_c: Degrees Celsius; `None` if the card does not report it.
    """

    id: int
    chip: int
    device: int
    name: str
    health: str
    bus_id: str
    memory_used_mb: int
    memory_total_mb: int
    power_w: float | None
    temperature_c: float | None


def parse_npu_smi(text: str) -> list[Npu]:
    """The chips in the output of `npu-smi info`.

    A chip has two rows, card and chip; a card's further chips may come without a card row of
    their own. The rest (titles, rules, the table of processes) is ignored.
    """
    npus: list[Npu] = []
    card: tuple[str, ...] | None = None
    card_is_new = False
    for line in text.splitlines():
        cells = _cells(line)
        if any(cell.startswith("Process") for cell in cells):
            break
        if len(cells) != 3 or not cells[0][:1].isdigit():
            continue
        if card is not None and (card_is_new or _BUS_ID.fullmatch(cells[1])):
            npus.append(_npu(card, cells, len(npus)))
            card_is_new = False
        else:
            card, card_is_new = cells, True
    return npus


def list_npus() -> list[Npu]:
    """The chips of this host; none where `npu-smi` is not installed.

    Raises:
        UserError: `npu-smi` fails or does not answer.
    """
    tool = shutil.which("npu-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run(
            [tool, "info"], capture_output=True, timeout=_TIMEOUT_S, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"npu-smi info: no answer within {_TIMEOUT_S} s; check the driver (`npu-smi info`)"
        ) from None
    except OSError as error:
        raise UserError(f"npu-smi info: {tool} cannot be run ({error.strerror})") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing said").splitlines()[-1]
        raise UserError(
            f"npu-smi info: failed with status {done.returncode} ({said}); check the driver, and "
            "that this user may use the chips (group HwHiAiUser)"
        )
    return parse_npu_smi(done.stdout)


def soc_version() -> str:
    """The name of this host's chips as ATC takes it, "Ascend310P3".

    Raises:
        UserError: no chip, or chips of several kinds.
    """
    names = sorted({npu.name for npu in list_npus()})
    if len(names) == 1:
        return names[0]
    what = f"this host has chips of several kinds ({', '.join(names)})" if names else "no NPU here"
    raise UserError(
        f"convert.soc_version: {what}; name the chip that the OM is for, as in "
        "convert.soc_version=Ascend310P3"
    )


def _cells(line: str) -> tuple[str, ...]:
    line = line.strip()
    if not line.startswith("|"):
        return ()
    return tuple(cell.strip() for cell in line.strip("|").split("|"))


def _npu(card: tuple[str, ...], chip: tuple[str, ...], count: int) -> Npu:
    """One chip from its two rows; `count` chips were listed before it."""
    number, _, name = card[0].partition(" ")
    chip_number, _, device = chip[0].partition(" ")
    power, temperature, *_ = [*card[2].split(), "", ""]
    # Chips with HBM list their small DDR first.
    usage = [(int(used), int(total)) for used, total in _USAGE.findall(chip[2])] or [(0, 0)]
    used, total = max(usage, key=lambda pair: pair[1])
    name = name.strip()
    return Npu(
        id=int(number),
        chip=int(chip_number),
        # Tables without this column list the chips in their order on the host.
        device=int(device) if device.strip().isdigit() else count,
        name=name if name.startswith("Ascend") else f"Ascend{name}",
        health=card[1],
        bus_id=chip[1],
        memory_used_mb=used,
        memory_total_mb=total,
        power_w=_number(power),
        temperature_c=_number(temperature),
    )


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
