"""The run of a comparison: the data set's pictures through devices that hold both models."""

from __future__ import annotations

from cfdist.backends.base import DeviceSettings
from cfdist.comparison.device import ComparedChunk, ComparingDevice
from cfdist.comparison.tally import Tally
from cfdist.distributed.events import Events
from cfdist.distributed.rounds import MakeWork, run_rounds
from cfdist.execution import Execution
from cfdist.report.progress import PictureProgress
from cfdist.widerface.manifest import Manifest


def run_comparison(
    there: Execution,
    manifest: Manifest,
    make_work: MakeWork,
    tally: Tally,
    progress: PictureProgress,
) -> Events:
    """Run the pictures through the comparing devices; returns what happened to these."""
    from cfdist.distributed.pool import DevicePool

    plan, (reference, candidate) = there.plan, there.models

    def make_device(settings: DeviceSettings) -> ComparingDevice:
        return ComparingDevice(reference, candidate, settings, plan.readers)

    def take(_: str, chunk: ComparedChunk) -> list[str]:
        tally.add(chunk)
        return [found.id for found in chunk.reference]

    def give_up(given_up: dict[str, str]) -> None:
        tally.failures |= given_up

    group = max(model.capabilities.group for model in there.models)
    pool: DevicePool[ComparedChunk] = DevicePool(plan, make_device, reference.spec.batch, group)
    pool.monitor = monitor = progress.monitor
    with pool:
        run_rounds(pool, manifest.items, make_work, lambda: monitor.start(0), take, give_up)
    return pool.events
