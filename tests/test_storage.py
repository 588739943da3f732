"""Files in zip archives and behind URIs."""

from __future__ import annotations

import errno
import io
import os
import struct
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import pyarrow.fs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist import storage
from cfdist.errors import UserError

CONTENTS = {"a/1.jpg": b"", "a/2.jpg": b"x" * 5000, "b/ä.jpg": os.urandom(3000)}


def pack(path: Path, contents: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return str(path)


def patched(path: str, old: bytes, new: bytes, start: int = 0) -> str:
    """The archive with bytes changed in place; opened anew."""
    content = Path(path).read_bytes()
    at = content.index(old, start)
    Path(path).write_bytes(content[:at] + new + content[at + len(old) :])
    return path


def refusal(root: str) -> str:
    with pytest.raises(OSError) as refused:
        storage.open_store(root)
    assert "\n" not in refused.value.strerror
    return refused.value.strerror


@given(st.text(min_size=1).filter(lambda text: "\0" not in text), st.text())
def test_a_place_names_its_store_and_its_name(store, name):
    try:
        store.encode()
        name.encode()
    except UnicodeEncodeError:
        return
    opened = []

    class Fake:
        def read(self, name):
            return name

    def open_store(root):
        opened.append(root)
        return Fake()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "open_store", open_store)
        assert storage.read(storage.place_of(store, name)) == name
    assert opened == [store]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_gives_what_was_packed(tmp_path, method):
    root = pack(tmp_path / "a b!.zip", {"folder/": b"", **CONTENTS}, method)
    store = storage.open_store(root)
    assert store.sizes == {name: len(content) for name, content in CONTENTS.items()}
    for name, content in CONTENTS.items():
        assert storage.read(storage.place_of(root, name)) == content
    with pytest.raises(FileNotFoundError, match="is not in"):
        store.read("a/3.jpg")


def test_a_local_file_is_read_as_ever(tmp_path):
    (tmp_path / "inside!").write_bytes(b"x")
    assert storage.read(str(tmp_path / "inside!")) == b"x"
    with pytest.raises(OSError, match="is a folder"):
        storage.read(str(tmp_path))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_beginning_of_a_file_is_read_from_anywhere(tmp_path, uri, method):
    archive = pack(tmp_path / "a.zip", CONTENTS, method)
    for name, content in CONTENTS.items():
        for count in (1, 20, 10_000):
            assert storage.read_head(storage.place_of(archive, name), count) == content[:count]
    loose = tmp_path / "loose.jpg"
    loose.write_bytes(CONTENTS["a/2.jpg"])
    assert storage.read_head(str(loose), 30) == b"x" * 30
    assert storage.read_head(storage.place_of(uri, "a/2.jpg"), 30) == b"x" * 30
    for gone in (storage.place_of(archive, "no"), str(tmp_path / "no")):
        with pytest.raises(OSError):
            storage.read_head(gone, 30)
    stored = patched(archive, b"PK\3\4", b"PK\0\0")
    with pytest.raises(OSError, match="is damaged in"):
        storage.read_head(storage.place_of(stored, "a/1.jpg"), 30)


def test_many_threads_share_one_handle(tmp_path):
    contents = {f"e/{i}.jpg": bytes([i]) * (200 + i) for i in range(200)}
    root = pack(tmp_path / "a.zip", contents)
    storage.open_store(root)
    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda name: storage.read(storage.place_of(root, name)), contents)
        assert list(found) == list(contents.values())
    assert len(os.listdir("/proc/self/fd")) == before


def test_stores_that_are_not_used_any_more_are_closed(tmp_path):
    roots = [pack(tmp_path / f"{i}.zip", CONTENTS) for i in range(20)]
    for root in roots[:6]:
        storage.open_store(root)
    before = len(os.listdir("/proc/self/fd"))
    for root in roots:
        storage.open_store(root)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_large_archive_of_64_bit_sizes(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(3):
            with archive.open(f"e/{i}.jpg", "w", force_zip64=True) as member:
                member.write(b"y" * i)
    assert storage.open_store(str(path)).read("e/2.jpg") == b"yy"


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "a\\x.jpg", "C:x.jpg"])
def test_a_name_that_leads_out_is_refused(tmp_path, name):
    assert "could lead out of it" in refusal(pack(tmp_path / "a.zip", {**CONTENTS, name: b"x"}))


