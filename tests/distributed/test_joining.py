"""Which cluster a run joins, and what is said of those that it does not."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from cfdist.distributed import joining
from cfdist.errors import UserError


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(joining, "_NOTED_ADDRESS", "noted_in_a_test")
    alive(monkeypatch)


def alive(monkeypatch, *addresses: str) -> None:
    """Ray clusters of which this machine is a node."""
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: frozenset(addresses))


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "head.example:1", "[::1]:6379", "h:65535"])
def test_addresses(address):
    assert joining.is_address(address)
    assert joining.find_address(address) == address


@pytest.mark.parametrize(
    "address",
    ["", "local", "head", "head:", ":6379", "head:0", "head:65536", "head:99999", "http://head:80",
     "head:6379/x", "he ad:1", "1:2:3"],
)  # fmt: skip
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UserError, match="not an address; give auto or host:port"):
        joining.find_address(address)


@given(st.text(max_size=12), st.integers(-10, 70000))
def test_any_text_is_an_address_or_refused(host, port):
    text = f"{host}:{port}"
    if joining.is_address(text) and not text.startswith("ray://"):
        assert 0 < port < 65536
        assert joining.find_address(text) == text
    elif text != "auto":
        with pytest.raises(UserError, match=r"not an address|Ray Client"):
            joining.find_address(text)


def test_auto_is_what_a_person_has_named_or_started(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"cluster.address=auto: nobody has started"):
        joining.find_address("auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "noted_in_a_test").write_text("10.0.0.2:6379\n")
    assert joining.find_address("auto") == "10.0.0.2:6379"
    for nothing in ("", "auto", "local"):
        monkeypatch.setenv("RAY_ADDRESS", nothing)
        assert joining.find_address("auto") == "10.0.0.2:6379"
    monkeypatch.setenv("RAY_ADDRESS", "head:1234")
    assert joining.find_address("auto") == "head:1234"
    monkeypatch.setenv("RAY_ADDRESS", "head")
    with pytest.raises(UserError, match="RAY_ADDRESS=head: not an address"):
        joining.find_address("auto")


def test_auto_is_the_one_cluster_that_lives_here(monkeypatch, tmp_path):
    alive(monkeypatch, "127.0.0.1:5000")  # a command's own session
    with pytest.raises(UserError, match=r"cluster.address=auto: nobody has started"):
        joining.find_address("auto")
    alive(monkeypatch, "127.0.0.1:5000", "10.0.0.3:7000")  # by `ray start --temp-dir`
    assert joining.find_address("auto") == "10.0.0.3:7000"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "noted_in_a_test").write_text("10.0.0.2:6379")  # of one that has died
    assert joining.find_address("auto") == "10.0.0.3:7000"
    alive(monkeypatch, "10.0.0.2:6379", "10.0.0.3:7000")
    assert joining.find_address("auto") == "10.0.0.2:6379"
    alive(monkeypatch, "10.0.0.4:1", "10.0.0.3:7000")
    with pytest.raises(UserError, match=r"several Ray clusters here \(10.0.0.3:7000, 10.0.0.4:1\)"):
        joining.find_address("auto")


class Gcs:
    """What a cluster's head knows, asked as Ray's own client asks."""

    metadata: dict | None = None

    def __init__(self, address: str) -> None:
        assert address == "h:1"

    def internal_kv_get(self, key, namespace, timeout):
        return self.metadata and json.dumps(self.metadata).encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theirs", "refusal"),
    [
        ({"ray_version": "2.9.0"}, r"x: the cluster runs Ray 2.9.0 and Python {python}, this"),
        ({"python_version": "3.9.1"}, r"x: the cluster runs Ray {ray} and Python 3.9.1, this"),
        (  # a head that has noted no versions
            None,
            r"x: this machine is no node of that cluster; .*`ray start --address=h:1`.*submit",
        ),
    ],
)
def test_a_cluster_that_this_process_does_not_fit_is_refused(monkeypatch, theirs, refusal):
    here = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    monkeypatch.setattr(Gcs, "metadata", None if theirs is None else here | theirs)
    monkeypatch.setattr("ray._raylet.GcsClient", Gcs)
    monkeypatch.setattr("ray._private.services.find_node_ids", frozenset)  # no raylet runs here
    expected = refusal.format(ray=ray.__version__, python=platform.python_version())
    start = time.monotonic()
    with pytest.raises(UserError, match=expected):
        joining._refuse_unfit("h:1", "x")
    assert time.monotonic() - start < 20


def test_ray_client_is_refused_with_what_to_do(monkeypatch):
    with pytest.raises(UserError, match=r"=ray://head:10001: .*job submit --address http://head:8"):
        joining.find_address("ray://head:10001")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(UserError, match=r"RAY_ADDRESS=ray://head:10001: Ray Client"):
        joining.find_address("auto")


class Head(grpc.GenericRpcHandler):
    """A cluster's head that may ask for a token, and notes what it was shown."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.shown: list[str] = []

    def service(self, details):
        if details.method != joining._IS_ALIVE:
            return None
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, request, context):
        shown = dict(context.invocation_metadata()).get("authorization", "")
        self.shown.append(shown)
        if self.token and shown != f"Bearer {self.token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
        return b""


@contextlib.contextmanager
def served(*handlers) -> Iterator[str]:
    """The address of a server."""
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=handlers)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


@pytest.fixture(autouse=True)
def only_address(monkeypatch):
    """This machine has no address but the loopback's."""
    monkeypatch.setattr("ray._private.services.resolve_ip_for_localhost", lambda host: host)


def test_an_open_cluster_lets_in():
    with served(Head("")) as address:
        assert joining.knock(address, "x", is_automatic=False) is None


def test_what_listens_on_the_loopback_alone_is_another_command_s(monkeypatch):
    monkeypatch.setattr("ray._private.services.resolve_ip_for_localhost", lambda _: "127.0.0.2")
    with (
        served(Head("")) as address,
        pytest.raises(UserError, match="x: that Ray session belongs to another cfdist command"),
    ):
        joining.knock(address, "x", is_automatic=False)


def test_a_named_cluster_that_asks_for_a_token_says_so_and_is_shown_none(monkeypatch):
    monkeypatch.setattr(joining, "own_token", lambda: "a" * 64)
    head = Head("a" * 64)
    with served(head) as address:
        start = time.monotonic()
        with pytest.raises(UserError, match=r"x: the cluster asks for its token.*get-auth-token"):
            joining.knock(address, "x", is_automatic=False)
        assert time.monotonic() - start < 20
        assert head.shown == [""]
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        joining.knock(address, "x", is_automatic=False)


def test_another_cluster_s_token_is_refused(monkeypatch):
    monkeypatch.setattr(joining, "own_token", lambda: "a" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with served(Head("b" * 64)) as address, pytest.raises(UserError, match="asks for its token"):
        joining.knock(address, "x", is_automatic=False)


def test_what_is_no_cluster_is_refused_at_once():
    start = time.monotonic()
    with served() as address, pytest.raises(UserError, match=r"no Ray cluster.*UNIMPLEMENTED"):
        joining.knock(address, "x", is_automatic=False)
    with pytest.raises(UserError, match="x: no Ray cluster answers there"):
        joining.knock(address, "x", is_automatic=False)  # nothing listens there any more
    assert time.monotonic() - start < 20
