"""Download of a published file: resumed after a cut, verified, and stored in one step."""

import contextlib
import http.client
import os
import re
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from kfcnet.data.checksum import md5_of
from kfcnet.data.dataset import DataError
from kfcnet.runs.locks import locked

BLOCK_BYTES = 1 << 16
TIMEOUT = 30.0
"""Seconds without a byte, after which a connection counts as lost."""


def fetch(url: str, path: Path, md5: str) -> None:
    """Download `url`, whose MD5 must be `md5`, to `path`; a terminal shows a progress bar.

    An incomplete download stays in `path`.part, and a later call resumes it. The complete file is
    renamed to `path`. Of several processes one downloads, the others wait and take its file; where
    the file system has no locks each has an incomplete file of its own, which does not stay.

    Raises DataError if the download fails or has another MD5.
    """
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            if not stack.enter_context(locked(path.parent, wait=True)):
                own = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
                partial = Path(stack.enter_context(own), partial.name)
            if path.exists():
                return  # another process has brought it
            _fetch_all(url, partial)
            _check(partial, url, md5)
            os.replace(partial, path)
    except (OSError, http.client.HTTPException) as error:
        kept = f" What came is kept in {partial}: run again to go on." if _size(partial) else ""
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{url} could not be downloaded to {path}: {reason}.{kept}") from error


def _fetch_all(url, partial):
    """Reconnect after a cut, as long as every connection yields at least one byte."""
    while True:
        begin = _size(partial)
        expected = _fetch_rest(url, partial, begin)
        if _size(partial) == expected:
            return
        if _size(partial) <= begin:
            raise ConnectionError("the connection was cut")


def _fetch_rest(url, partial, begin):
    """Append the bytes from `begin` on; returns the size of the whole file in bytes."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={begin}-"} if begin else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and begin:
            return begin  # there are no more bytes; the checksum is tested next
        raise
    with response:
        begin, total = _extent(response, begin)
        with open(partial, "r+b" if begin else "wb") as file:
            file.seek(begin)
            _copy(response, file, begin, total)
    return total


def _extent(response, begin):
    """First byte of the response and size of the whole file, in bytes, from the headers."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        extent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if extent is None or int(extent[1]) != begin:
            raise http.client.HTTPException("the server answered with another range than asked for")
        return begin, int(extent[2])
    if response.headers.get("Content-Length") is None:
        raise http.client.HTTPException("the server does not say how long the file is")
    return 0, int(response.headers["Content-Length"])


def _copy(response, file, begin, total):
    """Copy the response to the file, up to its end or a cut."""
    from tqdm import tqdm

    name = os.path.basename(file.name).removesuffix(".part")
    with tqdm(
        desc=name,
        initial=begin,
        total=total,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=None,
    ) as progress:
        while block := _read(response):
            file.write(block)
            progress.update(len(block))


def _read(response):
    """The next bytes; none at the end or after a cut."""
    try:
        return response.read1(BLOCK_BYTES)
    except (OSError, http.client.HTTPException):
        return b""


def _check(partial, url, md5):
    found = md5_of(partial)
    if found != md5:
        partial.unlink()
        raise DataError(
            f"{url} sent other bytes than the published ones (MD5 {found}, published {md5}); "
            "they were deleted."
        )


def _size(path):
    return path.stat().st_size if path.exists() else 0