def test_archives_that_are_not_read_say_why(tmp_path):
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive,
    ):
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    assert "holds 'a' twice" in refusal(str(tmp_path / "twice.zip"))
    packed = pack(tmp_path / "bz.zip", CONTENTS, zipfile.ZIP_BZIP2)
    assert "method 12, which is not read" in refusal(packed)
    secret = pack(tmp_path / "secret.zip", {"a": b"x"})
    central = Path(secret).read_bytes().index(b"PK\1\2")
    assert "encrypted" in refusal(patched(secret, b"\0\0", b"\1\0", central + 8))
    (tmp_path / "no.zip").write_bytes(b"no archive")
    assert "is not a zip archive" in refusal(str(tmp_path / "no.zip"))
    half = tmp_path / "half.zip"
    half.write_bytes(Path(pack(tmp_path / "whole.zip", CONTENTS)).read_bytes()[:-40])
    assert "is not a zip archive, or a damaged one" in refusal(str(half))
    os.mkfifo(tmp_path / "pipe.zip")
    assert "is a named pipe" in refusal(str(tmp_path / "pipe.zip"))
    assert "No such file" in refusal(str(tmp_path / "nowhere.zip"))


def read_error(root: str, name: str) -> OSError:
    with pytest.raises(OSError) as refused:
        storage.open_store(root).read(name)
    return refused.value


@pytest.mark.slow
def test_what_would_become_too_large_is_not_unpacked(tmp_path, monkeypatch):
    bomb = pack(tmp_path / "bomb.zip", {"a.jpg": bytes(40_000_000)})
    assert read_error(bomb, "a.jpg").errno == errno.EFBIG
    # The directory says little, the content goes on: not more is unpacked than it says.
    liar = pack(tmp_path / "liar.zip", {"a.jpg": bytes(40_000_000)})
    central = Path(liar).read_bytes().index(b"PK\1\2")
    patched(liar, struct.pack("<L", 40_000_000), struct.pack("<L", 1000), central)
    assert "its checksum says" in read_error(liar, "a.jpg").strerror
    monkeypatch.setattr(storage, "MAX_READ_BYTES", 10)
    whole = pack(tmp_path / "whole.zip", CONTENTS, zipfile.ZIP_STORED)
    assert "5000 bytes are more than the 10" in read_error(whole, "a/2.jpg").strerror


def test_a_damaged_member_is_no_missing_one(tmp_path):
    stored = pack(tmp_path / "a.zip", CONTENTS, zipfile.ZIP_STORED)
    error = read_error(patched(stored, b"xxxx", b"yyyy"), "a/2.jpg")
    assert (error.errno, "what its checksum says" in error.strerror) == (errno.EBADMSG, True)
    moved = pack(tmp_path / "b.zip", CONTENTS)
    error = read_error(patched(moved, b"PK\3\4", b"PK\3\5"), "a/1.jpg")
    assert (error.errno, "not where the directory says" in error.strerror) == (errno.EBADMSG, True)


@pytest.fixture
def uri(tmp_path) -> str:
    """A folder by its URI, which pyarrow reads."""
    for name, content in CONTENTS.items():
        path = tmp_path / "a folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return f"file://{tmp_path}/a folder"


def test_a_uri_names_a_folder(uri):
    for same in (uri, f"{uri}/", f"file://{quote(uri.removeprefix('file://'))}"):
        store = storage.open_store(same)
        assert store.sizes == {name: len(content) for name, content in CONTENTS.items()}
        for name, content in CONTENTS.items():
            assert storage.read(storage.place_of(same, name)) == content
    with pytest.raises(OSError, match=r"3\.jpg"):
        store.read("a/3.jpg")


def test_a_uri_names_an_archive(tmp_path):
    pack(tmp_path / "a.zip", CONTENTS)
    store = storage.open_store(f"file://{tmp_path}/a.zip")
    assert {name: store.read(name) for name in store.sizes} == CONTENTS


def test_a_folder_at_the_root_of_a_file_system(tmp_path, monkeypatch, uri):
    system = pyarrow.fs.SubTreeFileSystem(str(tmp_path / "a folder"), pyarrow.fs.LocalFileSystem())
    store = storage.RemoteFolder("mock://", system, "")
    assert {name: store.read(name) for name in store.sizes} == CONTENTS
    monkeypatch.setattr(storage, "MAX_READ_BYTES", 10)
    with pytest.raises(OSError, match="5000 bytes are more"):
        store.read("a/2.jpg")


