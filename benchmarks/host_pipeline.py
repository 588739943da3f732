"""The host's pipeline with an instant device, against a bare pool of threads on the same cores.

    python benchmarks/host_pipeline.py --root WIDER_val --ground-truth ground_truth

The bare pool does `cv2.imread` and `cv2.warpAffine`, one thread a core, and throws the pictures
away. The product evaluates with a simulated device that takes no time and finds nothing: reading,
warping, the search for peaks, journal, prediction files, metric and Ray are all there; what faces
would add is not: boxes, suppression and matching. Alternates between the two and
prints, for each round and as medians,
  steady    pictures a second once every device has finished its first chunk, and the ratio to the
            bare pool's;
  CPU       milliseconds of processor time a picture over all processes, and the ratio;
  command   wall time of the whole command, start to exit, and what it is above the bare pool's.
"""

from __future__ import annotations

import statistics

from common import arguments_for, bare_pool, data_set, picture_paths, product


def main() -> None:
    """Alternate, and print medians."""
    parser = arguments_for(__doc__)
    parser.add_argument("--passes", type=int, default=4, help="over the pictures, each time")
    parser.add_argument("overrides", nargs="*", help="further settings for the product")
    arguments = parser.parse_args()
    paths = picture_paths(arguments.root) * arguments.passes
    overrides = [
        *data_set(arguments),
        "backend=simulated",
        "backend.latency_ms=0",
        f"dataset.repeat={arguments.passes}",
        *arguments.overrides,
    ]
    bare_pool(paths[: len(paths) // arguments.passes])  # the files are in the page cache now

    print(f"{len(paths)} pictures, {arguments.passes} passes")
    print("   bare pool              | product")
    print("   per s  CPU ms  seconds | steady  ratio  CPU ms  ratio  command  above the pool")
    rows = []
    for _ in range(arguments.rounds):
        seconds, cpu_ms = bare_pool(paths)
        rate = len(paths) / seconds
        results, wall = product(overrides)
        steady, product_cpu = results["throughput"]["steady"], results["cpu_ms_per_picture"]
        rows.append((steady / rate, product_cpu / cpu_ms, wall - seconds))
        print(
            f"{rate:8.1f} {cpu_ms:7.2f} {seconds:8.1f} | {steady:6.1f} {rows[-1][0]:6.3f} "
            f"{product_cpu:7.2f} {rows[-1][1]:6.3f} {wall:8.1f} {rows[-1][2]:15.1f}",
            flush=True,
        )
    steady, cpu, above = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"median: steady {steady:.3f}, CPU {cpu:.3f}, command {above:.1f} s above the pool")


if __name__ == "__main__":
    main()
