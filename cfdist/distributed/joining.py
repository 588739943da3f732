"""Joining a Ray cluster that somebody has started."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

from cfdist.distributed.processes import interruptible
from cfdist.distributed.starting import PRIVATE_LABEL, loudness
from cfdist.errors import UserError

_ADDRESS = re.compile(r"(?P<client>ray://)?(?P<host>\[[^]\s]+\]|[^\s/:]+):(?P<port>\d{1,5})")
_TIMEOUT_SECONDS = 4.0

# Where `ray start` notes the address of the cluster, in the folder of its sessions.
_NOTED_ADDRESS = "ray_current_cluster"

# Ray's own way to see whether a cluster's head answers.
_IS_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


def join_ray(address: str) -> Any:
    """Connect to a cluster that is there.

    Args:
        address: "auto" or "host:port".

    Returns:
        What `ray.init` does.

    Raises:
        UserError: no cluster answers there, it asks for a token, it is another command's own, it
            runs other versions, or this machine is none of its nodes.
    """
    found = find_address(address)
    import ray

    named = _named(address, found)
    knock(found, named, is_automatic=address == "auto")
    try:
        _refuse_unfit(found, named)
        with interruptible():
            context = ray.init(address=found, **loudness())
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        with contextlib.suppress(Exception):
            ray.shutdown()
        raise _no_cluster(named, error) from None
    if PRIVATE_LABEL.items() <= ray.get_runtime_context().get_node_labels().items():
        ray.shutdown()
        raise _private(named)
    return context


@functools.cache  # the later runs of a sweep are in the cluster
def refuse_silent(address: str) -> None:
    """Refuse an address where nobody listens, before work that takes minutes.

    Args:
        address: "auto" or "host:port".

    Raises:
        UserError: nobody listens, or see `find_address`.
    """
    found = find_address(address)
    _connect(found, _named(address, found))


def _named(address: str, found: str) -> str:
    return f"cluster.address={address}" + (f" ({found})" if found != address else "")


def find_address(address: str) -> str:
    """The address that a person means: "auto" is that of RAY_ADDRESS, or of `ray start` here.

    Ray's own "auto" also takes the session of any other program.

    Raises:
        UserError: not an address, or nobody has started a cluster.
    """
    if address == "auto":
        named = os.environ.get("RAY_ADDRESS", "")
        if named in ("", "auto", "local"):
            named = _started_here()
        if not named:
            raise UserError(
                "cluster.address=auto: nobody has started a Ray cluster here (RAY_ADDRESS is not "
                "set, and there is none of `ray start`); start one with `ray start --head`, or "
                "take cluster.address=local"
            )
        if not is_address(named):
            raise UserError(f"RAY_ADDRESS={named}: not an address; give host:port")
        return _refuse_client(f"RAY_ADDRESS={named}", named)
    if not is_address(address):
        raise UserError(
            f"cluster.address={address}: not an address; give auto or host:port, or local for a "
            "cluster of the run's own"
        )
    return _refuse_client(f"cluster.address={address}", address)


def _refuse_client(named: str, address: str) -> str:
    """The address, unless it is Ray Client's.

    Its driver runs on no node of the cluster: results would be written on the head, to a folder
    that the person has named for this machine.
    """
    if not address.startswith("ray://"):
        return address
    host = address.removeprefix("ray://").rpartition(":")[0]
    raise UserError(
        f"{named}: Ray Client would leave the results on the cluster's head, not here; run the "
        f"command on a host of the cluster with cluster.address=auto, or submit it: `ray job "
        f"submit --address http://{host}:8265 --working-dir . -- python main.py ...`"
    )


def is_address(text: str) -> bool:
    """Whether a text is `host:port`, `[IPv6]:port`, or one of these after `ray://`."""
    found = _ADDRESS.fullmatch(text)
    return found is not None and 0 < int(found["port"]) < 1 << 16


def _started_here() -> str:
    """The cluster of the last `ray start` on this machine that is alive; empty without one.

    A `ray start --temp-dir` notes it in that folder, which nobody knows here; its process says it.

    Raises:
        UserError: there are several.
    """
    from ray._private.services import find_gcs_addresses

    noted = _noted_address()
    alive: frozenset[str] = find_gcs_addresses()  # type: ignore[no-untyped-call]
    if noted in alive or not alive:
        return noted
    # A session that serves one command listens on the loopback interface.
    others = sorted(one for one in alive if not one.startswith(("127.", "[::1]")))
    if len(others) > 1:
        raise UserError(
            f"cluster.address=auto: there are several Ray clusters here ({', '.join(others)}); "
            "name one, cluster.address=host:port"
        )
    return others[0] if others else noted


def _noted_address() -> str:
    """What the last `ray start` on this machine has noted; empty without one."""
    folders = [os.environ.get(name) for name in ("RAY_TMPDIR", "TMPDIR")]
    for folder in filter(None, (*folders, "/tmp")):
        with contextlib.suppress(OSError):
            if noted := Path(folder, "ray", _NOTED_ADDRESS).read_text().strip():
                return noted
    return ""


def knock(address: str, named: str, is_automatic: bool) -> None:
    """Find out within seconds whether a cluster lets this process in; Ray would try for long.

    Args:
        address: See `is_address`.
        named: How messages name it.
        is_automatic: The address was found and not given. Only then, as Ray does it, is this user's
            token shown unasked: a stranger's machine must not learn it.

    Raises:
        UserError: nothing answers there, or a cluster that asks for another token.
    """
    host, port = _connect(address, named)
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return  # speaks otherwise
    shows_token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    answer = answer_of(address, own_token() if shows_token else "")
    if answer == "UNAUTHENTICATED" and is_automatic and not shows_token and own_token():
        answer = answer_of(address, own_token())
        if answer == "OK":
            from ray._raylet import Config  # type: ignore[attr-defined]

            os.environ["RAY_AUTH_MODE"] = "token"
            Config.initialize("")  # Ray has read the environment already
    if answer == "UNAUTHENTICATED":
        raise UserError(
            f"{named}: the cluster asks for its token; print it on the cluster's head with `ray "
            "get-auth-token`, and give it here: RAY_AUTH_MODE=token RAY_AUTH_TOKEN=..."
        )
    if answer != "OK":
        raise _no_cluster(named, RuntimeError(f"what listens there says {answer}"))
    _refuse_loopback_only(host, port, named)


def _connect(address: str, named: str) -> tuple[str, int]:
    """Refuse an address where nobody listens; returns its host and port."""
    parts = _ADDRESS.fullmatch(address)
    assert parts is not None
    host, port = parts["host"].strip("[]"), int(parts["port"])
    try:
        socket.create_connection((host, port), timeout=_TIMEOUT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(named, error) from None
    return host, port


def _refuse_unfit(address: str, named: str) -> None:
    """Refuse a cluster of other versions, or one of which this machine is no node.

    Ray would say the first over many lines, and wait a minute for the second.
    """
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._private import ray_constants, services
    from ray._private.utils import compute_version_info
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    client = GcsClient(address=address)
    noted = client.internal_kv_get(
        CLUSTER_METADATA_KEY, namespace=ray_constants.KV_NAMESPACE_CLUSTER, timeout=_TIMEOUT_SECONDS
    )
    if noted:
        theirs = json.loads(noted)
        there = (theirs["ray_version"], theirs["python_version"])
        here: tuple[str, str] = compute_version_info()  # type: ignore[no-untyped-call]
        if there != here:
            raise UserError(
                f"{named}: the cluster runs Ray {there[0]} and Python {there[1]}, this command Ray "
                f"{here[0]} and Python {here[1]}; start both from the same environment, here: "
                f"`{Path(sys.executable).with_name('ray')} start`"
            )
    try:
        services.get_node_to_connect_for_driver(client, timeout_seconds=2)
    except RuntimeError:
        raise UserError(
            f"{named}: this machine is no node of that cluster; make it one (`ray start "
            f"--address={address}`), run the command on one of its hosts, or submit it: `ray job "
            "submit --working-dir . -- python main.py ...`"
        ) from None


def own_token() -> str:
    """This user's token, wherever Ray finds it; empty without one."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    loader = AuthenticationTokenLoader.instance()
    if not loader.has_token(ignore_auth_mode=True):
        return ""
    return str(loader.get_raw_token(ignore_auth_mode=True))


