"""Pictures for the devices."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cfdist.widerface.manifest import WorkItem


@pytest.fixture(scope="session")
def items(tmp_path_factory) -> list[WorkItem]:
    """Seven pictures of noise, 100 to 220 pixels wide and 150 high."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(3)
    items = []
    for i in range(7):
        small = random.integers(0, 256, (6, 6, 3), np.uint8)
        path = folder / f"{i}.jpg"
        cv2.imwrite(str(path), cv2.resize(small, (100 + 20 * i, 150)))
        items.append(WorkItem(f"e/{i}", str(path), path.stat().st_size))
    return items
