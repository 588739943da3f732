"""What a host has, and the remedy for what it lacks: it is taken, and the next look is content."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path

import pytest

from cfdist.distributed import starting
from cfdist.doctor import host
from cfdist.doctor.host import host_findings, locks_and_room
from cfdist.doctor.table import Finding
from tests.fakes.ascend import GENERATIONS, install_atc, install_double, install_npu_smi

Disk = namedtuple("Disk", "total used free")


def of(what: str, needs_npus: bool = False) -> Finding:
    return next(one for one in host_findings(needs_npus) if one.what == what)


def test_this_host_has_one_line_of_each(monkeypatch):
    names = [one.what for one in host_findings()]
    assert len(set(names)) == len(names)
    assert of("loopback") == Finding("ok", "loopback", "works")
    monkeypatch.setattr(host, "available_cores", lambda: 0)
    assert "or its control group, is limited" in of("cores").found
    monkeypatch.setattr(host, "available_memory", lambda: 1 << 30)
    assert of("memory").state == "note" and "devices=1" in of("memory").remedy


def test_shared_memory_that_is_missing_small_or_closed(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "_SHARED_MEMORY", tmp_path / "none")
    assert of("/dev/shm").state == "note" and "is not there" in of("/dev/shm").found
    monkeypatch.setattr(host, "_SHARED_MEMORY", tmp_path)
    assert of("/dev/shm").state == "ok" and list(tmp_path.iterdir()) == []
    (tmp_path / f"cfdist-doctor-{os.getpid()}").symlink_to(tmp_path / "other")  # somebody else's
    assert of("/dev/shm").state == "ok" and not (tmp_path / "other").exists()
    monkeypatch.setattr(host, "_LEAST_SHARED", 1 << 60)
    assert of("/dev/shm").state == "note" and "--shm-size" in of("/dev/shm").remedy
    monkeypatch.setattr(host, "_SHARED_MEMORY", Path("/proc/self"))
    assert of("/dev/shm").state == "note" and "cannot be written to" in of("/dev/shm").found


def test_a_temporary_folder_that_ray_cannot_use_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    found = of("temporary files")
    assert found.state == "ok" and f"in place of {long}: its path is too long" in found.found
    monkeypatch.setattr(starting, "unusable", lambda _: "Read-only file system")
    found = of("temporary files")
    assert found.state == "FAULT" and found.remedy.endswith("RAY_TMPDIR=...")


def test_a_token_file_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    found = of("Ray's token")
    assert found.state == "FAULT" and found.remedy.startswith("unset RAY_AUTH_TOKEN_PATH")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")  # the remedy
    assert of("Ray's token").state == "ok"


def test_results_need_a_folder_and_room(tmp_path, monkeypatch):
    folder = tmp_path / "a" / "b"
    assert [one.state for one in locks_and_room(folder, 1)] == ["ok", "ok"]
    assert not folder.exists()
    (found, _) = locks_and_room(folder, 1 << 60)
    assert found.state == "FAULT" and found.remedy.startswith("make room")
    (tmp_path / "file").write_text("")
    (found,) = locks_and_room(tmp_path / "file" / "x", 1)
    assert found.state == "FAULT" and "output_dir" in found.remedy

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(host.fcntl, "flock", refuse)
    assert locks_and_room(folder, 1)[1].state == "note"


def test_a_host_without_npus_has_one_line_unless_they_are_needed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(host, "_NPU_FILES", "no such file")
    assert of("NPUs") == Finding("ok", "NPUs", "none (no npu-smi, no /dev/davinci*)")
    wanted = {one.what: one.state for one in host_findings(True)}
    assert (wanted["NPUs"], wanted["ais_bench"], wanted["ATC"]) == ("FAULT", "FAULT", "note")


@pytest.mark.slow
@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_ascend_host_after_each_remedy(monkeypatch, tmp_path, generation):
    monkeypatch.setattr(host, "_DRIVER", tmp_path / "version.info")
    for name in host._TOOLKIT:
        monkeypatch.delenv(name, raising=False)
    install_npu_smi(monkeypatch, tmp_path / "bin")
    before = {one.what: one for one in host_findings(True)}
    assert before["NPUs"].found == "2 x Ascend310P3, all OK"
    assert before["ais_bench"].state == "FAULT"
    assert before["ais_bench"].remedy.startswith("get the wheels aclruntime and ais_bench")
    assert before["CANN toolkit"].state == "note"

    install_double(monkeypatch, generation)  # the wheels
    install_atc(monkeypatch, tmp_path / "bin")
    (tmp_path / "version.info").write_text("Version=23.0.rc2\nascendhal_version=7\n")
    info = tmp_path / "toolkit" / "x86_64-linux" / "ascend_toolkit_install.info"
    info.parent.mkdir(parents=True)
    info.write_text("package_name=Ascend-cann-toolkit\nversion=6.0.RC1\n")
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path / "toolkit"))
    after = {one.what: one for one in host_findings(True)}
    assert {one.state for one in after.values()} == {"ok"}, after
    told = "0.0.2" if generation == "0.0.2" else "later"
    assert told in after["ais_bench"].found
    assert after["NPU driver"].found == "23.0.rc2"
    assert after["CANN toolkit"].found.startswith("6.0.RC1, ")


def test_an_ill_chip_is_named(monkeypatch, tmp_path):
    install_npu_smi(monkeypatch, tmp_path / "bin")
    tool = tmp_path / "bin" / "npu-smi"
    tool.write_text(tool.read_text().replace("| OK   ", "| Alarm", 1))
    found = of("NPUs", needs_npus=True)
    assert "chip 0 is Alarm of 2" in found.found and "devices=[...]" in found.remedy


def test_rows_that_cannot_be_read_are_noted_beside_the_chips(monkeypatch, tmp_path):
    """A run only notes them, too."""
    install_npu_smi(monkeypatch, tmp_path / "bin")
    tool = tmp_path / "bin" / "npu-smi"
    rows = "| chip lost; reset it |\n| and another |\n"
    tool.write_text(tool.read_text().replace("\nTABLE\n", f"\n{rows}TABLE\n"))
    assert of("NPUs", True) == Finding("ok", "NPUs", "2 x Ascend310P3, all OK")
    found = of("npu-smi", True)
    assert found.state == "note" and found.remedy.startswith("compare with `npu-smi info`; ")
    assert found.found.endswith('rows: "| chip lost; reset it |", "| and another |"')
    install_npu_smi(monkeypatch, tmp_path / "bin", chips=0)
    tool.write_text(tool.read_text().replace("\nTABLE\n", f"\n{rows}TABLE\n"))
    assert of("NPUs", True).state == "FAULT" and "see `npu-smi info`" in of("NPUs", True).remedy
    assert of("npu-smi", True).state == "note"
