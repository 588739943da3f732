"""Whether a device or a picture is at fault, in every order: nothing is lost, all of it ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cfdist.distributed.retries import MAX_FAILURES, Retries, Row
from cfdist.distributed.work import Slice

DEVICES = ("a", "b", "c", "d")


def rows_of(*keys: str) -> list[Row]:
    return [Row(key, Slice(None, 0, 1)) for key in keys]


def keys_of(rows: list[Row]) -> list[str]:
    return [row.key for row in rows]


def test_what_a_device_failed_with_goes_to_another_first():
    retries = Retries()
    retries.fail("a", rows_of("p", "q", "r"), "died")
    assert retries.take_first("a", 4, DEVICES) == []
    assert retries.take_last("a", {"a", "b"}, 4, is_idle=True) == []
    assert keys_of(retries.take_first("b", 2, DEVICES)) == ["p", "q"]
    assert keys_of(retries.take_last("a", {"a"}, 4, is_idle=False)) == ["r"]
    assert not retries.is_waiting


def test_the_only_device_gets_what_it_failed_with_first():
    retries = Retries()
    retries.fail("a", rows_of("p", "q"), "died")
    assert keys_of(retries.take_first("a", 1, {"a"})) == ["p"]
    assert retries.take_first("a", 1, {"a", "b"}) == []
    retries.fail("a", rows_of("q"), "died")  # it is for alone now
    assert retries.take_first("a", 1, {"a"}) == []


def test_the_only_device_that_fails_again_and_again_is_at_fault_at_its_third_failure():
    retries, new, failures = Retries(), map(str, range(100)), 0
    while not retries.is_at_fault("a"):
        done = keys_of(retries.take_first("a", 1, {"a"}))
        retries.finish("a", [*done, *(next(new) for _ in range(5))])
        retries.fail("a", rows_of(next(new)), "507033")
        failures += 1
    assert failures == 3


def test_two_failures_without_a_common_picture_are_the_device_s():
    retries = Retries()
    retries.fail("a", rows_of("p"), "died")
    assert not retries.is_at_fault("a")
    retries.fail("a", rows_of("q"), "died")
    assert retries.is_at_fault("a")
    assert not retries.is_at_fault("b")


def test_a_device_that_cannot_be_opened_is_tried_once_more():
    retries = Retries()
    retries.fail("a", [], "507033")
    assert not retries.is_at_fault("a")
    retries.fail("a", [], "507033")
    assert retries.is_at_fault("a")


def test_failures_whose_pictures_were_done_elsewhere_are_the_device_s():
    retries = Retries()
    for key in ("p", "q"):
        retries.fail("a", rows_of(key), "died")
        retries.finish("a", ["another"])
    assert not retries.is_at_fault("a")
    retries.finish("b", ["p", "q"])
    assert retries.is_at_fault("a")


def test_a_picture_is_done_alone_and_then_given_up():
    retries = Retries()
    retries.fail("a", rows_of("p", "q"), "died")
    retries.fail("b", retries.take_first("b", 9, DEVICES), "died")
    ready = {"a", "b"}
    assert retries.take_last("a", ready, 9, is_idle=False) == []
    alone = retries.take_last("a", ready, 9, is_idle=True)
    assert keys_of(alone) == ["p"]
    assert retries.is_alone(alone)
    retries.fail("a", alone, "died")
    assert retries.given_up == {"p": "killed the device 3 times (a, b): died"}
    assert not retries.is_at_fault("a")
    retries.finish("b", keys_of(retries.take_last("b", ready, 9, is_idle=True)))
    assert not retries.is_waiting
    assert not retries.is_at_fault("b")


def test_a_device_at_fault_accuses_no_picture():
    retries = Retries()
    for _ in range(MAX_FAILURES):
        retries.fail("a", rows_of("p"), "died")
    assert "p" in retries.given_up
    retries.forget("a")
    assert retries.given_up == {}
    assert keys_of(retries.take_first("b", 1, DEVICES)) == ["p"]


def test_outputs_that_are_finite_elsewhere_accuse_the_device():
    retries = Retries()
    for row in rows_of("p", "q"):
        retries.doubt("a", row, "NaN")
    assert retries.take_first("a", 9, DEVICES) == []
    assert keys_of(retries.take_first("b", 1, DEVICES)) == ["p"]
    assert retries.finish("b", ["p"]) == {"a"}
    assert keys_of(retries.take_first("a", 9, DEVICES)) == ["q"]  # it was started again since


def test_outputs_that_are_finite_nowhere_are_the_picture_s():
    retries = Retries()
    (row,) = rows_of("p")
    retries.doubt("a", row, "NaN")
    retries.doubt("b", *retries.take_first("b", 1, DEVICES), "NaN")
    assert retries.given_up == {"p": "NaN (a, b)"}
    assert not retries.is_at_fault("a")


@given(
    count=st.integers(1, 12),
    deadly=st.sets(st.integers(0, 11), max_size=2),
    broken=st.sets(st.sampled_from("abc"), max_size=2),
    size=st.integers(1, 5),
)
def test_every_picture_is_done_or_named_in_a_bounded_number_of_failures(
    count, deadly, broken, size
):
    """Devices a, b and c; the broken ones fail always, the deadly pictures kill any device."""
    retries, done, aside, failures = Retries(), set(), set(), 0
    retries.put_back(rows_of(*map(str, range(count))))
    turn = 0
    while retries.is_waiting and len(aside) < 3:
        device = "abc"[turn % 3]
        turn += 1
        assert turn < 1000
        if device in aside:
            continue
        ready = {*"abc"} - aside
        rows = retries.take_first(device, size, ready)
        rows = rows or retries.take_last(device, ready, size, is_idle=True)
        if not rows:
            continue
        if device in broken or deadly & {int(row.key) for row in rows}:
            failures += 1
            retries.fail(device, rows, "died")
            if retries.is_at_fault(device):
                retries.forget(device)
                aside.add(device)
        else:
            done |= {row.key for row in rows}
            retries.finish(device, keys_of(rows))
    if len(aside) < 3:
        assert done | retries.given_up.keys() == {str(n) for n in range(count)}
        assert done.isdisjoint(retries.given_up)
    assert failures <= 3 * count + 15


def test_a_device_accused_later_accuses_no_picture_that_was_given_up():
    retries = Retries()
    for row in rows_of("p", "q"):
        retries.doubt("a", row, "NaN")
    for device in ("b", "c"):
        for row in retries.take_first(device, 1, DEVICES):
            retries.doubt(device, row, "NaN")
    assert retries.given_up.keys() == {"p", "q"}  # each by the device a and another
    retries.put_back(rows_of("r"))
    retries.doubt("a", *retries.take_first("a", 1, DEVICES), "NaN")
    assert retries.finish("d", keys_of(retries.take_first("d", 1, DEVICES))) == {"a"}
    assert retries.given_up == {}
    assert keys_of(retries.take_first("d", 9, DEVICES)) == ["p", "q"]


def test_a_failure_is_the_device_s_if_the_picture_that_explained_it_is_done_after_all():
    retries = Retries()
    for device in "abb":
        retries.fail(device, rows_of("p"), "died")
        retries.finish(device, ["another"])
    assert "p" in retries.given_up
    assert not retries.is_at_fault("b")
    retries.forget("a")
    assert retries.given_up == {}
    retries.finish("c", keys_of(retries.take_last("c", {"c"}, 1, is_idle=True)))
    assert retries.is_at_fault("b")
