"""What every job with devices decides before its first picture."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cfdist import backends, execution, inputs
from cfdist.ascend.npu_smi import Npu
from cfdist.backends.model import BackendModel
from cfdist.distributed import accelerators
from cfdist.distributed import session as sessions
from cfdist.distributed.journal import Journal, RunIdentity
from cfdist.distributed.shipping import read_here
from cfdist.distributed.work import item_work
from cfdist.errors import UserError
from cfdist.widerface.manifest import WorkItem


@pytest.fixture
def chosen(monkeypatch) -> list[str]:
    """The models for which a CPU runtime was chosen: always ONNX Runtime."""
    asked: list[str] = []

    def choose(spec, options, threads):
        asked.append(spec.name)
        return BackendModel("onnxruntime", spec, options, remark="the faster CPU runtime here")

    monkeypatch.setattr(execution, "choose_cpu_backend", choose)
    monkeypatch.setattr(backends, "list_npus", list)
    return asked


def test_auto_takes_the_faster_runtime_and_says_so(compose, chosen):
    model = execution.find_model(compose())
    assert model.backend == "onnxruntime"
    assert "the faster CPU runtime here" in model.remark
    assert chosen == ["centerface"]


def test_a_named_runtime_is_taken_without_measuring(compose, chosen):
    model = execution.find_model(compose("backend=openvino"))
    assert (model.backend, model.remark, chosen) == ("openvino", "", [])


def test_a_resumed_run_keeps_the_backend_that_it_began_with(compose, chosen, tmp_path):
    Journal(tmp_path / "journal", RunIdentity("f", "openvino"))
    assert execution.find_model(compose(), tmp_path).backend == "openvino"
    assert execution.find_model(compose("backend=onnxruntime"), tmp_path).backend == "onnxruntime"
    assert chosen == []


@pytest.mark.parametrize(("free", "backend"), [(8e9, "openvino"), (1e12, "onnxruntime")])
def test_only_runtimes_that_fit_the_memory_are_measured(
    compose, chosen, monkeypatch, free, backend
):
    monkeypatch.setattr(execution, "available_memory", lambda: int(free))
    model = execution.find_model(compose("model.batch=64"))
    assert model.backend == backend
    assert ("fits the free memory" in model.remark) == (not chosen)


def test_a_batch_that_no_runtime_can_hold_is_refused_unmeasured(compose, chosen, monkeypatch):
    for module in (execution, "cfdist.devices.memory"):
        name = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{name}.available_memory", lambda: 1_000_000)
    with pytest.raises(UserError, match=r"model.batch=1: 1 device .* need about"):
        execution.find_model(compose())
    assert chosen == []


def test_devices_that_are_too_many_are_refused_unmeasured(compose, chosen):
    for devices in ("999", "[0]"):
        with pytest.raises(UserError, match="devices="):
            execution.find_model(compose(f"devices={devices}"))
    assert chosen == []


def test_another_cluster_s_runtimes_are_not_measured_here(compose, chosen):
    model = execution.find_model(compose("cluster.address=auto"))
    assert (model.backend, chosen) == ("openvino", [])


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        (["devices=[5]"], "cpu", r"devices=\[5\]: CPU devices have no numbers; .* devices=1$"),
        (["devices=[0,1]", "cluster.address=auto"], "npu", "a cluster that is running .*devices=2"),
        (["devices=[0,2]"], "npu", "there is no NPU 2; this machine has 2, counted from 0"),
    ],
)
def test_numbers_that_choose_no_device_are_refused(compose, monkeypatch, settings, kind, message):
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(accelerators, "read_npus", lambda: ["Ascend310P3"] * 2)
    with pytest.raises(UserError, match=message):
        execution._refuse_device_numbers(compose(*settings), kind)


def test_a_typed_key_that_the_chosen_runtime_does_not_read_is_refused(compose, chosen):
    config = compose("backend.precision=bf16")
    assert execution.find_model(config).backend == "onnxruntime"  # of a file, not typed
    config.mark_typed(frozenset(["backend.precision"]))
    message = r"backend.precision: .* only with .* torch \(backend=auto is onnxruntime here"
    with pytest.raises(UserError, match=message):
        execution.find_model(config)


def test_a_normalisation_is_refused_where_the_file_has_its_own(compose, monkeypatch):
    config = compose("backend=openvino", "model.mean=[1,2,3]")
    config.mark_typed(frozenset(["model.mean"]))
    assert execution.find_model(config).spec.mean == (1, 2, 3)
    monkeypatch.setattr(BackendModel, "check", lambda self: None)
    monkeypatch.setattr("cfdist.backends.onnx_file.load_onnx", lambda spec: None)
    monkeypatch.setattr("cfdist.backends.onnx_file.takes_u8", lambda model: True)
    with pytest.raises(UserError, match=r"model\.mean: .* normalises them in its own graph"):
        execution.find_model(config)


def test_typed_names_of_outputs_must_be_the_file_s(compose, chosen):
    config = compose("model.outputs=[a,b,c,d]", "backend=openvino")
    assert execution.find_model(config).spec.needs_outputs is False
    config.mark_typed(frozenset(["model.outputs"]))
    with pytest.raises(UserError, match="missing 'a', 'b', 'c', 'd'"):
        execution.find_model(config)


@pytest.mark.slow
def test_the_fingerprint_is_that_of_what_decides_the_detections(compose, spec):
    config = compose("dataset.limit=3")
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    model = BackendModel("openvino", spec())

    def fingerprint(backend="openvino", passes=1, options=(), **changes) -> str:
        changed = replace(model, backend=backend, spec=spec(**changes), options=dict(options))
        return execution.run_identity(changed, manifest.repeated(passes)).fingerprint

    assert fingerprint(batch=7) == fingerprint()
    others = [
        fingerprint(nms=None),
        fingerprint(sha256="1" * 64),
        fingerprint(backend="torch"),
        fingerprint(passes=2),
        fingerprint(options={"precision": "bf16"}),
    ]
    assert len({fingerprint(), *others}) == 6
    assert fingerprint(options={"streams": 2, "providers": ["CPUExecutionProvider"]}) == (
        fingerprint()
    )
    identity = execution.run_identity(model, manifest)
    assert identity == RunIdentity(fingerprint(), "openvino")
    assert identity.parts["pictures"] == 3
    assert identity.parts["model.nms"] == model.spec.nms
    assert execution.run_identity(model, manifest, "guide") != identity
    assert fingerprint(score=0.1) != fingerprint(peaks="threshold") != fingerprint()


def test_a_run_of_an_earlier_version_can_go_on_where_new_keys_have_their_defaults(compose, spec):
    config = compose("dataset.limit=3")
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    parts = execution.run_identity(BackendModel("openvino", spec()), manifest).parts
    assert not {"preprocess.size", "model.peaks", "model.score"} & parts.keys()
    assert {"model.top_k", "model.nms", "model.height"} <= parts.keys()
    changed = BackendModel("openvino", spec(size="own", score=0.1, peaks="threshold"))
    assert {"preprocess.size", "model.peaks", "model.score"} <= (
        execution.run_identity(changed, manifest).parts.keys()
    )


def test_a_journal_from_before_a_setting_is_that_of_a_run_without_it(compose, spec):
    config = compose("dataset.limit=3")
    manifest = inputs.find_pictures(config.dataset, inputs.find_ground_truth(config.dataset))
    parts = execution.run_identity(BackendModel("openvino", spec()), manifest).parts
    changed = {"peaks": "threshold", "score": 0.1, "size": "own", "scales": (2.0,), "flip": True}
    other = BackendModel("openvino", spec(**changed, merge="vote"))
    now = execution.run_identity(other, manifest).parts
    new = ["model.peaks", "model.score"]
    new += [f"preprocess.{key}" for key in ("flip", "merge", "scales", "size")]
    assert sorted(now.keys() - parts.keys()) == new


def test_at_own_size_the_pictures_decide_the_input(compose, spec):
    config = compose("dataset.limit=3")
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    model = BackendModel("openvino", spec(size="own"))
    sizes = {"a": (1024, 300), "b": (700, 683), "c": (30, 2000)}
    largest = execution.at_largest_size(model, sizes)
    assert (largest.spec.width, largest.spec.height) == (704, 704)
    scaled = replace(model, spec=replace(model.spec, scales=(0.5, 64.0, 2.0)))
    twice = execution.at_largest_size(scaled, sizes).spec
    assert (twice.width, twice.height) == (1408, 1376)
    assert execution.at_largest_size(model, {}) == model
    whole = execution.run_identity(largest, manifest)
    assert whole == execution.run_identity(model, manifest)
    assert whole.parts["preprocess.size"] == "own"
    plain = execution.run_identity(BackendModel("openvino", spec()), manifest).parts
    assert {"preprocess.size", "preprocess.flip", "model.peaks", "model.score"}.isdisjoint(plain)
    assert whole != execution.run_identity(BackendModel("openvino", spec()), manifest)


def test_a_scale_that_makes_a_side_too_short_is_refused(compose, spec):
    item = inputs.find_pictures(
        compose("dataset.limit=1").dataset, inputs.find_ground_truth(compose().dataset)
    ).items[0]
    models = [BackendModel("openvino", spec(size="own"))]
    config = compose("preprocess.size=own", "preprocess.scales=[1,0.02]")
    with pytest.raises(UserError, match=rf"preprocess.scales: 0.02 makes {item.id} .* must have"):
        execution._with_sizes(config, models, [item])
    sized = execution._with_sizes(compose("preprocess.size=own"), models, [item])
    assert [*sized.sizes] == [item.id] == [sized.largest]


@pytest.mark.parametrize(
    ("scales", "too_large"), [((1.0,), ["e/huge"]), ((0.5, 2.0), ["e/huge"]), ((8192.0,), [])]
)
def test_a_picture_that_the_memory_cannot_hold_fails_and_the_others_are_done(
    compose, spec, monkeypatch, scales, too_large
):
    sizes = {"e/a": (640, 480), "e/huge": (16_000, 16_000), "e/b": (320, 320)}
    monkeypatch.setattr(execution, "picture_sizes", lambda items: sizes)
    monkeypatch.setattr(execution, "available_memory", lambda: 8_000_000_000)
    models = [BackendModel("openvino", spec(size="own", scales=scales))]
    config = compose("preprocess.size=own")
    sized = execution._with_sizes(config, models, [])
    models, largest, notes = sized.models, sized.largest, sized.notes
    assert sized.sizes == sizes
    most = models[0].spec.most_pixels
    if too_large:
        assert (most, largest) == (models[0].spec.height * models[0].spec.width, "e/a")
        assert "which fail: 1; the first, e/huge, is of 16000x16000 pixels" in notes[0]
    else:  # a scale that is too large for most of the pictures is a setting that is too large
        assert (most, largest, notes) == (None, "e/a", ())
        with pytest.raises(UserError, match="the largest picture, e/a, of 10944x8192,"):
            execution.refuse_too_large(models, free=8_000_000_000, picture=largest)


def test_a_model_that_lacks_a_picture_s_size_is_refused_before_the_run(
    compose, spec, monkeypatch, tmp_path
):
    path, config = tmp_path / "net.om", compose("preprocess.size=own")
    option = "--dynamic_image_size=480,640;320,320"
    Path(f"{path}.json").write_text(json.dumps({"om_sha256": "1", "command": [option]}))
    models = [BackendModel("om", spec(path, size="own", sha256="1"))]
    sizes = {"e/a": (640, 480), "e/b": (300, 310)}
    monkeypatch.setattr(execution, "picture_sizes", lambda items: sizes)
    (model,) = execution._with_sizes(config, models, []).models
    assert (model.spec.height, model.spec.width) == (480, 640)
    sizes |= {"e/high": (480, 640), "e/wide": (704, 32), "e/same": (479, 640)}
    with pytest.raises(UserError) as refused:
        execution._with_sizes(config, models, [])
    assert str(refused.value) == (
        f"model {path}: has no input of 640x480 (rows x columns), which e/high needs, nor of 1 "
        "others; build it with job=convert convert.sizes=dataset for this data set, or "
        "convert.sizes=[...,640x480]"
    )
    models = [replace(models[0], spec=replace(models[0].spec, scales=(0.5, 1.0)))]
    with pytest.raises(UserError, match=r"sizes=dataset preprocess.scales=\[0.5,1\] for this"):
        execution._with_sizes(config, models, [])


def test_several_views_need_a_suppression(compose):
    config = compose("preprocess.flip=true", "backend=openvino")
    assert len(execution.find_model(config).spec.views) == 2
    config = compose("preprocess.flip=true", "model.nms=null", "backend=openvino")
    with pytest.raises(UserError, match=r"each face is found more than once; set model.nms"):
        execution.find_model(config)


def test_items_of_one_shape_stand_together_the_largest_first():
    sizes = {"a": (100, 100), "b": (1024, 700), "c": (97, 128), "d": (1000, 704), "f": (128, 97)}
    items = [WorkItem(id, id, 1) for id in "abcdef"]
    # b and d are 1024x704; a, c and f are 128x128; nobody knows the size of e.
    assert [item.id for item in execution.by_shape(items, sizes)] == [*"bdacfe"]


def test_a_threshold_is_needed_where_it_picks_the_peaks(compose):
    for settings in (["model.score=0.1"], ["model.top_k=9"]):
        peaks = ["model.peaks=threshold", "model.top_k=null", *settings]
        execution.conventions(compose(*peaks).model)
    with pytest.raises(UserError, match=r"every cell is a peak; set model.score, such as 0.02"):
        execution.conventions(compose("model.peaks=threshold", "model.top_k=null").model)


@pytest.mark.parametrize(
    ("where", "kind", "nodes", "expected"),
    [
        ("device", "npu", [{"CPU": 4}], False),
        ("cluster", "cpu", [{"CPU": 4}], True),
        ("auto", "cpu", [{"CPU": 4}, {"CPU": 4}], False),
        ("auto", "npu", [{"CPU": 4, "NPU": 2}], False),
        ("auto", "npu", [{"CPU": 4, "NPU": 2}, {"CPU": 8}], True),
        ("auto", "npu", [{"CPU": 4, "NPU": 2}, {"CPU": 8, "NPU": 1}], False),
        ("auto", "gpu", [{"CPU": 4, "GPU": 1}, {"memory": 8}], False),
    ],
)
def test_pictures_are_letterboxed_where_cores_are_idle(monkeypatch, where, kind, nodes, expected):
    import ray

    names = {"NodeManagerHostname": "h", "NodeID": "0"}
    listed = [{"Resources": resources, "Alive": True, **names} for resources in nodes]
    listed.append({"Resources": {"CPU": 64}, "Alive": False, **names})
    monkeypatch.setattr(ray, "nodes", lambda: listed)
    assert execution._letterboxes_on_cluster(where, kind) is expected


@pytest.mark.usefixtures("ray_session")
def test_devices_that_do_not_fit_are_refused_before_they_start(compose, monkeypatch, spec):
    monkeypatch.setattr("cfdist.devices.memory.available_memory", lambda: 1_000_000)
    model = BackendModel("openvino", spec(), {"precision": "f32"})
    with (
        pytest.raises(UserError, match=r"model.batch=2: 1 device with 1 of these batches"),
        execution.start(compose(), [model]),
    ):
        pass


@pytest.fixture
def sweep(monkeypatch):
    """A sweep's session without pictures."""
    shared = sessions.SharedSession((), contextlib.ExitStack(), None)
    monkeypatch.setattr(sessions, "_shared", shared)
    return shared


