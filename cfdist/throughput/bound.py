"""What bounds a run: the devices or the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cfdist.throughput.host import HostRate


@dataclass(frozen=True)
class Bound:
    """What bounds a run; the attributes are keys of `results.json`.

    Attributes:
        bound_by: The slower of the two.
        devices_pictures_per_second: All devices' inference alone.
        host_pictures_per_second: The host's reading alone.
        host_readers: The reader threads of that rate.
        shared_cores_pictures_per_second: What both reach on the same cores, where the two times of
            a picture add up; `None` if inference runs elsewhere.
    """

    bound_by: Literal["devices", "host"]
    devices_pictures_per_second: float
    host_pictures_per_second: float
    host_readers: int
    shared_cores_pictures_per_second: float | None = None


def find_bound(
    devices_rate: float, host: Sequence[HostRate], readers: int, shared_cores: int | None
) -> Bound:
    """Hold the devices' rate against the host's.

    Args:
        devices_rate: Pictures a second of all devices' inference alone.
        host: The host's rates, at least one.
        readers: Reader threads of all devices of the run. The host's rate is the best that was
            measured with at most that many, or the rate of the fewest.
        shared_cores: Cores on which both inference and the readers run; `None` if inference runs
            elsewhere.
    """
    fewest = min(host, key=lambda rate: rate.readers)
    best = max(
        [rate for rate in host if rate.readers <= readers] or [fewest],
        key=lambda rate: rate.pictures_per_second,
    )
    together = None
    if shared_cores is not None:
        together = 1 / (1 / devices_rate + best.cpu_ms_per_picture / 1000 / shared_cores)
    return Bound(
        "host" if best.pictures_per_second < devices_rate else "devices",
        devices_rate,
        best.pictures_per_second,
        best.readers,
        together,
    )


def bound_sentence(bound: Bound, reached: float | None, simulated: bool) -> str:
    """What bounds a run, in one sentence.

    Args:
        bound: What bounds it.
        reached: Pictures a second of the end-to-end part; `None` if there is no such rate.
        simulated: No real model ran.
    """
    plural = "s" if bound.host_readers > 1 else ""
    who = "simulated devices" if simulated else "devices"
    sentence = (
        f"the {who} can take {bound.devices_pictures_per_second:.1f} pictures/s, this host can "
        f"read {bound.host_pictures_per_second:.1f} ({bound.host_readers} reader{plural}): the "
        f"{bound.bound_by} bound{'s' if bound.bound_by == 'host' else ''} the run"
    )
    if bound.shared_cores_pictures_per_second is not None:
        sentence += (
            "; both use the same cores, which leaves about "
            f"{bound.shared_cores_pictures_per_second:.1f}"
        )
    if reached is not None:
        sentence += f"; end to end it was {reached:.1f}"
    return sentence
