"""What is kept of letterboxed pictures, and that a bound is a bound."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cfdist import inputs
from cfdist.distributed import cluster, memory, picture_cache
from cfdist.distributed.picture_cache import KeptPictures, KeptRow, PictureCache, choose_cache
from cfdist.distributed.run import evaluate_manifest
from cfdist.errors import UserError
from cfdist.widerface.manifest import Manifest, WorkItem
from jobs import evaluate

PICTURE = 8 * 4 * 3  # bytes


def items(*names: str) -> list[WorkItem]:
    return [WorkItem(f"e/{name}", f"{name}.jpg", 1) for name in names]


def test_a_kept_row_is_copied_with_its_size():
    warped = np.arange(2 * PICTURE, dtype=np.uint8).reshape(2, 8, 4, 3)
    pictures = KeptPictures(np.array([[10, 20], [30, 40]], np.int32), warped)
    row = np.zeros((8, 4, 3), np.uint8)
    assert KeptRow(pictures, 1).copy_into(row) == (30, 40)
    np.testing.assert_array_equal(row, warped[1])


def test_the_bound_holds_and_failed_pictures_free_their_room():
    cache = PictureCache(8, 4, limit=5 * PICTURE)
    first, second = items("a", "b", "c"), items("d", "e", "f")
    assert cache.reserve(first) == [0, 1, 2]
    assert cache.reserve(second) == [0, 1]  # six pictures are more than five
    cache.add(first, [0, 1, 2], (0, 2), "object")  # b could not be read

    assert cache.used == 4 * PICTURE
    assert cache.places(first) == [("object", 0), None, ("object", 1)]
    cache.add(second, [0, 1], (), None)  # the device died
    assert cache.used == 2 * PICTURE
    assert len(cache) == 2
    assert cache.reserve(first) == [1]  # a and c are there


def test_a_picture_is_kept_once_however_many_passes_there_are():
    cache = PictureCache(8, 4, limit=100 * PICTURE)
    pictures = items("a", "b")
    assert cache.reserve([*pictures, pictures[0]]) == [0, 1]  # twice in one chunk
    assert cache.reserve([pictures[1], *items("c")]) == [1]  # on its way
    cache.add([*pictures, pictures[0]], [0, 1], (0, 1), "object")
    assert cache.reserve(pictures) == []  # there
    assert cache.used == 3 * PICTURE


def test_objects_that_are_lost_are_forgotten_whole():
    cache = PictureCache(8, 4, limit=100 * PICTURE)
    lost, safe = items("a", "b"), items("c", "d")
    for chunk, reference in ((lost, "lost"), (safe, "safe")):
        assert cache.reserve(chunk) == [0, 1]
        cache.add(chunk, [0, 1], (0, 1), reference)
    cache.forget([lost[1], *items("e")])
    assert cache.places([*lost, *safe]) == [None, None, ("safe", 0), ("safe", 1)]
    assert cache.used == 2 * PICTURE
    assert cache.reserve(lost) == [0, 1]


@pytest.fixture
def sweep(monkeypatch):
    """A sweep's session that has kept two pictures of 8x4 pixels."""
    cache = PictureCache(8, 4, limit=4 * PICTURE)
    cache.add(items("a", "b"), cache.reserve(items("a", "b")), (0, 1), "object")
    session = cluster.KeptSession((), contextlib.ExitStack(), None, pictures=cache)
    monkeypatch.setattr(cluster, "_kept", session)
    return session


@pytest.mark.usefixtures("ray_session")
def test_a_sweep_s_members_share_what_fits_them(sweep):
    kept = sweep.pictures
    manifest = Manifest(tuple(items("a", "b", "c", "d")), 0, 0)
    assert cluster.kept_bytes() == 2 * PICTURE
    assert choose_cache("auto", None, manifest, 8, 4) is kept
    assert choose_cache(True, None, manifest, 8, 4) is kept  # two more are just what fits
    with pytest.raises(UserError, match=r"3 pictures take .* beside the 0.00 GB kept already"):
        choose_cache(True, None, Manifest(tuple(items("a", "c", "d", "e")), 0, 0), 8, 4)
    assert choose_cache("auto", 1e-6, manifest, 8, 4).limit == 1000

    other_size = choose_cache("auto", 1e-6, manifest, 4, 4)
    assert (len(other_size), sweep.pictures) == (0, other_size)
    # The store has the memory still.
    assert cluster.kept_bytes() == 2 * PICTURE


