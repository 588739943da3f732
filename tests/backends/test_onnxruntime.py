"""ONNX Runtime's own options; that it agrees with OpenVINO is in test_openvino.py."""

from __future__ import annotations

import pytest

from cfdist import backends
from cfdist.errors import UserError


def test_a_provider_that_is_not_there_is_refused(spec):
    backend = backends.backend_class("onnxruntime")
    with pytest.raises(UserError, match="'NoSuchProvider' is not in the installed onnxruntime"):
        backend.check(spec(), {"providers": ["NoSuchProvider"]})
    with pytest.raises(UserError, match="name at least one"):
        backend.check(spec(), {"providers": []})