def test_uris_that_are_not_read_say_why(tmp_path):
    assert "No such file" in refusal(f"file://{tmp_path}/nowhere")
    assert "Unrecognized filesystem" in refusal("nosuch://bucket/x")


@pytest.mark.parametrize(
    ("text", "is_one"), [("s3://b", True), ("/a/b", False), ("a:/b", False), ("é://b", False)]
)
def test_what_a_uri_is(text, is_one):
    assert storage.is_uri(text) == is_one


def test_secrets_in_a_uri_are_refused_and_not_shown():
    for text in (
        "s3://name:hush@bucket/x",
        "s3://name:1/hush+/@bucket/x",
        "abfs://c@a.net/x?sas_token=hush",
    ):
        with pytest.raises(UserError, match="this URI holds a key or password") as found:
            storage.path_or_uri(text, "dataset.root")
        assert "hush" not in str(found.value)
    assert storage.path_or_uri("abfs://c@a.net/x?region=a", "k") == "abfs://c@a.net/x?region=a"
    assert storage.path_or_uri("~", "k") == Path.home()
    for text in ("hdfs://host:8020/a@b", "file:///a:b@c", "s3://b/a:b@c"):
        assert storage.path_or_uri(text, "k") == text
    with pytest.raises(UserError, match=r"^k=s3://\[a/b: is no URI \("):
        storage.path_or_uri("s3://[a/b", "k")


def test_one_store_is_opened_once_by_all_threads(tmp_path):
    root = pack(tmp_path / "a.zip", CONTENTS)
    barrier = threading.Barrier(4)

    def opened(_):
        barrier.wait()
        return storage.open_store(root)

    with ThreadPoolExecutor(4) as threads:
        assert len({id(store) for store in threads.map(opened, range(4))}) == 1


@given(
    root=st.text("ab/é %:&=", min_size=1),
    names=st.lists(st.text("ab.% é", min_size=1).filter(lambda name: name.strip(".")), max_size=2),
    query=st.sampled_from(["", "?region=a&x=b"]),
)
def test_a_spool_folder_s_name_is_its_uri(root, names, query):
    uri = f"s3://b/{root}".rstrip("/") + query
    folder = storage.working_folder(uri)
    assert storage.uri_of(folder) == uri
    assert storage.working_folder(uri.replace("?", "/?") if query else f"{uri}/") == folder
    inner = folder.joinpath(*names)
    assert storage.uri_of(inner) == storage.within(uri, "/".join(names))
    assert storage.spool_of(inner) == folder
    assert "?" not in storage.shown(inner).removesuffix(query)


def test_other_folders_are_no_spool_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert storage.working_folder("~/x") == Path.home() / "x"
    for path in (tmp_path, tmp_path / "cfdist" / "spool", Path("/")):
        assert storage.spool_of(path) is None
        assert storage.shown(path) == str(path)


def test_what_is_written_to_a_uri_is_whole_or_not_there(tmp_path):
    remote = storage.remote_folder(f"file://{tmp_path}/a/b")
    remote.refuse_unwritable()
    assert not (tmp_path / "a").exists()
    for content in (b"1", b"22"):
        remote.write("c/d.txt", io.BytesIO(content))
        assert remote.read("c/d.txt") == content
    assert remote.holds(["c/d.txt", "c", "e"]) == {"c/d.txt", "c"}

    class Torn(io.BytesIO):
        def read(self, *_):
            raise OSError(errno.EIO, "torn")

    with pytest.raises(OSError, match="torn"):
        remote.write("c/d.txt", Torn())
    assert remote.read("c/d.txt") == b"22"
    remote.remove_folder("c")
    remote.remove_folder("c")
    assert remote.holds(["c"]) == set()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as refused:
        storage.remote_folder(f"file://{tmp_path}/file").refuse_unwritable()
    assert "\n" not in refused.value.strerror


def test_a_probe_removes_nothing_that_others_have_made_meanwhile(tmp_path, monkeypatch):
    remote = storage.remote_folder(f"file://{tmp_path}/a/b")
    write = storage.RemoteFolder.write

    def beside(self, name, source):
        write(self, name, source)
        (tmp_path / "a" / "b" / "theirs").touch()

    monkeypatch.setattr(storage.RemoteFolder, "write", beside)
    remote.refuse_unwritable()
    assert [one.name for one in (tmp_path / "a" / "b").iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("query", "seconds"), [("", 60), ("?scheme=http", 60), ("?retry_limit_seconds=7", 7)]
)
def test_a_google_store_that_is_gone_is_not_waited_for_long(query, seconds):
    system, path = storage.file_system(f"gs://anonymous@bucket/x{query}")
    (options,) = system.__reduce__()[1]
    assert (path, options["retry_time_limit"].total_seconds()) == ("bucket/x", seconds)