@pytest.fixture
def supplied(monkeypatch, compose, spec):
    """Supplies three pictures; there is room for all of them."""
    config = compose("dataset.limit=3")
    manifest = inputs.find_pictures(config.dataset, inputs.find_ground_truth(config.dataset))
    monkeypatch.setattr(execution, "fits_store", lambda missing, size: missing <= 3)

    def supply(
        *overrides: str, height: int = 800, on_cluster: bool = False, passes: int = 1
    ) -> execution.PictureSupply:
        model = BackendModel("simulated", spec(height=height), {})
        sizes = dict.fromkeys((item.id for item in manifest.items), (50, 40))
        there = SimpleNamespace(models=(model,), letterboxes_on_cluster=on_cluster, sizes=sizes)
        pictures = manifest.repeated(passes)
        return execution.supply_pictures(compose(*overrides), there, pictures)

    supply.items = manifest.items
    return supply


def test_a_single_run_reads_beside_its_devices_or_by_a_stage_and_keeps_nothing(supplied):
    assert supplied().make_work is item_work
    assert supplied().origin == "device"
    assert supplied(on_cluster=True).origin == "cluster"
    assert supplied("preprocess.cache=true").make_work is item_work
    assert supplied("preprocess.cache=true", passes=2).make_work is not item_work
    assert supplied(passes=2).make_work is item_work


