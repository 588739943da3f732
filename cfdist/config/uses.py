"""Which runs read a key: the words in which the schema says it.

A key that a run does not read has no effect, and `cfdist.config.unused` refuses it. Each key of the
schema carries its `Use`s, which were read from the code of the jobs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cfdist.machine import SUBMITTED_JOB

Job = Literal[
    "evaluate",
    "score",
    "benchmark",
    "export",
    "convert",
    "quantize",
    "compare",
    "preprocess",
    "infer",
    "postprocess",
    "download",
    "doctor",
    "detect",
    "tune",
]
JOBS: tuple[str, ...] = get_args(Job)

# Jobs that leave no results, and have no folder for them.
WITHOUT_FOLDER = ("download", "doctor")

# Backends of this project; another one may read any of the backends' keys.
BACKENDS = ("openvino", "onnxruntime", "torch", "om", "simulated")


@dataclass(frozen=True)
class Situation:
    """What decides whether a run reads a key.

    Attributes:
        values: Every key of the run with its value.
        backends: The backends that may run its models; one, once it is known.
    """

    values: Mapping[str, Any]
    backends: frozenset[str]


@dataclass(frozen=True)
class When:
    """A condition under which a job reads a key.

    Attributes:
        words: What a person sets for it, after "only with".
        holds: Whether a run meets it.
    """

    words: str
    holds: Callable[[Situation], bool]


@dataclass(frozen=True)
class Use:
    """Jobs that read a key, each if all conditions hold."""

    jobs: tuple[str, ...]
    when: tuple[When, ...] = ()


class Uses(tuple[Use, ...]):
    """All jobs that read a key, each by the first `Use` that has it; in a field's metadata."""

    def __add__(self, other: tuple[Any, ...]) -> Uses:
        """Also those of another."""
        return Uses((*self, *other))


def as_looked_at(uses: Uses, key: str) -> Uses:
    """A key's uses with those of job=doctor, which looks at all that job=evaluate reads."""
    if key == "resume":  # there is nothing to go on with
        return uses
    looks = [Use(("doctor",), use.when) for use in uses if "evaluate" in use.jobs]
    return uses if any("doctor" in use.jobs for use in uses) else uses + Uses(looks)


def joined_cluster(address: str | None) -> str | None:
    """The address of the cluster that a run with this `cluster.address` joins; `None`: its own.

    A driver that was submitted to a cluster (`ray job submit`) runs there unless told otherwise.
    """
    if address is None and SUBMITTED_JOB in os.environ:
        return "auto"
    return None if address == "local" else address


def given(key: str, example: str) -> When:
    """A key that can be null is not."""
    return When(f"{key}={example}", lambda run: run.values[key] is not None)


def missing(key: str) -> When:
    """A key is null."""
    return When(f"{key}=null", lambda run: run.values[key] is None)


def equal(key: str, value: object, text: str) -> When:
    """A key has a value; `text` is how a person writes it."""
    return When(f"{key}={text}", lambda run: run.values[key] == value)


def parts(*names: str) -> When:
    """`benchmark.parts` holds one of these."""
    text = " or ".join(names)
    return When(
        f"benchmark.parts of {text}",
        lambda run: not set(names).isdisjoint(run.values["benchmark.parts"]),
    )


def on(*names: str) -> When:
    """The run may have one of these backends, or one that is not this project's."""
    return When(
        f"backend={' or '.join(names)}",
        lambda run: any(name in names or name not in BACKENDS for name in run.backends),
    )


def _file(run: Situation) -> str:
    """The model file that PyTorch, or a job without backend, takes; empty if there is none."""
    keys = ("model.checkpoint", "model.path", "model.weights.path")
    return next((str(run.values[key]) for key in keys if run.values[key] is not None), "")


OFFLINE = equal("benchmark.scenario", "offline", "offline")
DEVICES = parts("inference", "end_to_end")
PICTURES = parts("host", "end_to_end")
INFERENCE, HOST, END_TO_END = parts("inference"), parts("host"), parts("end_to_end")
REAL = When("a backend that runs the model", lambda run: run.backends != {"simulated"})
WITHOUT_CHECKPOINT = When(
    "model.checkpoint=null",
    lambda run: run.backends != {"torch"} or run.values["model.checkpoint"] is None,
)
HAS_OUTPUT_NAMES = When(
    "an ONNX or OM file",
    lambda run: run.backends != {"torch"} or _file(run).lower().endswith(".onnx"),
)
BATCH_IN_NAME = When(
    "{batch} in the model file's name",
    lambda run: (
        "{batch}" in (run.values["model.path"] or "") + (run.values["model.checkpoint"] or "")
    ),
)
EXPECTS_AP = When(
    "model.expected.easy, medium or hard",
    lambda run: any(
        run.values[f"model.expected.{name}"] is not None for name in ("easy", "medium", "hard")
    ),
)
AP_OBJECTIVE = When(
    "objective=easy, medium or hard",
    lambda run: run.values["objective"] != "pictures_per_second",
)
HAS_OBJECTIVE = When(
    "a backend that runs the model, or objective=pictures_per_second",
    lambda run: run.backends != {"simulated"} or not AP_OBJECTIVE.holds(run),
)
LETTERBOX = equal("preprocess.size", "letterbox", "letterbox")
OWN_SIZE = equal("preprocess.size", "own", "own")
SEVERAL_VIEWS = When(
    "several preprocess.scales or preprocess.flip=true",
    lambda run: (
        bool(run.values["preprocess.flip"])
        or (OWN_SIZE.holds(run) and len(run.values["preprocess.scales"]) > 1)
    ),
)
WIDER = equal("dataset.kind", "wider", "wider (dataset=wider_val)")
OWN_CLUSTER = When(
    "cluster.address=local", lambda run: joined_cluster(run.values["cluster.address"]) is None
)
NOT_BY_TOOL, BY_TOOL = equal("infer.cli", False, "false"), equal("infer.cli", True, "true")
CALIBRATION, TO_OM = given("convert.calibration", "N"), missing("convert.calibration")
LAYERS = equal("compare.layers", True, "true")
NOT_LAYERS = equal("compare.layers", False, "false")
NOT_DRY = equal("convert.dry_run", False, "false")
ONE_SIZE = missing("convert.sizes")
ALL_SIZES = equal("convert.sizes", "dataset", "dataset")
SHOWN_PICTURES = When(
    "convert.sizes=dataset or convert.calibration=N",
    lambda run: ALL_SIZES.holds(run) or CALIBRATION.holds(run),
)

