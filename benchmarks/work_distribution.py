"""How the pictures are shared between devices of different speed, and what it costs.

    python benchmarks/work_distribution.py

Two consumers take the same Ray Dataset of work items, one 8 times slower than the other:
  (a) through `streaming_split`, which deals rows out evenly ahead of time;
  (b) on demand, as `cfdist.distributed.run` does: a consumer gets its next chunk when it has
      finished one;
and the script prints who got how many, and the time of each.
"""

from __future__ import annotations

import logging
import time

import ray
import ray.data

ITEMS, CHUNK = 610, 4
FAST, SLOW = 0.01, 0.08  # seconds a chunk


@ray.remote(num_cpus=0)
class Consumer:
    """Sleeps for each chunk, as long as its device would take."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._rows = 0

    def consume(self, iterator) -> int:
        """Take a split of a dataset to its end."""
        for batch in iterator.iter_batches(batch_size=CHUNK, prefetch_batches=1):
            self.process(len(batch["item"]))
        return self._rows

    def process(self, rows: int) -> int:
        """Take one chunk."""
        time.sleep(self._seconds)
        self._rows += rows
        return self._rows


def consumers() -> list:
    """A fast and a slow one, started."""
    both = [Consumer.remote(FAST), Consumer.remote(SLOW)]
    ray.get([one.process.remote(0) for one in both])
    return both


def split_ahead(dataset) -> tuple[list[int], float]:
    """Rows of each consumer and seconds, through `streaming_split`."""
    both = consumers()
    start = time.perf_counter()
    splits = dataset.streaming_split(2)
    rows = ray.get([one.consume.remote(split) for one, split in zip(both, splits, strict=True)])
    return rows, time.perf_counter() - start


def on_demand(dataset) -> tuple[list[int], float]:
    """Rows of each consumer and seconds, handing out a chunk for each that is finished."""
    both = consumers()
    start = time.perf_counter()
    chunks = iter(dataset.iter_batches(batch_size=CHUNK))
    running, rows = {}, [0, 0]

    def hand_out(index: int) -> None:
        chunk = next(chunks, None)
        if chunk is not None:
            running[both[index].process.remote(len(chunk["item"]))] = index

    for _ in range(2):
        for index in range(2):
            hand_out(index)
    while running:
        (ref,), _ = ray.wait(list(running))
        index = running.pop(ref)
        rows[index] = ray.get(ref)
        hand_out(index)
    return rows, time.perf_counter() - start


def main() -> None:
    """Run both and print."""
    ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = [{"item": i} for i in range(ITEMS)]
    dataset = ray.data.from_items(items, override_num_blocks=ITEMS // CHUNK)
    print(f"{ITEMS} items, chunks of {CHUNK}, {FAST * 1000:.0f} and {SLOW * 1000:.0f} ms a chunk")
    for name, method in (("streaming_split", split_ahead), ("on demand", on_demand)):
        (fast, slow), seconds = method(dataset)
        print(f"{name:16} fast {fast:3}, slow {slow:3} items; {seconds:.2f} s")
    ideal = ITEMS / CHUNK / (1 / FAST + 1 / SLOW)
    print(f"{'ideal':16} {ideal:.2f} s")


if __name__ == "__main__":
    main()
