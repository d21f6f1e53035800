"""Search for the files of a data set, and the check that they are the published ones."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kfcnet.data.checksum import md5_of
from kfcnet.data.dataset import Arrays, DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Distribution:
    """One published form of a data set: files in one directory.

    files: base name -> published MD5 (None where none is published)
    read: paths, in the order of `files` -> Arrays; raises DataError where one is malformed
    folder: directory that the published archive unpacks to
    must_match: the files must be the published ones; files of other forms need only be well formed
    url: address of the directory to download from; empty where there is no download
    spare: base name of an optional file -> the setting that leaves it out
    """

    files: Mapping[str, str | None]
    read: Callable[[list[Path]], Arrays]
    folder: str = ""
    must_match: bool = False
    url: str = ""
    spare: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """The files of one distribution in one directory; some may be missing."""

    distribution: Distribution
    directory: Path

    @property
    def paths(self) -> list[Path]:
        return [self.directory / name for name in self.distribution.files]

    @property
    def missing(self) -> list[Path]:
        return [path for path in self.paths if not os.path.isfile(path)]


def home() -> Path:
    """Directory of downloads and caches: $KFCNET_DATA where it is set, else data/ here."""
    return expanded(os.environ.get("KFCNET_DATA") or "data", "KFCNET_DATA")


def expanded(path: str | Path, setting: str) -> Path:
    """A path whose ~ or ~user is replaced; DataError where there is no such user's directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{setting}: {path} names no home directory ({error})") from None


def cache_folders() -> list[Path]:
    """Directories for caches: beside the data, and the user's own where those are read-only."""
    folders = [home() / "cache"]
    with contextlib.suppress(RuntimeError):  # a user without a home directory
        own = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folders.append(Path(own).expanduser() / "kfcnet")
    return folders


def locate(
    name: str,
    title: str,
    distributions: Sequence[Distribution],
    path: Path | None = None,
    download: bool = True,
) -> Found:
    """A distribution of the data set that is complete in one directory.

    It is searched in `path` alone where it is given, else in data/ and $KFCNET_DATA, and then
    downloaded. Raises DataError, which says what to do.
    """
    if path is not None:
        return _locate_at(expanded(path, "data.path"), name, title, distributions)
    found = [*search(Path("data"), name, distributions), *search(home(), name, distributions)]
    for candidate in found:
        if not candidate.missing:
            return candidate
    for candidate in found:
        if not (download and candidate.distribution.url):
            raise _incomplete(candidate, title)
    wanted = found[0] if found else Found(distributions[0], home() / name)
    if not download:
        raise _absent(wanted, title, "Downloading is switched off.")
    _download(wanted, title)
    return wanted


def search(place: Path, name: str, distributions: Sequence[Distribution]) -> Iterator[Found]:
    """Distributions with at least one file in directory `place` or in a usual folder inside it."""
    for distribution in distributions:
        inner = distribution.folder
        for folder in dict.fromkeys(["", inner, name, f"{name}/{inner}"]):
            found = Found(distribution, place / folder)
            if len(found.missing) < len(found.paths):
                yield found


def verify(found: Found, title: str) -> list[dict[str, Any]]:
    """The record of each file: base name, bytes, MD5, and whether it is the published MD5.

    Raises DataError for files that must be the published ones and are not.
    """
    records = []
    for path, published in zip(found.paths, found.distribution.files.values(), strict=True):
        md5 = md5_of(path)
        if found.distribution.must_match and md5 != published:
            raise DataError(
                f"{path} is not the published file of {title}: it is cut short or changed "
                f"(MD5 {md5}, published {published}).\nDelete it to have it downloaded again, or "
                "put a whole copy in its place; without it: kfcnet train --config digits_kfc.yaml"
            )
        records.append(
            {
                "name": path.name,
                "bytes": path.stat().st_size,
                "md5": md5,
                "published": md5 == published,
            }
        )
    return records


def warn_unpublished(found: Found, records: Sequence[dict[str, Any]], title: str) -> None:
    """Log one line about files that are used although their checksums are not published ones."""
    names = [record["name"] for record in records if not record["published"]]
    if names:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        logger.warning(
            "%s in %s: the MD5 sums of %s%s are not published ones; well formed, so taken, "
            "and their sums recorded.",
            title,
            found.directory,
            names[0],
            others,
        )


def _locate_at(path, name, title, distributions):
    """The files at a given path, a directory or one of the files."""
    if os.path.isfile(path):
        found = [c for c in search(path.parent, name, distributions) if path in c.paths]
    else:
        found = list(search(path, name, distributions))
    for candidate in found:
        if not candidate.missing:
            return candidate
    if found:
        raise _incomplete(found[0], title)
    wrong = "does not exist"
    if os.path.exists(path):
        wrong = "holds none of its files" if os.path.isdir(path) else "is no file of it"
    raise DataError(
        f"{title} is not at data.path: {path} {wrong}.\n"
        f"Put {_example(distributions)} there, leave data.path (evaluate and reproduce: --data) "
        "out to have data/ and $KFCNET_DATA searched, or do without: kfcnet train --config "
        "digits_kfc.yaml"
    )


def _download(found, title):
    """Download the missing files. Raises DataError, which says what to do, if that fails."""
    from kfcnet.data.download import fetch  # here: its imports are slow and rarely needed

    distribution = found.distribution
    for path in found.missing:
        try:
            fetch(distribution.url + path.name, path, distribution.files[path.name])
        except DataError as error:
            if path in found.missing:  # else another process has brought it
                raise _absent(found, title, f"{error}") from error


def _absent(found, title, reason):
    names = " and ".join(path.name for path in found.missing)
    variable = "" if os.environ.get("KFCNET_DATA") else " (which is not set)"
    return DataError(
        f"{title} was found neither in data/ nor in $KFCNET_DATA{variable}. {reason}\n"
        f"Ways out: put {names} into {found.directory.absolute()}, set KFCNET_DATA or data.path "
        "(evaluate: --data PATH, reproduce: --data NAME=PATH) to their directory, or do without: "
        "kfcnet train --config digits_kfc.yaml"
    )


def _incomplete(found, title):
    names = [path.name for path in found.missing]
    spare = {found.distribution.spare.get(name) for name in names}
    way_out = "remove the other files" if None in spare else f"set {', '.join(spare)}"
    return DataError(
        f"{title} in {found.directory} is incomplete: it lacks {', '.join(names)}.\n"
        f"Put that there, {way_out}, or do without {title}: kfcnet train --config digits_kfc.yaml"
    )


def _example(distributions):
    return " or ".join(next(iter(distribution.files)) for distribution in distributions[:2])
