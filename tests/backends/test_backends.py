"""Which backend a name means, and how another one is added."""

from __future__ import annotations

import sys

import pytest

from cfdist import backends
from cfdist.backends.base import Backend, DeviceSettings
from cfdist.errors import UserError


class EchoBackend(Backend):
    """Somebody else's."""

    @classmethod
    def check(cls, spec, options):
        pass

    def infer(self, inputs):
        return inputs


def test_unknown_and_missing_backends_are_refused(monkeypatch):
    with pytest.raises(UserError, match=r"backend\.name=tensorrt: no such backend"):
        backends.resolve("tensorrt")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"'openvino' is not installed; get it: `.*pip install -r .*req"
    ):
        backends.resolve("openvino")
    with pytest.raises(UserError, match="backend=auto: neither openvino nor onnxruntime"):
        backends.resolve("auto")


def test_auto_takes_a_cpu_runtime_that_is_installed(monkeypatch):
    assert backends.resolve("auto") == "openvino"
    monkeypatch.setattr(backends, "is_installed", lambda name: name == "onnxruntime")
    assert backends.resolve("auto") == "onnxruntime"


@pytest.mark.parametrize(
    ("npus", "has_ais_bench", "is_cpu"), [([0], True, False), ([0], False, True), ([], True, True)]
)
def test_auto_is_om_where_npus_and_ais_bench_are(monkeypatch, npus, has_ais_bench, is_cpu):
    monkeypatch.setattr(backends, "list_npus", lambda: npus)
    monkeypatch.setattr(backends, "is_installed", lambda name: name != "om" or has_ais_bench)
    assert backends.is_cpu_auto("auto") is is_cpu
    assert backends.resolve("auto") == ("openvino" if is_cpu else "om")
    assert not backends.is_cpu_auto("openvino")


def test_another_backend_is_not_imported_before_it_is_used(monkeypatch, spec):
    entry = backends.BackendEntry("no.such.module", "EchoBackend", "numpy")
    monkeypatch.setitem(backends.BACKENDS, "echo", entry)
    assert backends.resolve("echo") == "echo"
    with pytest.raises(ModuleNotFoundError):
        backends.backend_class("echo")
    monkeypatch.setitem(sys.modules, "their.module", sys.modules[__name__])
    entry = backends.BackendEntry("their.module", "EchoBackend", "no_such_package", "`get it`")
    monkeypatch.setitem(backends.BACKENDS, "echo", entry)
    assert isinstance(backends.backend_class("echo")(spec(), DeviceSettings()), EchoBackend)
    with pytest.raises(UserError, match="'no_such_package' is not installed; get it: `get it`"):
        backends.resolve("echo")
