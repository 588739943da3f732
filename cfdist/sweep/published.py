"""The published table of the Ascend guide, and the runs that it may stand beside."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from omegaconf import OmegaConf

from cfdist.backends.simulated import PUBLISHED_INPUT, PUBLISHED_RATES
from cfdist.config import CONFIG_FOLDER
from cfdist.widerface.ground_truth import DIFFICULTIES

CHIP = "310P3"
MODEL = "centerface_pytorch"
RATE = "published_images_per_s"
LABEL = f"published: one Ascend {CHIP}, pure inference"
NOTE = (
    f"The published figures are those of the Ascend guide for CenterFace: one Ascend {CHIP}, CANN "
    "6.0.RC1, 800x800, pure inference (no picture is read or decoded in that time), APs by the "
    "guide's protocol (IoU 0.4) over the whole validation set, and other weights than "
    "`model=centerface` has: those of the PyTorch training code. They are a yardstick; no run of "
    "this sweep gave them."
)


@dataclass(frozen=True)
class PublishedTable:
    """A published table.

    Attributes:
        rates: Batch size -> images a second.
        ap: Difficulty -> AP, a fraction, the same at every batch size.
        protocol: The protocol of that AP.
        input: Rows and columns of the network's input.
    """

    rates: dict[int, float]
    ap: dict[str, float]
    protocol: str
    input: tuple[int, int]

    def figures_beside(self, batch: int | None, size: tuple[int, int]) -> dict[str, float]:
        """The figures that may stand beside a run, by their names in `sweep.csv`.

        Args:
            batch: The run's batch size.
            size: Rows and columns of its input; other sizes than the table's have no figures.
        """
        if size != self.input or batch not in self.rates:
            return {}
        ap = {f"published_ap_{name}": value for name, value in self.ap.items()}
        return ap | {RATE: self.rates[batch]}


@functools.cache
def published_table() -> PublishedTable:
    """The Ascend guide's table for CenterFace."""
    expected = OmegaConf.load(CONFIG_FOLDER / "model" / f"{MODEL}.yaml").expected
    ap = {name: expected[name] for name in DIFFICULTIES}
    return PublishedTable(PUBLISHED_RATES[CHIP], ap, expected.protocol, PUBLISHED_INPUT)
