"""The downloader against a server on this machine that cuts, forgets and lies."""

import concurrent.futures
import contextlib
import errno
import hashlib
import http.server
import threading

import numpy as np
import pytest

from kfcnet.data import DataError, download

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers for one file as the server's `behaviour` says; notes the ranges asked for."""

    def do_GET(self):
        behaviour, wanted = self.server.behaviour, self.headers.get("Range")
        self.server.ranges.append(wanted)
        content = behaviour.get("content", CONTENT)
        begin = int(wanted[len("bytes=") : -1]) if wanted and behaviour.get("ranges", True) else 0
        if "status" in behaviour:
            self.send_error(behaviour["status"])
        elif begin >= len(content):
            self.send_error(416)
        else:
            self.answer(content, begin + behaviour.get("shift", 0), bool(begin), behaviour)

    def answer(self, content, begin, is_partial, behaviour):
        self.send_response(206 if is_partial else 200)
        if is_partial:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        if behaviour.get("length", True):
            self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        cut = behaviour["cuts"].pop(0) if behaviour.get("cuts") else len(content)
        self.wfile.write(content[begin : begin + cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.behaviour, server.ranges = {}, []
        server.url = f"http://127.0.0.1:{server.server_port}/set.bin"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_download_arrives_whole_in_a_new_directory(server, tmp_path):
    download.fetch(server.url, tmp_path / "new" / "set.bin", MD5)
    assert (tmp_path / "new" / "set.bin").read_bytes() == CONTENT
    assert names(tmp_path / "new") == ["set.bin"]


def test_a_cut_connection_is_taken_up_again_where_it_was_cut(server, tmp_path):
    server.behaviour = {"cuts": [100_000, 50_000]}
    download.fetch(server.url, tmp_path / "set.bin", MD5)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_a_download_that_stopped_goes_on_the_next_time(server, tmp_path):
    server.behaviour = {"cuts": [70_000, 0]}
    with pytest.raises(DataError, match="the connection was cut.*set.bin.part: run again"):
        download.fetch(server.url, tmp_path / "set.bin", MD5)
    assert names(tmp_path) == ["set.bin.part"]
    assert (tmp_path / "set.bin.part").read_bytes() == CONTENT[:70_000]
    download.fetch(server.url, tmp_path / "set.bin", MD5)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=70000-"
    assert names(tmp_path) == ["set.bin"]


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    (tmp_path / "set.bin.part").write_bytes(b"x" * 1000)
    server.behaviour = {"ranges": False}
    download.fetch(server.url, tmp_path / "set.bin", MD5)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_a_part_that_is_already_whole_is_taken(server, tmp_path):
    (tmp_path / "set.bin.part").write_bytes(CONTENT)
    download.fetch(server.url, tmp_path / "set.bin", MD5)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_a_foreign_part_is_noticed_and_deleted(server, tmp_path):
    (tmp_path / "set.bin.part").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="other bytes than the published"):
        download.fetch(server.url, tmp_path / "set.bin", MD5)
    assert names(tmp_path) == []


def test_a_wrong_checksum_is_an_error_and_nothing_stays(server, tmp_path):
    server.behaviour = {"content": CONTENT[::-1]}
    with pytest.raises(DataError, match=f"published {MD5}"):
        download.fetch(server.url, tmp_path / "set.bin", MD5)
    assert names(tmp_path) == []


def test_a_wrong_range_is_not_appended(server, tmp_path):
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:1000])
    server.behaviour = {"shift": 1}
    with pytest.raises(DataError, match="another range"):
        download.fetch(server.url, tmp_path / "set.bin", MD5)
    assert (tmp_path / "set.bin.part").read_bytes() == CONTENT[:1000]


def test_a_file_of_unknown_length_is_refused(server, tmp_path):
    server.behaviour = {"length": False}
    with pytest.raises(DataError, match="how long"):
        download.fetch(server.url, tmp_path / "set.bin", MD5)


def test_a_missing_page_is_named(server, tmp_path):
    server.behaviour = {"status": 404}
    with pytest.raises(DataError, match="set.bin could not be downloaded to .*set.bin: Not Found"):
        download.fetch(server.url, tmp_path / "set.bin", MD5)
    assert names(tmp_path) == []


def test_a_silent_server_counts_as_cut(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    release = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: release.wait(10))
    with pytest.raises(DataError, match="timed out"):
        download.fetch(server.url, tmp_path / "set.bin", MD5)
    release.set()


def test_an_unreachable_server_is_named(tmp_path, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="could not be downloaded to .*: .*refused"):
        download.fetch(server.url, tmp_path / "set.bin", MD5)


def test_a_full_disk_is_said(server, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_copy", refuse)
    with pytest.raises(DataError, match="No space left on device"):
        download.fetch(server.url, tmp_path / "set.bin", MD5)
    assert not (tmp_path / "set.bin").exists()


def fetch_at_once(server, path, count=3):
    """Fetch one file from several threads, whose locks keep each other out as processes' do."""
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(download.fetch, server.url, path, MD5) for _ in range(count)]:
            future.result()
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["set.bin"]


def test_of_several_that_fetch_one_file_the_first_downloads_and_the_others_take_it(
    server, tmp_path
):
    pytest.importorskip("fcntl")
    fetch_at_once(server, tmp_path / "set.bin")
    assert server.ranges == [None]


def test_without_locks_each_has_a_part_of_its_own(server, tmp_path, monkeypatch):
    monkeypatch.setattr(
        download, "locked", lambda folder, wait: contextlib.nullcontext(enter_result=False)
    )
    meeting = threading.Barrier(3)
    monkeypatch.setattr(download, "_check", lambda *_: meeting.wait(10))
    fetch_at_once(server, tmp_path / "set.bin")
    assert server.ranges == 3 * [None]
    server.behaviour = {"cuts": [70_000, 0]}
    with pytest.raises(DataError, match="the connection was cut.$"):
        download.fetch(server.url, tmp_path / "other.bin", MD5)
    assert names(tmp_path) == ["set.bin"]
