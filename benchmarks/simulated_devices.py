"""How throughput grows with the devices while the host is not the limit.

    python benchmarks/simulated_devices.py --root WIDER_val --ground-truth ground_truth

Runs 1, 2, 4 and 8 simulated devices, so slow that eight of them together want only a part of what
the host can read and warp (`--share`), and prints for each the steady pictures a second, the ratio
to as many times the single device's, the ratio to what the latency allows, and the least busy
device's busy share of the run, its first and last pictures included.
"""

from __future__ import annotations

import statistics

from common import arguments_for, bare_pool, data_set, picture_paths, product

COUNTS = (1, 2, 4, 8)
BATCH = 4


def main() -> None:
    """Measure the host, choose the devices' speed, run."""
    parser = arguments_for(__doc__)
    parser.add_argument("--share", type=float, default=0.4, help="of the host's rate, 8 devices")
    parser.add_argument("--seconds", type=float, default=20, help="about so long a run")
    arguments = parser.parse_args()
    paths = picture_paths(arguments.root)
    seconds, _ = bare_pool(paths)
    host_rate = len(paths) / seconds
    device_rate = arguments.share * host_rate / COUNTS[-1]
    latency_ms = round(BATCH / device_rate * 1000)
    print(f"host {host_rate:.0f} pictures/s; a device takes {latency_ms} ms for a batch of {BATCH}")
    print("devices | steady pictures/s | of linear | of the latency's limit | least busy share")

    single = None
    for count in COUNTS:
        wanted = arguments.seconds * count * BATCH / latency_ms * 1000
        passes, limit = max(1, round(wanted / len(paths))), min(len(paths), round(wanted))
        rates, busy = [], []
        for _ in range(arguments.rounds):
            results, _ = product(
                [
                    *data_set(arguments),
                    "backend=simulated",
                    f"backend.latency_ms={latency_ms}",
                    f"model.batch={BATCH}",
                    f"devices={count}",
                    f"dataset.repeat={passes}",
                    f"dataset.limit={limit}",
                ]
            )
            rates.append(results["throughput"]["steady"])
            busy.append(min(device["busy_share"] for device in results["devices"]))
        rate = statistics.median(rates)
        single = single or rate
        limit_rate = count * BATCH / latency_ms * 1000
        print(
            f"{count:7} | {rate:17.2f} | {rate / single / count:9.3f} | "
            f"{rate / limit_rate:22.3f} | {statistics.median(busy):16.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
