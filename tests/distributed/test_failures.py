"""What errors mean that came through Ray."""

from __future__ import annotations

from cfdist.distributed import failures
from cfdist.errors import UserError


def test_a_device_is_dead_where_its_own_process_is():
    import ray

    errors = ray.exceptions
    ended = errors.OutOfMemoryError("the node is short of memory")
    assert failures.is_death(ended)
    assert failures.is_death(errors.ActorDiedError())
    assert not failures.is_death(errors.RayTaskError("process", "traceback", ValueError()))
    # A device whose reducer was ended is alive.
    wrapped = errors.RayTaskError("process", "traceback", ended).as_instanceof_cause()
    assert isinstance(wrapped, errors.OutOfMemoryError)
    assert not failures.is_death(wrapped)
    for error in (ended, wrapped):
        explained = failures.user_error(error)
        assert isinstance(explained, UserError)
        assert "choose a smaller model.batch" in str(explained)


def test_bad_input_is_found_however_deep_ray_has_wrapped_it():
    import ray

    errors = ray.exceptions
    cause = UserError("model.batch=2: does not fit")
    once = errors.RayTaskError("process", "traceback", cause).as_instanceof_cause()
    outer = RuntimeError("the Dataset failed")
    outer.__cause__ = once
    for error in (cause, once, outer):
        explained = failures.user_error(error)
        assert isinstance(explained, UserError)
        assert str(explained) == "model.batch=2: does not fit"
    other = ValueError("a fault")
    assert failures.user_error(other) is other
