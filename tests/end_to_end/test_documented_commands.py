"""Every command in README and docs: tried, composed and checked, or in need of what is not here."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from cfdist import config
from cfdist.command.arguments import (
    asked,
    asks_for_multirun,
    prepare_arguments,
    settings_of,
    take_config_folder,
)
from cfdist.command.cli import answer
from cfdist.command.completion import completion_script
from cfdist.config import installation
from cfdist.config.installation import groups

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(PROJECT.glob("README*.md")), *sorted(PROJECT.glob("docs/*.md"))]

# Programs whose commands are not run here, and why.
ELSEWHERE = {
    "docker": "a Docker daemon",
    "kubectl": "a Kubernetes cluster",
    "sbatch": "a Slurm cluster",
    "ray": "a cluster of several hosts",
    "ssh": "another host",
    "pip": "a network; tests/end_to_end/test_installation.py tries the requirements",
    "uvx": "a network",
    "uv": "a network",
    "grep": "a network, for it feeds pip",
    "source": "CANN",
    "atc": "CANN",
    "msaccucmp.py": "CANN",
    "ais_bench": "an NPU",
    "npu-smi": "an NPU",
    "git": "another checkout",
    "curl": "a running cluster, or a network",
    "unzip": "the archive",
    "export": "nothing: it sets a variable",
    "eval": "nothing: tests/command/test_completion.py reads the script",
    "apt": "root",
    "ip": "root",
    "tensorboard": "an extra package",
    "mlflow": "an extra package",
    "prometheus": "an extra program",
    "grafana": "an extra program",
    "./test.sh": "nothing: it is what runs this",
    "test.sh": "nothing: it is what runs this",
}
OURS = ("./run.sh", "run.sh", "cfdist", "main.py")
# The pages whose files and commands have a test of their own.
OWN_TEST = {"extending.md": "test_extending.py"}


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        words: Without the variables before them, and without the name of Python.
    """

    page: str
    text: str
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        return self.words[0]


def lines_of(page: Path) -> list[str]:
    """The lines of a page's code blocks for a shell, and its inline code."""
    text = re.sub(r"^```(?:sh|bash|console)?\n(.*?)^```$", indented, page.read_text(), flags=_BLOCK)
    text = re.sub(r"^```\w+\n.*?^```$", "", text, flags=_BLOCK)
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.MULTILINE)
    lines = [line for block in blocks for line in joined(block)]
    inline = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE))
    return [line[4:] for line in lines if line.strip()] + [" ".join(one.split()) for one in inline]


_BLOCK = re.MULTILINE | re.DOTALL


def indented(block: re.Match[str]) -> str:
    return "\n" + re.sub(r"^", "    ", block[1], flags=re.MULTILINE) + "\n"


def joined(block: str) -> list[str]:
    """A block's lines, with those that a backslash continues in one."""
    return re.sub(r"\s*\\\n\s*", " ", block).split("\n")


def command_of(page: str, line: str) -> Command | None:
    """The command that a line is; `None` if it is none."""
    text = re.sub(r"<[^<>]*>", "x", line)  # what the reader fills in
    text = re.sub(r"\s+#.*|\s{2,}\S.*", "", text)  # what is said of it
    text = re.sub(r"\s\|\s.*|\s>\s.*", "", text)
    try:
        words = shlex.split(text)
    except ValueError:
        return None
    while words and re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    if words and re.fullmatch(r"(?:.*/)?python[\d.]*", words[0]):
        del words[0]
        if words and words[0] == "-m":
            del words[0]
        if not words:
            return None
    if not words:
        return None
    name = words[0] if words[0].startswith("./") else words[0].rpartition("/")[2]
    is_script = words[0].startswith(("benchmarks/", "tests/faults/"))
    is_script = is_script or words[0] == "cfdist.config.document"
    if name in (*OURS, *ELSEWHERE) and (len(words) > 1 or name in ("./run.sh", "./test.sh")):
        return Command(page, line, (name, *words[1:]))
    if is_script:
        return Command(page, line, tuple(words))
    return None


def commands() -> list[Command]:
    """All commands of all pages, each once."""
    found = {}
    for page in PAGES:
        for line in lines_of(page):
            command = command_of(page.name, line)
            if command is not None:
                found.setdefault(command.words, command)
    return list(found.values())


COMMANDS = commands()


