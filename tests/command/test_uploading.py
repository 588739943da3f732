"""What a spool folder holds gets to its URI whole, last what says that the run is finished."""

from __future__ import annotations

import errno
import re
import threading
import time
from pathlib import Path

import pytest

from cfdist import storage
from cfdist.command import uploading
from cfdist.command.run_folder import TO_RUN, TO_SWEEP, claim, claim_sweep, finished_results
from cfdist.command.uploading import deliver, deliver_unfinished, prepare
from cfdist.errors import DiskFullError, ExitCode, StoppedError, UserError
from tests.fakes import s3


@pytest.fixture
def there(tmp_path, monkeypatch) -> Path:
    """What the URI names."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "there"


def spool(there: Path) -> Path:
    return storage.working_folder(f"file://{there}")


def run(folder: Path, *names: str) -> Path:
    with claim(folder, "job: evaluate\n"):
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(name)
    return folder


def names(folder: Path) -> set[str]:
    return {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()}


@pytest.fixture
def writes(monkeypatch) -> list[str]:
    """The names that are written to URIs, in order; "full" in the list makes them fail."""
    written = []
    write = storage.RemoteFolder.write

    def noted(self, name, source):
        if "full" in written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(name)
        write(self, name, source)

    monkeypatch.setattr(storage.RemoteFolder, "write", noted)
    return written


def test_results_are_the_last_to_go(there, writes, capsys):
    folder = run(spool(there), "results.json", "predictions/a.txt", "run.log")
    deliver(folder)
    assert names(there) == {"config.yaml", "results.json", "predictions/a.txt", "run.log"}
    assert writes[-1] == "results.json"
    assert not folder.exists()
    assert capsys.readouterr().out == f"written to file://{there}\n"
    deliver(folder)  # nothing is left to do
    assert len(writes) == 4


def test_a_finished_run_there_is_never_written_to(there, writes):
    prepare(spool(there), TO_RUN)
    there.mkdir()
    (there / "results.json").write_text("another")
    for refusals, message in ((TO_RUN, "a finished run"), (TO_SWEEP, "a single run")):
        with pytest.raises(UserError, match=f"output_dir=file://.*holds {message}"):
            prepare(spool(there), refusals)
    # Another host has finished meanwhile.
    folder = run(spool(there), "results.json")
    with pytest.raises(StoppedError, match="another run has finished there") as stopped:
        deliver(folder)
    assert stopped.value.exit_code == ExitCode.INTERNAL
    assert (there / "results.json").read_text() == "another"
    assert (folder / "results.json").read_text() == "results.json"
    assert writes == [".cfdist"]


def test_a_failed_upload_loses_nothing_and_goes_on(there, writes):
    folder = run(spool(there), "results.json", "a")
    writes.append("full")
    with pytest.raises(StoppedError, match=f"No space .*results stay in {folder}") as stopped:
        deliver(folder)
    assert stopped.value.exit_code == ExitCode.DISK_FULL
    with pytest.raises(DiskFullError, match="cannot be used"):
        prepare(spool(there.with_name("other")), TO_RUN)
    writes.clear()
    deliver(folder)
    assert names(there) == {"config.yaml", "results.json", "a"}


def test_a_run_that_ended_early_goes_on_elsewhere(there, monkeypatch, tmp_path):
    folder = run(spool(there), "journal/run.json", "journal/segment-0000.arrow")
    deliver_unfinished(folder)
    assert folder.exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another host"))
    other = spool(there)
    assert other != folder
    prepare(other, TO_RUN)
    assert names(other) == {*names(there), ".lock"}
    for name in list((other / "journal").iterdir()):
        name.unlink()
    (other / "journal").rmdir()
    (other / "results.json").touch()
    deliver(other)
    assert names(there) == {"config.yaml", "results.json"}


def test_nothing_is_sent_while_another_process_holds_the_folder(there):
    with claim(spool(there), ""):
        deliver_unfinished(spool(there))
        (spool(there) / "results.json").touch()
    assert not there.exists()


def test_the_runs_of_a_sweep_stay_until_its_end(there, writes, capsys):
    folder = spool(there)
    prepare(folder, TO_SWEEP)
    with claim_sweep(folder):
        prepare(folder / "0", TO_RUN)
        run(folder / "0", "results.json", "a")
        deliver(folder / "0")
        assert names(there) == {"0/config.yaml", "0/results.json", "0/a"}
        run(folder / "1", "results.json")
        writes.append("full")
        deliver(folder / "1")
        writes.clear()
        assert "file://" in capsys.readouterr().out
        for name in ("sweep.csv", "sweep.md", "multirun.yaml"):
            (folder / name).touch()
        uploading.send(folder)
    assert sorted(writes)[:2] == ["1/config.yaml", "1/results.json"]
    assert writes[-2:] == ["1/results.json", "sweep.csv"]
    assert not folder.exists()


def test_local_folders_are_left_alone(tmp_path, writes):
    folder = run(tmp_path / "run", "results.json")
    prepare(folder, TO_RUN)
    deliver(folder)
    deliver_unfinished(folder)
    assert writes == []
    assert (folder / "results.json").exists()


def test_a_uri_that_does_not_answer_is_one_line(there):
    with pytest.raises(
        UserError, match=r"output_dir=nosuch://b: cannot be used \(Unrecog.*\); see"
    ):
        prepare(storage.working_folder("nosuch://b"), TO_RUN)


def test_what_is_not_whole_stays_here(there):
    folder = run(spool(there), "journal/run.json", ".predictions.partial/a.txt", "b.partial")
    deliver_unfinished(folder)
    assert names(there) == {"config.yaml", "journal/run.json"}


def test_a_run_that_was_finished_elsewhere_gets_nothing_of_what_had_ended_early(there):
    folder = run(spool(there), "journal/run.json", "run.log")
    there.mkdir()
    for name in ("results.json", "run.log", "config.yaml"):
        (there / name).write_text("the finished one's")
    deliver_unfinished(folder)
    assert names(there) == {"results.json", "run.log", "config.yaml"}
    deliver(folder)
    assert {path.read_text() for path in there.iterdir()} == {"the finished one's"}
    assert not folder.exists()


def test_a_folder_that_is_fetched_appears_whole(there, monkeypatch):
    for name in ("config.yaml", "run.log", "journal/run.json"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).touch()
    read = storage.RemoteFolder.read

    def torn(self, name):
        if name == "run.log":
            raise OSError(errno.EIO, "the network is gone")
        return read(self, name)

    monkeypatch.setattr(storage.RemoteFolder, "read", torn)
    with pytest.raises(UserError, match="the network is gone"):
        prepare(spool(there), TO_RUN)
    assert not spool(there).exists()


def test_a_sweep_s_run_without_a_journal_goes_on_elsewhere(there):
    for name in ("multirun.yaml", "0/config.yaml", "0/run.log"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).touch()
    folder = spool(there)
    prepare(folder, {})
    with claim(folder / "0", ""):
        pass
    assert list(folder.parent.iterdir()) == [folder]


def test_results_at_a_uri_are_of_the_settings_there(there):
    folder = run(spool(there), "journal/run.json")
    there.mkdir()
    (there / "results.json").write_text('{"ap": 1}')
    (there / "config.yaml").write_text("job: score\n")
    assert finished_results(folder, "job: evaluate\n") is None
    assert finished_results(folder, "job: score\n") == {"ap": 1}


def test_an_interruption_cuts_no_file_short(there, monkeypatch):
    threads = set()
    write = storage.RemoteFolder.write

    def noted(self, name, source):
        threads.add(threading.current_thread())
        write(self, name, source)

    monkeypatch.setattr(storage.RemoteFolder, "write", noted)
    deliver(run(spool(there), "results.json", "run.log"))
    assert threading.main_thread() not in threads  # the only one that is interrupted


@pytest.mark.slow
def test_a_network_that_cuts_connections_costs_no_result(tmp_path, monkeypatch, capsys):
    for name, value in {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    store = s3.Store()
    try:
        uri = store.uri("first")
        folder = storage.working_folder(uri)
        prepare(folder, TO_RUN)
        store.cuts = 3
        deliver(run(folder, "results.json", "predictions/a.txt"))
        assert store.cuts == 0
        assert capsys.readouterr().out == f"written to {uri}\n"
        folder = storage.working_folder(store.uri("second"))
        prepare(folder, TO_RUN)
        run(folder, "results.json", "predictions/a.txt")
    finally:
        store.close()
    began = time.monotonic()
    with pytest.raises(StoppedError, match=rf"the results stay in {re.escape(str(folder))}"):
        deliver(folder)
    assert time.monotonic() - began < 60
    assert names(folder) >= {"results.json", "predictions/a.txt"}
    again = s3.Store(store.server_port)
    again.objects = store.objects
    try:
        deliver(folder)
    finally:
        again.close()
    found = {one for one, content in store.objects.items() if content}  # a folder has none
    assert found == {
        f"bucket/{run}/{name}"
        for run in ("first", "second")
        for name in ("config.yaml", "predictions/a.txt", "results.json")
    }
    assert not folder.exists()
