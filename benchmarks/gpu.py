"""What a GPU computes, and how fast: head maps and APs beside the CPU's, by precision and batch.

    python benchmarks/gpu.py --root WIDER_val --ground-truth ground_truth
    python benchmarks/gpu.py --device cpu --batches 1

Prints a Markdown table with the card's name. For each way to run the weights of `model=centerface`
and each batch size:
  heads        the largest difference to float32 on the CPU (ONNX Runtime) in any head map, by the
               largest value of that map;
  inference    pictures a second of the backend alone, pictures in memory, one device with one
               stream; where a way picks the peaks on the GPU, with that;
  end to end   pictures a second of the whole command once it runs, from files; "-" where they are
               too few for a steady rate;
  AP           of that command.
A way that this machine lacks has the reason in its row. No new row is begun after --minutes.
Without --root the pictures are those of the embedded sample set.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import time
from dataclasses import dataclass

import numpy as np
from common import SIZE, data_set, product

from cfdist.backends.base import Backend, DeviceSettings
from cfdist.config import compose
from cfdist.errors import UserError
from cfdist.execution import find_model
from cfdist.inputs import find_ground_truth, find_pictures
from cfdist.machine import available_cores, cpu_model
from cfdist.preprocess import to_model_input

ONNX, TORCH = "backend=onnxruntime", "backend=torch"
REFERENCE = "ONNX Runtime, CPU, float32"
CUDA = "backend.providers=[CUDAExecutionProvider,CPUExecutionProvider]"
TENSORRT = CUDA.replace("[", "[TensorrtExecutionProvider,")

# Each way to run the model with its settings.
WAYS = {
    "cpu": {
        REFERENCE: (ONNX,),
        "PyTorch, CPU, float32": (TORCH, "backend.device=cpu"),
        "PyTorch, CPU, bfloat16": (TORCH, "backend.device=cpu", "backend.precision=bf16"),
    },
    "cuda": {
        "PyTorch, float32": (TORCH, "backend.device=cuda"),
        **{
            f"PyTorch, {name}": (TORCH, "backend.device=cuda", f"backend.precision={value}")
            for name, value in (("float16", "f16"), ("bfloat16", "bf16"))
        },
        "PyTorch, float16, 2 streams": (TORCH, "backend.precision=f16", "backend.streams=2"),
        **{
            f"PyTorch, float16, {count} devices": (
                TORCH,
                "backend.precision=f16",
                f"devices={count}",
                f"backend.gpus_per_device={1 / count}",
            )
            for count in (2, 4)
        },
        "CUDA, float32": (ONNX, CUDA),
        "CUDA, TF32": (ONNX, CUDA, "backend.provider_options={use_tf32:true}"),
        "TensorRT, TF32": (ONNX, TENSORRT),
        "TensorRT, float16": (ONNX, TENSORRT, "backend.provider_options={trt_fp16_enable:true}"),
    },
}
HEAD = (
    "| | batch | heads | inference | end to end | easy | medium | hard |\n"
    "|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Test:
    """What is the same for all rows.

    Attributes:
        pictures: (n, H, W, 3) u8, BGR, letterboxed, for heads and inference.
        data: Settings for the data set of the whole command.
        seconds: How long inference is measured.
    """

    pictures: np.ndarray
    data: tuple[str, ...]
    seconds: float


def loaded(settings: tuple[str, ...], batch: int, needs_heads: bool = False) -> Backend:
    """A backend with the model in this process.

    Raises:
        UserError: this machine cannot run it so.
    """
    model = find_model(compose(*settings, f"model.batch={batch}"))
    return model.load(DeviceSettings(threads=available_cores(), needs_heads=needs_heads))


def heads(backend: Backend, pictures: np.ndarray, batch: int) -> list[np.ndarray]:
    """Each head map of all pictures, inferred batch by batch."""
    found = [
        backend.infer(to_model_input(pictures[i : i + batch], backend.contract))
        for i in range(0, len(pictures), batch)
    ]
    return [np.concatenate(maps) for maps in zip(*found, strict=True)]


def inference_rate(backend: Backend, pictures: np.ndarray, batch: int, least: float) -> float:
    """Pictures a second of whole batches, one after the other, for at least so many seconds."""
    many = np.concatenate([pictures] * -(-batch // len(pictures)))[:batch]
    inputs = to_model_input(many, backend.contract)
    for _ in range(3):
        backend.infer(inputs)
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < least:
        backend.infer(inputs)
        done += batch
    return done / passed


def row(settings: tuple[str, ...], batch: int, test: Test, reference: list[np.ndarray]) -> str:
    """The cells behind the name of one way and batch.

    Raises:
        UserError: this machine cannot run it so.
    """
    backend = loaded(settings, batch, needs_heads=True)
    maps = heads(backend, test.pictures, batch)
    backend.close()
    backend = loaded(settings, batch)
    rate = inference_rate(backend, test.pictures, batch, test.seconds)
    backend.close()
    del backend  # its memory is the command's now
    difference = max(
        float(np.abs(one - other).max() / np.abs(other).max())
        for one, other in zip(maps, reference, strict=True)
    )
    devices = [] if any(one.startswith("devices=") for one in settings) else ["devices=1"]
    results, _ = product([*devices, *settings, *test.data, f"model.batch={batch}"])
    ap = results["ap"]["official"]
    steady = results["throughput"]["steady"]
    return f"{difference:.1e} | {rate:.4g} | {f'{steady:.4g}' if steady else '-'} | " + " | ".join(
        f"{ap[name]:.4f}" for name in ("easy", "medium", "hard")
    )


def card(device: str) -> str:
    """The name of what is measured."""
    if device == "cpu":
        return cpu_model()
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError):
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
        if done.returncode == 0:
            return done.stdout.splitlines()[0]
    raise SystemExit("nvidia-smi names no GPU here; --device cpu tries the script without one")


def main() -> None:
    """Measure row by row, and print each as it comes."""
    arguments = parsed()
    end = time.monotonic() + 60 * arguments.minutes
    host = f"{available_cores()} cores of {cpu_model()}"
    print(f"{card(arguments.device)}; {host}\n\n{HEAD}", flush=True)
    test = test_of(arguments)
    backend = loaded((ONNX,), 1, needs_heads=True)
    reference = heads(backend, test.pictures, 1)
    backend.close()
    ways = WAYS[arguments.device].items()
    for name, settings in [one for one in ways if arguments.ways.casefold() in one[0].casefold()]:
        for batch in arguments.batches:
            cells = "not measured: out of time | | | | | "
            if time.monotonic() < end:
                try:
                    cells = row(settings, batch, test, reference)
                except (UserError, SystemExit) as error:  # the second one is the command's
                    reason = str(error).strip().splitlines()[-1].replace("|", "/")
                    cells = f"refused: {reason} | | | | | "
            print(f"| {name} | {batch} | {cells} |", flush=True)


def test_of(arguments: argparse.Namespace) -> Test:
    """The pictures and the data set of a command line."""
    data = data_set(arguments) if arguments.root else []
    if arguments.limit:
        data.append(f"dataset.limit={arguments.limit}")
    dataset = compose(*data).dataset
    items = find_pictures(dataset, find_ground_truth(dataset)).pictures[: arguments.pictures]
    pictures = np.zeros((len(items), SIZE, SIZE, 3), np.uint8)
    for item, place in zip(items, pictures, strict=True):
        item.fill(place)
    return Test(pictures, tuple(data), arguments.seconds)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="WIDER_val folder")
    parser.add_argument("--ground-truth", help="folder of the four .mat files")
    parser.add_argument("--device", choices=WAYS, default="cuda")
    parser.add_argument("--ways", default="", help="those with this in their name")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--pictures", type=int, default=8, help="for heads and inference")
    parser.add_argument("--limit", type=int, help="the command takes the first N pictures")
    parser.add_argument("--seconds", type=float, default=2.0, help="that inference is measured")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no row begins")
    arguments = parser.parse_args()
    if (arguments.root is None) != (arguments.ground_truth is None):
        parser.error("--root and --ground-truth belong together")
    return arguments


if __name__ == "__main__":
    main()