def blocks_that_are_commands() -> list[tuple[str, str]]:
    """Lines of shell blocks that look like a command, whatever their program."""
    found = []
    for page in PAGES:
        text = re.sub(r"^```\w+\n.*?^```$", "", page.read_text(), flags=_BLOCK)
        for block in re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE):
            for line in joined(block):
                if re.match(r" {4}[./\w-]*(?:python|run\.sh|cfdist|pip|ray|docker)\b", line):
                    found.append((page.name, line[4:]))
    return found


def is_single(argument: str) -> str:
    """A swept setting with its first value."""
    key, equals, value = argument.partition("=")
    return argument if value.startswith(("[", "'")) else f"{key}{equals}{value.split(',')[0]}"


def composed(words: tuple[str, ...]) -> str:
    """Check the arguments of a command of ours as the command itself would before its job."""
    arguments = [word for word in words[1:] if word not in ("...", "[key=value")]
    arguments = [word for word in arguments if word.removesuffix("=...") not in groups()]
    arguments = [re.sub(r"^(.*=)\.\.\.$", r"\1x", word) for word in arguments]
    arguments = take_config_folder(arguments)
    question = asked(arguments)
    if question and question.what == "completion":
        return completion_script(question.about)
    if question and question.what != "settings":
        return answer(question)
    is_sweep = any(map(asks_for_multirun, arguments))
    settings = settings_of(arguments) if question else arguments
    if is_sweep:
        settings = [is_single(one) for one in settings if not one.startswith("-")]
    prepared = [one for one in prepare_arguments(settings) if not one.startswith("-")]
    composed = config.compose_values(*prepared)
    config.load(composed, config.typed_keys(prepared))
    return "composed"


def test_the_pages_have_commands():
    assert len(COMMANDS) > 60
    assert {"./run.sh", "main.py", "docker", "ray", "pip"} <= {one.program for one in COMMANDS}


def test_every_line_that_looks_like_a_command_is_one():
    unknown = [
        line
        for page, line in blocks_that_are_commands()
        if command_of(page, line) is None and page not in OWN_TEST
    ]
    assert unknown == []


@pytest.mark.parametrize(
    "command",
    [one for one in COMMANDS if one.program in OURS and one.page not in OWN_TEST],
    ids=lambda one: f"{one.page}: {' '.join(one.words)[:60]}",
)
def test_a_command_composes_and_all_its_keys_count(command, monkeypatch):
    monkeypatch.setattr(installation, "config_folders", [config.CONFIG_FOLDER])
    assert composed(command.words)


def test_every_script_of_the_pages_is_there_and_knows_its_options():
    scripts = [one for one in COMMANDS if one.program.startswith(("benchmarks/", "tests/"))]
    assert len(scripts) > 8
    shared = (PROJECT / "benchmarks/common.py").read_text()
    for script in scripts:
        text = (PROJECT / script.program).read_text() + shared
        for word in script.words[1:]:
            assert not word.startswith("--") or f'"{word}"' in text, script.text


def test_the_first_commands_of_the_readme_give_what_it_says(cold_command, warm_command, tmp_path):
    def run(*arguments: str, command=warm_command) -> str:
        done = command(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run("experiment=quick", "output_dir=first", command=cold_command)
    for words in ("official (IoU 0.5)", "guide (IoU 0.4)", "pictures/s", "results: "):
        assert words in first
    assert (tmp_path / "first" / "results.json").is_file()
    run("job=score", "predictions=first/predictions", "dataset.limit=32", "output_dir=scored")
    swept = run("-m", "backend=simulated", "model.batch=1,4", "dataset.limit=8", "output_dir=sweep")
    assert "sweep" in swept
    assert (tmp_path / "sweep" / "sweep.md").is_file()


@pytest.mark.parametrize("name", ["quick", "two_chips", "ascend", "published_table"])
def test_a_preset_sets_what_its_name_promises(name):
    found = config.compose(f"experiment={name}")
    chips = (found.backend.name, found.devices, found.model.path)
    om = "models/CenterFace_bs{batch}_aipp.om"
    match name:
        case "quick":
            assert (found.dataset.limit, found.devices, found.model.batch) == (32, 1, 4)
        case "two_chips":
            assert chips == ("om", 2, om)
        case "ascend":
            assert chips == ("om", "auto", om)
    if name != "quick":
        assert found.eval.protocol == "guide"
    changed = config.compose(f"experiment={name}", "model.batch=2", "devices=3")
    assert (changed.model.batch, changed.devices) == (2, 3)
