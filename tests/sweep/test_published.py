"""The published table, and which runs it may stand beside."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cfdist.sweep.published import published_table


def test_the_published_table_is_the_guide_s():
    published = published_table()
    assert published.rates == {
        1: 439.9085, 4: 412.4094, 8: 375.9275, 16: 369.6435, 32: 371.7701,
    }  # fmt: skip
    assert published.ap == {"easy": 0.9224, "medium": 0.9102, "hard": 0.7455}
    assert published.protocol == "guide"


@given(st.none() | st.integers(1, 64), st.sampled_from([(800, 800), (800, 640), (640, 800)]))
def test_figures_stand_only_beside_their_batch_and_input(batch, size):
    published = published_table()
    figures = published.figures_beside(batch, size)
    if size == (800, 800) and batch in (1, 4, 8, 16, 32):
        assert figures == {
            "published_ap_easy": 0.9224,
            "published_ap_medium": 0.9102,
            "published_ap_hard": 0.7455,
            "published_images_per_s": published.rates[batch],
        }
    else:
        assert figures == {}