@pytest.mark.usefixtures("ray_session")
def test_pictures_at_their_own_size_stay_beside_their_devices(supplied, sweep):
    supply = supplied("preprocess.size=own")
    assert supply.origin == "device"
    assert sweep.pictures is None
    assert supply.make_work(supplied.items).keys == [item.key for item in supplied.items]


@pytest.mark.parametrize("on_cluster", [False, True])
def test_the_runs_of_a_sweep_share_what_those_before_have_kept(supplied, sweep, on_cluster):
    origin = "cluster" if on_cluster else "device"
    assert supplied(on_cluster=on_cluster).origin == origin
    sweep.pictures.add(supplied.items[:2], "block")
    assert supplied(on_cluster=on_cluster).origin == origin
    sweep.pictures.add(supplied.items[2:], "another block")
    second = supplied(on_cluster=on_cluster)
    assert second.origin == "store"
    chunk = second.make_work(supplied.items).take(9)
    assert [(one.block, len(one)) for one in chunk] == [("block", 2), ("another block", 1)]
    assert supplied("preprocess.cache=false").origin == "device"
    assert supplied().origin == "store"
    supplied(height=640)  # another size needs other pixels
    assert (sweep.pictures.size, sweep.pictures.rows) == ((800, 640), {})


def test_what_a_device_does_not_see_is_never_left_to_it(supplied, sweep):
    for overrides, expected in (((), None), (("dataset.ship=true",), read_here)):
        assert supplied(*overrides, on_cluster=True).origin == "cluster"
        sweep.pictures.add(supplied.items, "block")
        supply = supplied(*overrides, on_cluster=True)
        assert supply.origin == "store"
        work = supply.make_work(supplied.items)
        assert [one.block for one in work.take(9)] == ["block"]
        assert work.read_here is expected
        sweep.pictures.forget("block")


