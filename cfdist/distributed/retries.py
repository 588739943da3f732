"""What failed and is tried again, where, and whether a device or a picture is at fault.

The rules, for any number of devices:

- A failure of a device counts against the pictures that it had in hand. They are tried again first,
  on a device that has not failed with them while there is one. The only device of a run gets them
  back at once: if they waited until the end, nobody could tell before whether it is at fault.
- A picture that was in hand at `ALONE_AFTER` failures is done alone, and at `MAX_FAILURES` it is
  given up. What failed with it is explained by it.
- A device is at fault at its second failure that no picture explains: all that it had in hand was
  done since, or its last failures have no picture in common. It accuses no picture any more.
- A picture whose outputs are not finite is tried once more. If they are finite then, the device
  that gave the others has failed; else the picture is given up, and no device is at fault.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from cfdist.distributed.work import Slice

ALONE_AFTER, MAX_FAILURES = 2, 3

# A device that has finished nothing in this many failures is at fault, whatever explains them.
_MOST_IN_A_ROW = 5


@dataclass(frozen=True)
class Row:
    """A work item's key, and its row of a block."""

    key: str
    slice: Slice


class Retries:
    """See the rules above.

    Attributes:
        given_up: Key -> why its picture has failed.
    """

    def __init__(self) -> None:
        """Nothing has failed."""
        self.given_up: dict[str, str] = {}
        self._waiting: dict[str, Row] = {}
        self._rows: dict[str, Row] = {}  # of the pictures given up
        self._failed_with: dict[str, list[str]] = defaultdict(list)  # key -> devices
        self._not_finite_on: dict[str, list[str]] = defaultdict(list)  # key -> devices
        # Device -> for each failure the pictures that may explain it.
        self._failures: dict[str, list[set[str]]] = defaultdict(list)
        self._in_a_row: dict[str, list[set[str]]] = defaultdict(list)  # nothing finished since

    @property
    def is_waiting(self) -> bool:
        """Whether a picture has to be tried again."""
        return bool(self._waiting)

    def put_back(self, rows: Iterable[Row]) -> None:
        """Try pictures again that did not fail."""
        self._waiting |= {row.key: row for row in rows}

    def fail(self, device: str, rows: Collection[Row], words: str) -> None:
        """Note that a device has failed with these pictures in hand."""
        keys = {row.key for row in rows}
        self._failures[device].append(set(keys))
        self._in_a_row[device].append(keys)
        for row in rows:
            devices = self._failed_with[row.key]
            devices.append(device)
            if len(devices) < MAX_FAILURES:
                self._waiting[row.key] = row
            else:
                names = ", ".join(sorted({*devices}))
                why = f"killed the device {len(devices)} times ({names}): {words}"
                self._give_up(row, why)

    def doubt(self, device: str, row: Row, reason: str) -> None:
        """Note that a device gave outputs for a picture that are not finite."""
        devices = self._not_finite_on[row.key]
        devices.append(device)
        if len(devices) < 2:
            self._waiting[row.key] = row
        else:
            self._give_up(row, f"{reason} ({', '.join(sorted({*devices}))})")

    def _give_up(self, row: Row, reason: str) -> None:
        self.given_up[row.key], self._rows[row.key] = reason, row

    def finish(self, device: str, keys: Iterable[str]) -> set[str]:
        """Note pictures that a device has done; returns the devices that failed with them.

        These gave outputs that were not finite.
        """
        self._in_a_row.pop(device, None)
        if not self._failures and not self._not_finite_on:
            return set()
        accused: set[str] = set()
        for key in keys:
            accused.update(self._not_finite_on.pop(key, ()))
            for failures in self._failures.values():
                for open_keys in failures:
                    open_keys.discard(key)
        accused.discard(device)  # it was started again since
        for devices in self._not_finite_on.values():
            devices[:] = [one for one in devices if one not in accused]
        self._restore()
        return accused

    def is_at_fault(self, device: str) -> bool:
        """Whether a device should get no more work, see the rules."""
        last = self._in_a_row.get(device, [])
        unexplained = [keys for keys in last if self.given_up.keys().isdisjoint(keys)]
        nothing_in_common = len(unexplained) > 1 and not set.intersection(*unexplained)
        done_elsewhere = sum(not keys for keys in self._failures.get(device, ()))
        return nothing_in_common or done_elsewhere > 1 or len(last) >= _MOST_IN_A_ROW

    def forget(self, device: str) -> None:
        """Take back what a device at fault counted against pictures."""
        for found in (self._failed_with, self._not_finite_on):
            for key, devices in found.items():
                found[key] = [one for one in devices if one != device]
        self._restore()

    def _restore(self) -> None:
        """Try pictures again that would not have been given up by what still counts."""
        for key in [*self.given_up]:
            failed, doubted = (
                len(found.get(key, ())) for found in (self._failed_with, self._not_finite_on)
            )
            if failed < MAX_FAILURES and doubted < 2:
                del self.given_up[key]
                self._waiting[key] = self._rows.pop(key)

    def take_first(self, device: str, size: int, devices: Collection[str]) -> list[Row]:
        """Pictures to try again before any new ones, on a device that did not fail with them.

        A device that failed with a picture gets it again if all `devices`, those that are ready or
        load their model, did.
        """
        if not self._waiting:
            return []
        found = [
            row
            for row in self._waiting.values()
            if not self._is_for_alone(row)
            and (device not in (suspects := self._suspects_of(row)) or suspects.issuperset(devices))
        ]
        return self._take(found[:size])

    def take_last(self, device: str, ready: Collection[str], size: int, is_idle: bool) -> list[Row]:
        """Pictures to try when there are no new ones; one that is for alone if the device is idle.

        A device that failed with a picture gets it again if all that are ready did.
        """
        found = [
            row
            for row in self._waiting.values()
            if device not in (suspects := self._suspects_of(row)) or suspects.issuperset(ready)
        ]
        together = [row for row in found if not self._is_for_alone(row)]
        return self._take(together[:size] or (found[:1] if is_idle else []))

    def is_alone(self, rows: Collection[Row]) -> bool:
        """Whether this is a picture that is done alone."""
        return bool(self._failed_with) and any(self._is_for_alone(row) for row in rows)

    def _take(self, rows: list[Row]) -> list[Row]:
        for row in rows:
            del self._waiting[row.key]
        return rows

    def _is_for_alone(self, row: Row) -> bool:
        return len(self._failed_with.get(row.key, ())) >= ALONE_AFTER

    def _suspects_of(self, row: Row) -> set[str]:
        """The devices that failed with a picture."""
        return {*self._failed_with.get(row.key, ()), *self._not_finite_on.get(row.key, ())}