@pytest.mark.usefixtures("ray_session")
def test_memory_of_given_up_pictures_is_there_for_others(sweep, monkeypatch):
    monkeypatch.setattr(picture_cache, "available_memory", lambda: 0)
    manifest = Manifest(tuple(items("a")), 0, 0)
    assert choose_cache("auto", None, manifest, 4, 4).limit == 2 * PICTURE * 0.5


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("cache", "free", "stays"),
    [("auto", 10**12, True), ("auto", 1000, False), ("false", 1000, False), ("true", 10**12, True)],
)
def test_kept_pictures_make_room_for_the_devices(sweep, monkeypatch, compose, cache, free, stays):
    config = compose("backend=simulated", f"preprocess.cache={cache}")
    model = evaluate.find_model(config)
    needed = memory.needed_bytes(model.spec, model.backend_class, model.kind, 1, 1)
    sweep.pictures.used = 2 * needed
    for module in (memory, evaluate, cluster):
        monkeypatch.setattr(module, "available_memory", lambda: free)
    is_ended = False

    def end():
        nonlocal is_ended
        is_ended = True

    sweep.stack.callback(end)
    with evaluate.session(config, model):
        assert is_ended != stays


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("cache", ["true", "auto"])
def test_what_would_not_be_enough_is_not_given_up(sweep, monkeypatch, compose, cache):
    config = compose("backend=simulated", f"preprocess.cache={cache}")
    model = evaluate.find_model(config)
    sweep.pictures.used = 1000
    for module in (memory, evaluate, cluster):
        monkeypatch.setattr(module, "available_memory", lambda: 1000)
    with (
        pytest.raises(UserError, match=r"model.batch=1: .* 0.0 GB are free"),
        evaluate.session(config, model),
    ):
        evaluate.plan_devices(config, model)
    assert cluster.kept_session() is sweep


def test_a_single_run_keeps_nothing_by_itself():
    manifest = Manifest(tuple(items("a")), 0, 0)
    assert choose_cache("auto", None, manifest, 8, 4) is None
    assert choose_cache(False, None, manifest, 8, 4) is None


@pytest.mark.usefixtures("ray_session")
def test_too_much_to_keep_is_refused_with_both_figures(monkeypatch):
    manifest = Manifest(tuple(items("a", "b")), 0, 0)
    monkeypatch.setattr(picture_cache, "available_memory", lambda: 2 * PICTURE)
    with pytest.raises(UserError, match=r"preprocess.cache=true: 2 pictures take .* may be kept"):
        choose_cache(True, None, manifest, 8, 4)
    with pytest.raises(UserError, match=r"preprocess.cache_gb=1e\+09: Ray's object store has"):
        choose_cache(True, 1e9, manifest, 8, 4)
    assert choose_cache(True, 1e-6, manifest, 8, 4).limit == 1000


@pytest.mark.usefixtures("ray_session")
def test_a_second_pass_decodes_no_picture_and_finds_the_same(compose, spec, tmp_path):
    config = compose("dataset.limit=20")
    truth = inputs.find_ground_truth(config.dataset)
    once = inputs.find_pictures(config.dataset, truth)
    model = spec(height=256, width=256, batch=4)

    def evaluate(manifest: Manifest, folder: Path, pictures: PictureCache | None):
        folder.mkdir()
        plan = cluster.plan_devices("cpu", 2, feeders=1, streams=1, slot_bytes=4 * 256 * 256)
        outcome = evaluate_manifest(
            manifest,
            truth,
            backend="openvino",
            spec=model,
            options={"precision": "f32"},
            plan=plan,
            output=folder,
            fingerprint="f",
            style="official",
            on_ready=lambda done: None,
            on_done=lambda report: None,
            pictures=pictures,
        )
        return outcome, sum(report.decoded for report in outcome.devices.values())

    pictures = PictureCache(256, 256, limit=10**9)
    plain, plain_decoded = evaluate(once, tmp_path / "plain", None)
    first, decoded = evaluate(once, tmp_path / "first", pictures)
    again, decoded_again = evaluate(once.repeated(2), tmp_path / "again", pictures)

    # What an interrupted run has left: every third picture.
    some = PictureCache(256, 256, limit=10**9)
    evaluate(replace(once, items=once.items[::3]), tmp_path / "third", some)
    rest, decoded_rest = evaluate(once, tmp_path / "rest", some)
    _, decoded_then = evaluate(once, tmp_path / "then", some)
    assert (decoded_rest, decoded_then, len(some)) == (13, 0, 20)
    assert rest.evaluation.ap == plain.evaluation.ap

    assert (plain_decoded, decoded, decoded_again) == (20, 20, 0)
    assert len(pictures) == 20
    assert pictures.used == 20 * 256 * 256 * 3
    assert plain.evaluation.ap == first.evaluation.ap == again.evaluation.ap
    assert again.timeline.points[-1][1] == 40
    contents = [
        {p.relative_to(folder): p.read_bytes() for p in (folder / "predictions").rglob("*.txt")}
        for folder in (tmp_path / name for name in ("plain", "first", "again", "rest", "then"))
    ]
    assert len(contents[0]) == 20
    assert all(content == contents[0] for content in contents)
    parquet = [
        (tmp_path / name / "predictions.parquet").read_bytes() for name in ("plain", "again")
    ]
    assert parquet[0] == parquet[1]