def test_object_stores_get_their_files_at_once(monkeypatch):
    calls = []

    class Store:
        type_name = "s3"

        def open_output_stream(self, path):
            calls.append(path)
            return io.BytesIO()

    storage.RemoteFolder("s3://b/x", Store(), "b/x").write("c/d", io.BytesIO(b"1"))
    assert calls == ["b/x/c/d"]


def test_a_file_is_fetched_once_until_it_changes(tmp_path):
    source = tmp_path / "from" / "a.onnx"
    source.parent.mkdir()
    source.write_bytes(b"12345")
    remote = storage.remote_folder(f"file://{source.parent}")
    path = remote.fetch("a.onnx", tmp_path / "to")
    assert path.read_bytes() == b"12345"
    first = path.stat().st_ino
    assert remote.fetch("a.onnx", tmp_path / "to").stat().st_ino == first
    source.write_bytes(b"54321")
    os.utime(source, ns=(1, 1))
    assert remote.fetch("a.onnx", tmp_path / "to").read_bytes() == b"54321"
    with pytest.raises(FileNotFoundError):
        remote.fetch("b.onnx", tmp_path / "to")
    with pytest.raises(OSError, match="No such file"):
        remote.fetch("", tmp_path / "to")


def test_a_file_that_is_gone_is_told_from_a_store_that_is_gone(tmp_path, monkeypatch):
    folder = tmp_path / "event"
    folder.mkdir()
    archive, uri = pack(tmp_path / "a.zip", {"event/a": b"1"}), f"file://{tmp_path}"
    local = str(folder / "gone")
    places = [local, storage.place_of(archive, "event/gone"), storage.place_of(uri, "event/gone")]
    assert [storage.lost_source(place) for place in places] == [None] * 3
    folder.rmdir()
    os.unlink(archive)
    lost = [folder, archive, uri]
    assert [storage.lost_source(place) for place in places] == [
        f"{one}: No such file or directory" for one in lost
    ]

    class Silent:
        type_name = "s3"

        def get_file_info(self, names):
            raise OSError("no answer")

    silent = storage.RemoteFolder("s3://b", Silent(), "b")
    monkeypatch.setattr(storage, "open_store", lambda root: silent)
    assert storage.lost_source(storage.place_of("s3://b", "a")) == "s3://b: no answer"
    monkeypatch.setattr(Silent, "get_file_info", lambda self, names: [pyarrow.fs.FileInfo("b")])
    assert storage.lost_source(storage.place_of("s3://b", "a")) is None  # it has no folders


def test_a_store_is_copied_to_a_folder(tmp_path, uri, monkeypatch):
    packed = pack(tmp_path / "a.zip", CONTENTS)
    for source in (uri, packed):
        storage.copy_here(source, tmp_path / "copy")
        for name, content in CONTENTS.items():
            assert (tmp_path / "copy" / name).read_bytes() == content

    class Odd:
        sizes: ClassVar[dict[str, int]] = {}

    monkeypatch.setattr(storage, "open_store", lambda root: Odd())
    for name in ("../x", f"{tmp_path}/x"):
        Odd.sizes = {name: 1}
        with pytest.raises(OSError, match="could lead out"):
            storage.copy_here("s3://b", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_first_error_of_many_calls_ends_them():
    def call(name):
        if name == "b":
            raise OSError(errno.EIO, "b")

    with pytest.raises(OSError, match="b"):
        storage.in_parallel(call, "abc")


def test_a_run_s_record_is_read_here_or_at_its_uri(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there = tmp_path / "there"
    folder = storage.working_folder(f"file://{there}")
    assert not storage.is_recorded(folder / "config.yaml")
    with pytest.raises(FileNotFoundError):
        storage.recorded(folder / "config.yaml")
    there.mkdir()
    (there / "config.yaml").write_text("there")
    assert storage.is_recorded(folder / "config.yaml")
    assert storage.recorded(folder / "config.yaml") == b"there"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("here")
    assert storage.recorded(folder / "config.yaml") == b"here"
