"""What a long measurement keeps has a bound, and tells the same as all of it."""

from __future__ import annotations

import numpy as np
import pytest

from cfdist.throughput.sampling import Ends, Sample


def test_few_rows_are_all_kept_in_order():
    sample = Sample(2, most=5)
    for number in range(5):
        sample.add(number, 10 * number)
    np.testing.assert_array_equal(sample.rows(), [[n, 10.0 * n] for n in range(5)])
    assert Sample(3).rows().shape == (0, 3)


def test_of_many_rows_each_has_the_same_chance():
    samples = [Sample(1, most=1000) for _ in range(2)]
    for number in range(20_000):
        for sample in samples:
            sample.add(number % 64)  # pictures that are repeated
    first, second = (sample.rows()[:, 0] for sample in samples)
    np.testing.assert_array_equal(first, second)
    assert (samples[0].count, len(first)) == (20_000, 1000)
    # Uniform from 0 to 63: three standard errors of the mean of 1000 are 1.75.
    assert first.mean() == pytest.approx(31.5, abs=1.75)
    assert {*first} == {*range(64)}


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100, 1024])
def test_ends_are_thinned_and_the_last_one_stays(count):
    ends = Ends(most=8)
    for number in range(1, count + 1):
        ends.add(number / 10)
    times, counts = ends.kept()
    assert len(times) == len(counts) <= 9
    np.testing.assert_allclose(times, counts / 10)
    assert ends.count == count
    assert [*counts[-1:]] == [count] * (count > 0)
    assert (np.diff(counts) > 0).all()