def test_pictures_are_kept_only_as_configured(supplied, sweep, monkeypatch):
    assert supplied("preprocess.cache=false").make_work is item_work
    monkeypatch.setattr(execution, "fits_store", lambda missing, size: missing == 0)
    assert supplied().make_work is item_work
    assert sweep.pictures is None
    supplied("preprocess.cache=true")  # Ray spills
    sweep.pictures.add(supplied.items, "block")
    assert supplied().origin == "store"


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ("auto", ("may take it all the same", "leaves it out")),
        ([2], ("leaves it out", "may take it all the same")),
    ],
)
def test_chips_that_are_not_well_are_told(monkeypatch, caplog, devices, words):
    chips = [
        Npu("Ascend310P3", n, 0, health) for n, health in enumerate(("OK", "Alarm", "Critical"))
    ]
    monkeypatch.setattr(execution, "read_host", lambda: (chips, []))
    monkeypatch.setattr(accelerators, "read_npus", lambda: chips)
    monkeypatch.setattr(accelerators, "list_npus", lambda: [chip.name for chip in chips])
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)
    notes = execution._npu_notes(devices)
    assert [note.startswith(f"chip {n} ") for n, note in enumerate(notes, 1)] == [True, True]
    assert all(note.endswith(word) for note, word in zip(notes, words, strict=True))
    assert tuple(record.message for record in caplog.records) == notes


def test_only_a_gpu_has_parts(compose):
    half = compose("backend.gpus_per_device=0.5")
    assert execution._part_of_gpu(half, "gpu") == 0.5
    assert execution._part_of_gpu(compose(), "cpu") == 1
    with pytest.raises(UserError, match=r"^backend\.gpus_per_device=0\.5: .* are CPUs; leave it"):
        execution._part_of_gpu(half, "cpu")