ALWAYS = Uses([Use(JOBS)])
AS_TEXT = Uses([Use(JOBS, (equal("progress", "text", "text"),))])
NOT_QUIET = equal("quiet", False, "false")
DATA_SET = Uses(
    [
        Use(("evaluate", "score", "export", "quantize", "compare", "tune")),
        Use(("preprocess", "postprocess")),
        Use(("benchmark",), (PICTURES,)),
        Use(("convert",), (SHOWN_PICTURES,)),
    ]
)
WITH_FOLDER = Uses([Use(tuple(job for job in JOBS if job not in WITHOUT_FOLDER))])
INPUT_SIZE = Uses(
    [
        Use(tuple(job for job in WITH_FOLDER[0].jobs if job not in ("score", "convert"))),
        Use(("convert",), (ONE_SIZE,)),
    ]
)
ON_DEVICES = Uses(
    [
        Use(("evaluate", "quantize", "compare", "detect", "tune")),
        Use(("benchmark",), (DEVICES,)),
        Use(("infer",), (NOT_BY_TOOL,)),
    ]
)
RAY = Uses([*ON_DEVICES, Use(("preprocess", "postprocess"))])
ON_PICTURES = Uses(
    [
        Use(("evaluate", "quantize", "compare", "detect")),
        Use(("benchmark",), (END_TO_END,)),
        Use(("infer",), (NOT_BY_TOOL,)),
    ]
)


def only(*jobs: str, when: tuple[When, ...] = ()) -> Uses:
    """These jobs under these conditions."""
    return Uses([Use(jobs, when)])


def also(uses: Uses, *when: When) -> Uses:
    """The same jobs, under further conditions."""
    return Uses(Use(use.jobs, (*use.when, *when)) for use in uses)


def without(job: str, uses: Uses) -> Uses:
    """The same jobs but for one."""
    return Uses(Use(tuple(one for one in use.jobs if one != job), use.when) for use in uses)


def offline(uses: Uses) -> Uses:
    """The same, by job=benchmark only if its devices take as many pictures at once as they can."""
    return Uses(
        Use(use.jobs, (*use.when, OFFLINE)) if use.jobs == ("benchmark",) else use for use in uses
    )


def with_model(*jobs: str, parts: When = DEVICES) -> Uses:
    """`job=evaluate` and `job=benchmark` where a model runs, and further jobs."""
    runs = [Use(("evaluate", "tune"), (REAL,)), Use(("benchmark",), (parts, REAL))]
    return Uses([*runs, *([Use(jobs)] if jobs else [])])


# What job=compare does not read where it compares tensors: no device runs, and nothing is found.
_WITHOUT_LAYERS = (
    *("cluster.", "devices", "device.", "on_error", "pipeline.", "compare.ap", "compare.boxes"),
    *("model.batch", "model.top_k", "model.nms", "model.peaks", "model.score", "eval."),
    *("dataset.ship", "preprocess.", "backend."),
)


def without_layers(uses: Uses, key: str) -> Uses:
    """A key's uses with what job=compare reads of it."""
    if not key.startswith(_WITHOUT_LAYERS):
        return uses
    found = Uses()
    for use in uses:
        others = tuple(job for job in use.jobs if job != "compare")
        found += Uses([Use(others, use.when)] if others else [])
        if len(others) < len(use.jobs):
            found += Uses([Use(("compare",), (*use.when, NOT_LAYERS))])
    return found


MODEL_FILE = (
    also(with_model("infer", "detect"), WITHOUT_CHECKPOINT)
    + only("export", when=(missing("model.checkpoint"),))
    + only("convert", "quantize")
)
NORMALISATION = (
    with_model("quantize", "compare", "infer", "export", "detect")
    + only("preprocess", when=(equal("preprocess.input", "f32", "f32"),))
    + only("convert", when=(equal("convert.aipp", True, "true"),))
    + only("convert", when=(CALIBRATION,))
)
EXPECTED_AP = only("evaluate", when=(REAL, WIDER)) + only("score", when=(WIDER,))


def backend_key(*names: str, when: tuple[When, ...] = ()) -> Uses:
    """The jobs that take `backend=`, with one of these backends; with any if none is named."""
    conditions = (on(*names), *when) if names else when
    quantized = bool(names) and not {"openvino", "onnxruntime"}.isdisjoint(names)
    jobs = ("evaluate", "detect", "tune", *(["quantize"] if quantized else []))
    return (
        only(*jobs, when=conditions)
        + only("benchmark", when=(DEVICES, *conditions))
        + only("infer", when=(NOT_BY_TOOL, *conditions))
    )


def model_option(*names: str) -> Uses:
    """The same, and `job=compare` if one of its two models has such a backend."""
    return backend_key(*names) + only("compare", when=(on(*names),))


WITH_FAULT = backend_key("simulated", when=(given("backend.fault", "..."),))
