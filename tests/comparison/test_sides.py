"""Which file is read how if its layers are compared, with and without a backend before it."""

from __future__ import annotations

import pytest

from cfdist.errors import UserError
from jobs.compare import find_side


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("x.xml", "openvino"),
        ("openvino:x.xml", "openvino"),
        ("a.om", "om"),
        ("om:a.om", "om"),
        ("om:x.xml", r"is an OpenVINO IR .*, which om does not read; give candidate=/.*/x.xml$"),
        ("openvino:a.om", r"is an OM .*, which openvino does not read; give candidate=/.*/a.om$"),
    ],
)
def test_a_backend_that_reads_another_format_is_refused(compose, tmp_path, given, expected):
    (tmp_path / "x.xml").write_text('<?xml version="1.0"?><net name="a" version="11"></net>')
    (tmp_path / "a.om").write_bytes(b"IMOD" + bytes(300))
    prefix, colon, name = given.rpartition(":")
    given = f"{prefix}{colon}{tmp_path / name}"
    config = compose("job=compare", "compare.layers=true", f"candidate={given}")
    if " " not in expected:
        assert find_side(config, "candidate").backend == expected
        return
    with pytest.raises(UserError, match=f"^candidate={given}: {expected}"):
        find_side(config, "candidate")
