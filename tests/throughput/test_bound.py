"""What bounds a run, and the sentence that says so."""

from __future__ import annotations

import pytest

from cfdist.throughput.bound import Bound, bound_sentence, find_bound
from cfdist.throughput.host import HostRate


def test_what_bounds_a_run():
    host = [HostRate(1, 300, 70.0, 14.0), HostRate(2, 300, 140.0, 14.0)]
    bound = find_bound(100.0, host, readers=2, shared_cores=None)
    assert (bound.bound_by, bound.host_pictures_per_second) == ("devices", 140.0)
    assert bound.shared_cores_pictures_per_second is None
    bound = find_bound(100.0, host, readers=1, shared_cores=None)
    assert (bound.bound_by, bound.host_pictures_per_second) == ("host", 70.0)
    assert bound.host_readers == 1
    # Fewer readers than were measured: the fewest.
    assert find_bound(100.0, host[1:], readers=1, shared_cores=2).host_readers == 2
    # Two cores: 20 ms of inference and 7 ms of reading a picture.
    bound = find_bound(50.0, host, readers=2, shared_cores=2)
    assert bound.shared_cores_pictures_per_second == pytest.approx(1000 / 27)


def test_the_sentence_says_what_bounds_the_run():
    assert bound_sentence(Bound("host", 812.34, 140.04, 2), 99.95, simulated=False) == (
        "the devices can take 812.3 pictures/s, this host can read 140.0 (2 readers): the host "
        "bounds the run; end to end it was 100.0"
    )
    shared = Bound("devices", 10.1, 70.0, 1, shared_cores_pictures_per_second=9.4)
    assert bound_sentence(shared, None, simulated=True) == (
        "the simulated devices can take 10.1 pictures/s, this host can read 70.0 (1 reader): the "
        "devices bound the run; both use the same cores, which leaves about 9.4"
    )
