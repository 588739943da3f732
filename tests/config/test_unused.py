"""What a person types has an effect, or is refused: every key with every job."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist import config
from cfdist.command.arguments import prepare_arguments
from cfdist.config.installation import load_job
from cfdist.config.schema import Section, all_fields
from cfdist.config.unused import conditions, flat, refuse_unused, typed_keys
from cfdist.config.uses import JOBS, WITHOUT_FOLDER
from cfdist.errors import UserError

# Read from the code of the jobs, beside the schema: the keys that each job looks at in some run.
DATASET = {"name", "kind", "root", "ground_truth", "limit"}
NETWORK = {"convention", "color", "scale", "mean", "std"}
FILES = {"path", "sha256", "weights.path", "weights.size", "weights.sha256"}
EXPECTED = {f"expected.{name}" for name in ("easy", "medium", "hard", "protocol", "tolerance")}
SIZE = {"name", "height", "width"}
# Of a model that runs on devices.
RUN_MODEL = SIZE | NETWORK | FILES | {"checkpoint", "batch", "outputs", "top_k", "nms"}
RUN_MODEL |= {"peaks", "score"}
BACKEND = {"name", "streams", "precision", "providers", "device", "latency_ms", "preset"}
BACKEND |= {"provider_options", "gpus_per_device"}
BACKEND |= {"fault", "fault_device", "fault_after", "fault_once"}
VIEWS = {"size", "scales", "flip", "merge"}
POOL = {"device.timeout", "on_error"}
RAY = {"cluster.address", "cluster.dashboard", "cluster.wait_s", "cluster.keep_minutes"}
READ_BY = {
    "evaluate": {
        "dataset": DATASET | {"repeat"},
        "model": RUN_MODEL | EXPECTED,
        "backend": BACKEND,
        "eval": {"protocol", "gate", "metrics"},
        "preprocess": VIEWS | {"where", "cache"},
        "": RAY | {"devices", "pipeline.readers", "resume", "objective", "coco"} | POOL,
    },
    "score": {
        "dataset": DATASET,
        "model": {"name"} | EXPECTED,
        "eval": {"protocol", "gate", "metrics", "quirks"},
        "": {"predictions", "missing", "objective"},
    },
    "benchmark": {
        "dataset": DATASET | {"repeat"},
        "model": RUN_MODEL,
        "backend": BACKEND,
        "eval": {"protocol"},
        "benchmark": {"parts", "loops", "input", "readers", "pictures", "scenario", "min_seconds"},
        "": RAY | {"devices", "pipeline.readers"} | POOL,
    },
    "export": {
        "dataset": DATASET,
        "model": SIZE | NETWORK | FILES | {"checkpoint", "batch", "outputs", "top_k"},
        "export": {"output", "opset", "input", "peaks"},
    },
    "convert": {
        "model": SIZE | NETWORK | FILES | {"batch", "outputs", "top_k"} - {"convention"},
        "dataset": DATASET,
        "convert": {"output", "batches", "soc_version", "aipp", "log", "dry_run", "dynamic"}
        | {"extra", "calibration", "limit_s", "sizes"},
        "preprocess": {"scales"},
    },
    "quantize": {
        "dataset": DATASET,
        "model": SIZE | NETWORK | FILES | {"batch", "outputs", "top_k", "nms", "peaks", "score"},
        "backend": {"name", "streams", "precision", "providers", "provider_options"},
        "eval": {"protocol"},
        "quantize": {"output", "calibration", "pictures", "keep", "method", "percentile"}
        | {"per_channel", "reduce_range", "equalise"},
        "": RAY | {"devices", "pipeline.readers"} | POOL,
    },
    "compare": {
        "dataset": DATASET,
        "model": SIZE | NETWORK | {"batch", "outputs", "top_k", "nms", "peaks", "score"},
        "backend": {"precision", "providers", "provider_options", "device"},
        "preprocess": VIEWS,
        "eval": {"protocol"},
        "compare": {"ap", "boxes", "cosine", "dump", "layers", "pictures", "relative"},
        "": RAY | {"reference", "candidate", "devices", "pipeline.readers"} | POOL,
    },
    "preprocess": {
        "dataset": DATASET,
        "model": SIZE | NETWORK - {"convention"},
        "preprocess": {"output", "input"},
        "": RAY,
    },
    "infer": {
        "model": SIZE | NETWORK | FILES | {"checkpoint", "batch", "outputs"},
        "backend": BACKEND,
        "infer": {"input", "output", "name", "cli", "cli_args"},
        "": RAY | {"devices"} | POOL,
    },
    "postprocess": {
        "dataset": DATASET,
        "model": SIZE | {"convention", "top_k", "nms", "peaks", "score"},
        "eval": {"protocol"},
        "postprocess": {"input", "output"},
        "": RAY,
    },
    "download": {"download": {"to", "from", "mirrors", "size", "md5", "sha256", "stall_s"}},
}
READ_BY["detect"] = {
    "model": RUN_MODEL,
    "backend": BACKEND,
    "preprocess": VIEWS,
    "detect": {"threshold", "annotate"},
    "dataset": set(),
    "": RAY | {"input", "devices", "pipeline.readers"} | POOL,
}
READ_BY["tune"] = {
    "dataset": DATASET,
    "model": RUN_MODEL,
    "backend": BACKEND,
    "eval": {"protocol"},
    "tune": {"minutes", "tolerance", "batches", "models", "reference", "pictures"},
    "": RAY | {"devices", "pipeline.readers", "resume", "report"} | {"device.timeout"},
}
for _job in ("evaluate", "score", "benchmark", "compare"):
    READ_BY[_job]["log"] = {"mlflow", "wandb", "tensorboard"}
    READ_BY[_job][""] = READ_BY[_job][""] | {"report"} if "" in READ_BY[_job] else {"report"}
READ_BY["quantize"][""] = READ_BY["quantize"][""] | {"report"}
READ_BY["doctor"] = READ_BY["evaluate"] | {
    "": READ_BY["evaluate"][""] - {"resume"} | {"output_dir"}
}
READ_BY["convert"]["model"] -= {"convention"}
_jobs = ("evaluate", "doctor", "benchmark", "quantize", "compare", "tune")
for _job in (*_jobs, "preprocess", "postprocess", "detect"):
    READ_BY[_job]["dataset"] = READ_BY[_job]["dataset"] | {"damaged"}

for _job in (*_jobs, "detect"):
    READ_BY[_job]["dataset"] = READ_BY[_job]["dataset"] | {"ship"}


def keys_of(job: str) -> set[str]:
    """The keys that a job reads, by the table above."""
    named = {
        f"{section}.{key}".lstrip(".") for section, keys in READ_BY[job].items() for key in keys
    }
    of_all = {"job", "progress", "quiet", "verbose"}
    return named | of_all | ({"output_dir"} if job not in WITHOUT_FOLDER else set())


def checked(*settings: str, backends: tuple[str, ...] = ()) -> None:
    """Refuse what has no effect, as a command line with these settings would be."""
    arguments = prepare_arguments(list(settings))
    found = config.compose(*arguments)
    found.mark_typed(typed_keys(arguments))
    refuse_unused(found, backends or None)


@pytest.mark.parametrize("job", JOBS)
def test_each_key_is_read_by_the_job_or_refused(job):
    composed = config.compose(f"job={job}")
    for key in all_fields():
        assert (conditions(key, job) is not None) == (key in keys_of(job)), (job, key)
        composed.mark_typed(frozenset([key]))
        if key not in keys_of(job):
            with pytest.raises(UserError) as refused:
                refuse_unused(composed)
            assert str(refused.value).startswith(
                f"{key}: job={job} does not read it; it is for job"
            )
        elif not conditions(key, job):
            refuse_unused(composed)


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        (["predictions=p"], "predictions: job=evaluate does not read it; it is for job=score"),
        (["job=compare", "model.path=m"], "model.path: job=compare does not read it; it is for"),
        (["job=score", "backend=torch"], "backend: job=score does not read it"),
        (["job=convert", "eval=guide"], "eval: job=convert does not read it; it is for job="),
        (["job=infer", "dataset=wider_val"], "dataset: job=infer does not read it"),
        (["job=score", "model={batch: 4}"], "model.batch: job=score does not read it"),
        ([f"model.sha256={'0' * 64}"], "model.sha256: has .* reads it only with model.path=FILE"),
        (["model.path=m", "model.weights.size=3"], "model.weights.size: .* with model.path=null"),
        (
            ["backend=torch", "model.checkpoint=c", "model.path=m"],
            "model.path: .* only with model.checkpoint=null",
        ),
        (["model.checkpoint=c"], "model.checkpoint: .* only with backend=torch"),
        (["backend=onnxruntime", "backend.precision=bf16"], "precision: .* with backend=openvino"),
        (["backend.device=cuda"], "backend.device: .* only with backend=torch"),
        (["backend.latency_ms=5"], "backend.latency_ms: .* only with backend=simulated"),
        (["backend=om", "backend.streams=2"], "backend.streams: .* with backend=openvino or"),
        (
            ["backend=simulated", "backend.latency_ms=5", "backend.preset=310P3"],
            "backend.preset: .* only with backend.latency_ms=null",
        ),
        (["backend=simulated", "backend.fault_device=1"], "fault_device: .* with backend.fault="),
        (["preprocess.scales=[1,2]"], "preprocess.scales: .* only with preprocess.size=own"),
        (["preprocess.merge=vote"], "preprocess.merge: .* several preprocess.scales or preproce"),
        (
            [
                "experiment=multi_scale",
                "preprocess.size=letterbox",
                "preprocess.flip=false",
                "preprocess.merge=vote",
            ],
            "preprocess.merge: .* several preprocess.scales or preproce",
        ),
        (["preprocess.size=own", "model.width=640"], "model.width: .*preprocess.size=letterbox"),
        (["preprocess.size=own", "preprocess.where=cluster"], "preprocess.where: .*=letterbox"),
        (["backend=simulated", "model.nms=0.3"], "model.nms: .* a backend that runs the model"),
        (["backend=simulated", "eval=guide"], "eval: .* only with a backend that runs the model"),
        (["job=benchmark", "backend=simulated", "eval.protocol=guide"], "eval.protocol: .* a back"),
        (["model.expected.easy=0.9"], "model.expected.easy: .* dataset.kind=wider"),
        (["backend=simulated", "objective=hard"], "objective: .* a backend that runs the model"),
        (["job=score", "objective=pictures_per_second"], "objective: .*=easy, medium or hard"),
        (
            ["dataset=wider_val", "model.expected.tolerance=0.1"],
            "tolerance: .* model.expected.easy, medium or hard",
        ),
        (
            ["job=benchmark", "benchmark.parts=[host]", "benchmark.loops=3"],
            "benchmark.loops: .* only with benchmark.parts of inference",
        ),
        (
            ["job=benchmark", "benchmark.parts=[host]", "model.batch=3"],
            "model.batch: .* only with benchmark.parts of inference or end_to_end",
        ),
        *(
            (
                ["job=benchmark", "benchmark.scenario=single_stream", setting],
                f"{key}: .* only with benchmark.scenario=offline",
            )
            for setting in ("model.batch=4", "backend.streams=2", "benchmark.parts=[host]")
            for key in [setting.partition("=")[0]]
        ),
        (["job=infer", "infer.cli=true", "backend=om"], "backend: .* only with infer.cli=false"),
        (["job=preprocess", "preprocess.input=u8", "model.color=RGB"], "color: .*preprocess.input"),
        (["job=export", "model.top_k=9"], "model.top_k: .* only with export.peaks=true"),
        (
            ["job=convert", "convert.sizes=[64x64,96x64]", "convert.dynamic=true"],
            "convert.dynamic: .* only with convert.sizes=null",
        ),
        (
            ["job=convert", "convert.sizes=dataset", "model.height=64"],
            "model.height: .* only with convert.sizes=null",
        ),
        (
            ["job=convert", "convert.sizes=[64x64,96x64]", "dataset.limit=9"],
            "dataset.limit: .* convert.sizes=dataset",
        ),
        (["job=convert", "model.batch=9"], "model.batch: .* in the model file's name"),
        (
            ["job=convert", "convert.dry_run=true", "convert.limit_s=9"],
            "convert.limit_s: .* only with convert.dry_run=false",
        ),
        (
            ["job=convert", "convert.calibration=3", "convert.batches=[1]"],
            "convert.batches: .* only with convert.calibration=null",
        ),
        (["job=compare", "compare.layers=true", "devices=2"], "devices: .* compare.layers=false"),
        (
            ["job=compare", "compare.layers=true", "backend.precision=bf16"],
            "backend.precision: .* compare.layers=false",
        ),
        (["job=compare", "compare.relative=0.1"], "compare.relative: .* compare.layers=true"),
        (["job=quantize", "quantize.percentile=99"], "percentile: .* quantize.method=percentile"),
        (
            ["job=quantize", "quantize.per_channel=false", "quantize.equalise=true"],
            r"quantize.equalise: .* only with quantize.per_channel=true",
        ),
        (["job=quantize", "backend.device=cpu"], "backend.device: job=quantize does not read it"),
        (["cluster.address=auto", "cluster.dashboard=true"], "dashboard: .*cluster.address=local"),
    ],
)
def test_what_has_no_effect_is_refused_with_what_would_give_it_one(settings, refusal):
    with pytest.raises(UserError, match=refusal):
        checked(*settings)


@pytest.mark.parametrize(
    "settings",
    [
        ["model.batch=4", "devices=2", "backend.streams=1", "output_dir=o"],
        ["backend.precision=bf16"],  # backend=auto may be openvino
        ["backend=torch", "backend.device=cpu", "model.checkpoint=c.pth"],
        ["backend=simulated", "backend.fault=nan", "backend.fault_device=1"],
        ["backend=simulated", "backend.latency_ms=0"],
        ["experiment=published_table", "model.batch=8"],
        ["experiment=published_table", "backend=simulated"],  # the preset chooses the protocol
        ["job=compare", "reference=a", "candidate=b", "backend.precision=bf16"],
        ["job=compare", "compare.layers=true", "compare.pictures=2", "compare.relative=0.1"],
        ["job=quantize", "backend=openvino", "backend.precision=bf16", "devices=2"],
        ["job=convert", "model.path=m_{batch}.onnx", "model.batch=4", "convert.aipp=true",
         "model.mean=[0,0,0]"],
        ["job=benchmark", "benchmark.parts=[host]", "benchmark.readers=2", "model.width=64"],
        ["dataset=wider_val", "model=centerface_pytorch", "model.expected.tolerance=0.1"],
        ["job=export", "model=centerface_pytorch", "export.peaks=true", "model.top_k=9"],
        ["hydra.mode=RUN"],
        ["backend=simulated", "objective=pictures_per_second"],
    ],
)  # fmt: skip
def test_what_has_an_effect_is_not(settings):
    assert checked(*settings) is None


def test_what_only_a_file_sets_may_stand():
    # The files of these groups set keys that job=score does not read.
    found = config.compose("job=score", "backend=torch", "model.batch=3")
    refuse_unused(found)
    found.mark_typed(frozenset(["model.batch"]))
    with pytest.raises(UserError, match=r"^model\.batch: job=score does not read it"):
        refuse_unused(found)


def test_the_backend_that_auto_has_become_decides():
    checked("backend.precision=bf16", backends=("openvino",))
    with pytest.raises(UserError, match=r"torch \(backend=auto is onnxruntime here\)"):
        checked("backend.precision=bf16", backends=("onnxruntime",))
    compare = ("job=compare", "backend.precision=bf16")
    checked(*compare, backends=("openvino", "torch"))
    with pytest.raises(
        UserError, match=r"backend\.precision: .* only with backend=openvino or torch$"
    ):
        checked(*compare, backends=("om", "onnxruntime"))


@pytest.mark.parametrize(
    "argument", ["backend.provider_options={a:1,b:2}", "+backend.provider_options.a=1"]
)
def test_a_mapping_is_one_key_of_which_each_entry_counts(argument):
    assert typed_keys([argument]) == {"backend.provider_options"}
    with pytest.raises(UserError, match=r"provider_options: .* only with backend=onnxruntime"):
        checked(argument, "backend=openvino")
    assert flat({"backend": {"provider_options": {"a": 1}}}) == {
        "backend.provider_options": {"a": 1}
    }


def test_typed_keys_are_those_of_settings():
    arguments = ["-m", "job=score", "+model.batch=1,2", "model.expected={easy: 0.5, hard: 1}"]
    arguments += ["dataset=sample", "--multirun"]
    expected = {"job", "model.batch", "model.expected.easy", "model.expected.hard", "dataset"}
    assert typed_keys(arguments) == expected


@given(st.sets(st.sampled_from(sorted(all_fields()))))
def test_each_typed_key_is_found(keys):
    assert typed_keys(f"{key}=1" for key in keys) == keys


@pytest.fixture
def looked_at(monkeypatch) -> Iterator[set[str]]:
    """The keys that code looks at while the fixture lives."""
    seen: set[str] = set()
    names = dict(_sections())

    def look(self, name):
        value = object.__getattribute__(self, name)
        prefix = names.get(type(self))
        key = f"{prefix}.{name}".lstrip(".") if prefix is not None else name
        if key in all_fields():
            seen.add(key)
        return value

    monkeypatch.setattr(Section, "__getattribute__", look, raising=False)
    yield seen


def _sections() -> Iterator[tuple[type, str]]:
    from cfdist.config.schema import sections

    for section, fields in sections():
        yield section, next(iter(fields)).rpartition(".")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "settings"),
    [
        ("score", ["predictions=boxes"]),
        ("convert", ["convert.dry_run=true", "convert.soc_version=Ascend310P3"]),
    ],
)
def test_a_job_looks_at_no_key_that_is_refused(job, settings, looked_at, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    event = tmp_path / "boxes" / "0--Sample"
    event.mkdir(parents=True)
    (tmp_path / "out").mkdir()
    found = config.compose(f"job={job}", *settings)
    looked_at.clear()
    try:
        load_job(job).main(found, tmp_path / "out", time.time())
    except UserError:
        assert job == "score"  # an empty folder of predictions
    # `inputs.find_pictures` hands dataset.damaged on, whoever reads the pictures then, and
    # `execution.conventions` imports a convention of one's own and checks the peaks for all jobs.
    used = looked_at - {"dataset.kind", "dataset.damaged", "backend.name"}
    used -= {"model.convention", "model.peaks"}
    assert len(used) > 3
    assert {key for key in used if conditions(key, job) is None} == set()