def _refuse_loopback_only(host: str, port: int, named: str) -> None:
    """Refuse a cluster that listens on the loopback interface alone, as a command's own does.

    Ray replaces a loopback address by the one that other machines use, and would wait there.
    """
    from ray._private.services import resolve_ip_for_localhost

    reachable = resolve_ip_for_localhost(host)
    if reachable == host:
        return
    try:
        socket.create_connection((reachable, port), timeout=_TIMEOUT_SECONDS).close()
    except OSError:
        raise _private(named) from None


def answer_of(address: str, token: str, call: str = _IS_ALIVE, content: bytes = b"") -> str:
    """The name of the status that a process of Ray's gives; "OK" if it lets this process in.

    Args:
        address: Of the process, by default a cluster's head.
        token: The cluster's; empty without one.
        call: A method of Ray's services.
        content: What it takes.
    """
    import grpc

    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(call)(content, timeout=_TIMEOUT_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def _private(named: str) -> UserError:
    return UserError(
        f"{named}: that Ray session belongs to another cfdist command and ends with it; start a "
        "cluster with `ray start --head`, or take cluster.address=local"
    )


def _no_cluster(named: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[:1]
    return UserError(
        f"{named}: no Ray cluster answers there "
        f"({reason[0] if reason else type(error).__name__}); start one with `ray start --head`, "
        "or take cluster.address=local"
    )
