"""What the screen says of a run."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from cfdist.devices.base import DeviceReport
from cfdist.execution import Execution
from cfdist.report import screen
from cfdist.report.results import Results, device_entry


def results(passes: int | None) -> Results:
    ap = dict.fromkeys(("easy", "medium", "hard"), 0.5)
    return Results(
        job="evaluate", ap={"official": ap}, total=610, done=609, failures=[("e/a", "broken")],
        seconds={}, config={}, passes=passes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("passes", "title"),
    [
        (None, "WIDER FACE AP over 609 pictures"),
        (1, "WIDER FACE AP over 609 pictures"),
        (4, "WIDER FACE AP over 609 pictures (the first of 4 passes)"),
    ],
)
def test_the_ap_is_that_of_the_pictures_however_often_they_were_read(passes, title, capsys):
    screen.print_results(results(passes))
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert title in shown


def test_figures_with_quirks_say_how_much_these_add(capsys):
    quirky = {"easy": 0.5, "medium": 0.75, "hard": 0.4}
    found = results(None)
    screen.print_results(replace(found, ap=found.ap | {"official with no_pixel": quirky}))
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["official", "(IoU", "0.5)", *["50.00", "%"] * 3] in shown
    cells = ["50.00", "%", "+0.00", "75.00", "%", "+25.00", "40.00", "%", "-10.00"]
    assert ["official", "with", "no_pixel", *cells] in shown


def plan_shown(
    capsys, *, backends=("openvino",), remark="", kind="wider", passes=1, pictures=610
) -> list[str]:
    spec = SimpleNamespace(name="centerface", batch=4)
    models = [
        SimpleNamespace(
            backend=backend, spec=spec, remark=remark, is_simulated=backend == "simulated"
        )
        for backend in backends
    ]
    config = SimpleNamespace(dataset=SimpleNamespace(name="name", kind=kind))
    manifest = SimpleNamespace(pictures=range(pictures), passes=passes)
    there = Execution(models, SimpleNamespace(count=2, threads=1), None)
    screen.print_plan(config, there, manifest)
    return capsys.readouterr().out.splitlines()


def test_a_difference_of_aps_is_never_minus_zero():
    assert [screen.points(-1e-9), screen.points(0.0123), screen.points(-0.00002, 3)] == [
        "+0.00", "+1.23", "-0.002",
    ]  # fmt: skip


def test_the_plan_is_one_line_and_a_remark_another(capsys):
    line = "centerface on openvino, 2 devices x 1 thread, batch 4: 610 pictures of dataset=name"
    assert plan_shown(capsys) == [line]
    assert plan_shown(capsys, remark="the [fastest]") == [line, "backend=auto: the [fastest]"]
    both = plan_shown(capsys, backends=("openvino", "torch"))
    assert both[0].startswith("centerface on openvino and torch, ")


def test_simulated_devices_are_announced(capsys):
    first, second = plan_shown(capsys, backends=["simulated"])
    assert first.startswith("SIMULATED: no model runs")
    assert second.startswith("centerface on simulated, ")


@pytest.mark.parametrize(
    ("kind", "pictures", "passes", "text"),
    [
        ("wider", 1, 1, "1 picture of dataset=name"),
        ("wider", 610, 3, "3 passes over 610 pictures of dataset=name"),
        ("sample", 8, 1, "8 pictures of dataset=name (the embedded sample set; no data set named)"),
    ],
)
def test_pictures_are_counted_once_however_many_passes(capsys, kind, pictures, passes, text):
    (line,) = plan_shown(capsys, kind=kind, pictures=pictures, passes=passes)
    assert line.endswith(f", batch 4: {text}")


def test_what_is_to_be_known_of_the_devices_has_a_line(capsys):
    screen.print_devices(Execution((), SimpleNamespace(), None, notes=("chip [1] is hot",)))
    assert capsys.readouterr().out == "note: chip [1] is hot\n"


def test_a_dashboard_has_a_line_if_there_is_one(capsys, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    screen.print_dashboard(None)
    screen.print_dashboard("http://127.0.0.1:8265")
    assert capsys.readouterr().out == "dashboard: http://127.0.0.1:8265\n"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/a/token")
    screen.print_dashboard("http://127.0.0.1:8265")
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  it asks for a token, which this prints: cat /a/token"
    ]


def test_devices_have_a_line_each_and_failures_are_cut_short(capsys):
    shown = replace(
        results(1),
        backend="openvino",
        batch=4,
        throughput={"steady": None, "end_to_end": 20.0},
        seconds={"total": 4.0, "start_up": 1.0, "run": 2.0, "evaluation": 1.0},
        devices=[
            device_entry("device:0", DeviceReport(600, 600, 1.0, [10.0, 30.0], [9.0]), 2.0, 0.0),
            device_entry("device:1", DeviceReport(10, 10, 0.1, chip="5"), 2.0, 0.0),
        ],
        failures=[(f"e/{n}", "broken") for n in range(7)],
    )
    screen.print_results(shown)
    lines = capsys.readouterr().out.splitlines()
    assert (
        "openvino, batch 4: too short for a steady rate, 20.0 end to end; 4.0 s in all: "
        "1.0 start-up, 2.0 run, 1.0 evaluation" in lines
    )
    assert (
        "  device:0: 600 pictures, busy 50 %, 20.0 ms a batch (median), of which 9.0 ms on the "
        "device" in lines
    )
    assert "  device:1 (chip 5): 10 pictures, busy 5 %, no full batch" in lines
    assert [line for line in lines if line.startswith("failed: ")][-2:] == [
        "failed: e/4: broken",
        "failed: 2 more, see results.json",
    ]


@pytest.mark.parametrize(("met", "verdict"), [(True, "reached"), (False, "MISSED")])
def test_the_expected_ap_stands_below_its_protocol_s(capsys, met, verdict):
    expected = {"protocol": "official", "ap": {"easy": 0.9}, "tolerance": 0.002, "met": met}
    expected["comparable"] = True
    screen.print_results(replace(results(1), expected=expected))
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if "  expected" in line)
    assert row.split()[2:] == ["│", "90.00", "%", "│", "-", "│", "-", "│"]
    assert f"expected AP {verdict} (tolerance 0.002)" in shown


@pytest.mark.parametrize("gate", [False, True])
def test_an_expected_ap_that_cannot_be_compared_has_no_verdict_but_the_gate_s(capsys, gate):
    expected = {"protocol": "official", "ap": {"easy": 0.9}, "tolerance": 0.002, "met": False}
    run = replace(results(1), expected=expected | {"comparable": False})
    run.config["eval"] = {"gate": gate}
    screen.print_results(run)
    assert ("expected AP MISSED" in capsys.readouterr().out) is gate


@pytest.fixture
def terminal(monkeypatch):
    """The screen as a terminal of so many columns; gives what is printed in the `with` block."""

    def show(width: int, print_it) -> list[str]:
        console = screen._Screen(force_terminal=True, width=width, color_system=None)
        monkeypatch.setattr(screen, "console", console)
        with console.capture() as capture:
            print_it()
        return capture.get().splitlines()

    return show


def words(lines: list[str]) -> list[str]:
    return [word for line in lines for word in re.split(r"[\s│┃]+", line) if word]


@pytest.mark.parametrize("width", [30, 45, 60, 80])
def test_no_word_is_broken_on_a_narrow_terminal(terminal, width):
    shown = replace(
        results(3),
        notes=["a note of many words, among them some_long_names and /paths/of/any/length/at/all"],
        failures=[("0--Parade/0_Parade_marchingband_1_849", "cannot be read (no such file)")],
    )
    wide = terminal(300, lambda: screen.print_results(shown))
    narrow = terminal(width, lambda: screen.print_results(shown))
    kept = {word for word in words(wide) if re.search(r"\w", word)}
    assert kept - {"┏", "┡"} <= {word.rstrip(",") for word in words(narrow)} | set(words(narrow))
    longest = max(len(word) for word in kept)
    assert max(map(len, narrow)) <= max(width, longest + 2)


def test_a_table_wider_than_the_terminal_becomes_lines(terminal):
    def print_it() -> None:
        table = screen.titled_table("title", ["", "device"], ["pictures\na second", "\nmean"])
        table.add_row("  run", "[a, b]", "123.45", "6.00")
        table.add_row("part", "", "", "")
        screen.print_compact(table)

    assert terminal(20, print_it) == [
        "title",
        "  run, device [a,",
        "    b], pictures a",
        "    second 123.45,",
        "    mean 6.00",
        "  part",
    ]
    assert any(
        line.split() == ["run", "[a,", "b]", "123.45", "6.00"] for line in terminal(60, print_it)
    )


def test_brackets_and_colons_are_shown_as_they_are(terminal):
    text = "[bold]/photos/:smile:/[0].jpg"
    table = screen.titled_table(text, [text], ())
    table.add_row(text)
    shown = terminal(80, lambda: [screen.console.print(one) for one in (text, table)])
    assert [text in line for line in shown] == [True, True, False, True, False, True, False]


def test_into_a_pipe_a_line_stays_one(capsys):
    note = " ".join(["word"] * 100)
    screen.print_results(replace(results(1), notes=[note]))
    assert f"note: {note}" in capsys.readouterr().out.splitlines()


def test_the_end_of_a_job_writes_and_shows_its_results(capsys, tmp_path):
    found = replace(results(1), ap={}, config={"eval": {"gate": False}})
    assert screen.finish(found, tmp_path) == 3
    assert capsys.readouterr().out.endswith(f"results: {tmp_path / 'results.json'}\n")
    assert (tmp_path / "results.json").is_file()


def test_a_quiet_run_shows_its_results_and_nothing_else(capsys, monkeypatch):
    monkeypatch.setattr(screen.terminal, "settings", screen.terminal.Settings(is_quiet=True))
    assert plan_shown(capsys, backends=["simulated"], remark="the fastest") == []
    devices = [device_entry("device:0", DeviceReport(600), 2.0, 0.0)]
    seconds = {"total": 4.0, "start_up": 1.0, "run": 2.0, "evaluation": 1.0}
    rates = {"steady": None, "end_to_end": 20.0}
    screen.print_results(
        replace(results(1), devices=devices, seconds=seconds, throughput=rates, notes=["a note"])
    )
    shown = capsys.readouterr().out
    assert "WIDER FACE AP over 609 pictures" in shown
    assert "note: a note" in shown
    assert "device:0" not in shown
