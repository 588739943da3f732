"""Time and memory as the data grows: 1, 2, 4 and 8 passes over the pictures.

    python benchmarks/growing_data.py --root WIDER_val --ground-truth ground_truth

Evaluates with an instant device (or another: append backend=... and its settings) and prints for
each number of passes the seconds from the first to the last picture, the whole command's, and the
peak resident memory of driver, reducer and devices: medians of the rounds.
"""

from __future__ import annotations

from statistics import median

from common import arguments_for, data_set, picture_paths, product


def main() -> None:
    """Run the passes and print a line each."""
    parser = arguments_for(__doc__)
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("overrides", nargs="*", help="further settings for the product")
    arguments = parser.parse_args()
    overrides = arguments.overrides or ["backend=simulated", "backend.latency_ms=0"]
    count = len(picture_paths(arguments.root))
    print("pictures |  run s | command s | peak memory, MB; all to the first")
    first = None
    for passes in arguments.passes:
        rounds = [
            product([*data_set(arguments), *overrides, f"dataset.repeat={passes}"])
            for _ in range(arguments.rounds)
        ]
        memory = {
            name: median(results["peak_memory_mb"][name] for results, _ in rounds)
            for name in rounds[0][0]["peak_memory_mb"]
        }
        run = median(results["seconds"]["run"] for results, _ in rounds)
        wall = median(seconds for _, seconds in rounds)
        total = sum(memory.values())
        first = first or total
        each = ", ".join(f"{name} {megabytes:.0f}" for name, megabytes in memory.items())
        print(
            f"{count * passes:8} | {run:6.1f} | {wall:9.1f} | {each}; {total / first:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
