# SPDX-License-Identifier: Apache-2.0
"""Files named by URL: downloaded once and cached."""

import contextlib
import glob
import hashlib
import io
import os
import re
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import IO, Any

from dnnlib.errors import UserError
from dnnlib.files import open_atomic
from dnnlib.progress import Progress
from dnnlib.text import printable

_TIMEOUT_S = 30
_CHUNK_BYTES = 1 << 16
_ATTEMPTS_WITHOUT_A_BYTE = 3
_LARGEST_BYTES = 1 << 33  # twenty times the largest published network; an endless answer would fill the disk
_SLOWEST_BYTES_PER_S, _MEASURED_S = 1000, 60  # a connection that is slower for a minute counts as broken


class DownloadError(UserError, OSError):
    """A URL could not be downloaded; the message says where to place the file by hand."""


class CacheError(DownloadError):
    """A download cannot be stored in the cache folder; the message says how to choose another folder."""


class DigestError(DownloadError):
    """A file does not have the SHA-256 that its URL states, or the URL states none that could be checked."""


class _UnusableError(Exception):
    """An answer that would not be better if it were asked for again."""


def make_cache_dir_path(*paths: str) -> str:
    """Path below the cache folder: $DNNLIB_CACHE_DIR, else ~/.cache/dnnlib, else one in the temporary folder.

    Nothing is created.
    """
    if os.environ.get("DNNLIB_CACHE_DIR"):
        return os.path.join(os.environ["DNNLIB_CACHE_DIR"], *paths)
    home = os.path.expanduser("~")
    base = tempfile.gettempdir() if home == "~" else home
    return os.path.join(base, ".cache", "dnnlib", *paths)


def is_url(obj: Any, allow_file_urls: bool = False) -> bool:
    """Whether `obj` is an http or https URL (or, if allowed, a file:// URL)."""
    if not isinstance(obj, str):
        return False
    try:
        parts = urllib.parse.urlsplit(obj) if "://" in obj else None
    except ValueError:  # brackets without an address of version 6
        return False
    if parts is None:
        return False
    if parts.scheme == "file":
        return allow_file_urls and bool(parts.path)
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def open_url(
    url: str,
    cache_dir: str | None = None,
    num_attempts: int = 10,
    verbose: bool = True,
    return_filename: bool = False,
    cache: bool = True,
) -> IO[bytes] | str:
    """Open a URL, a file:// URL or a local path for reading bytes.

    A download is stored in `cache_dir` (by default the folder `downloads` of the cache) and reused; without `cache` it
    is kept in memory. `return_filename` returns the path of the local file instead of an open file. A broken download
    is resumed, with at most `num_attempts` attempts. A URL may end in `#sha256=<hex digest>`, which is checked against
    the file. Raises DownloadError, an OSError, also for answers above 8 GiB and digests that are not 64 digits.
    """
    if return_filename and not cache:
        raise ValueError("open_url: return_filename needs cache=True, as only the cache has files")
    if is_url(url, allow_file_urls=True) and url.startswith("file:"):
        url = _file_of_url(url)
    if not is_url(url):
        if re.match(r"[A-Za-z][A-Za-z0-9+.]*://", url):
            raise DownloadError(f"{url} is not an http, https or file URL")
        return url if return_filename else open(url, "rb")

    url, digest = _split_digest(url)
    if not cache:
        memory = io.BytesIO()
        _download(url, memory, num_attempts, verbose, hint="")
        _check_digest(memory, url, digest)
        return memory
    if cache_dir is None:
        cache_dir = make_cache_dir_path("downloads")
    path = _cached_file(url, cache_dir)
    if path is None:
        path = _fetch_to_cache(url, digest, cache_dir, num_attempts, verbose)
    elif digest is not None:
        with open(path, "rb") as file:
            _check_digest(file, path, digest, hint=": remove it to download it again")
    return path if return_filename else open(path, "rb")


def _split_digest(url: str) -> tuple[str, str | None]:
    """The URL without its `#sha256=...`, and that digest or None. Raises DigestError for a mistyped digest."""
    address, _, fragment = url.partition("#")
    match = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment, re.IGNORECASE)
    if match:
        return address, match[1].lower()
    if re.search(r"sha-?2|^\W*sha\b", fragment, re.IGNORECASE):
        raise DigestError(f"{url} would not be checked: a digest is written '#sha256=' and 64 hexadecimal digits")
    return url, None


def _file_of_url(url: str) -> str:
    """The path of a file:// URL. Raises DownloadError if it has a digest that the file there does not have."""
    url, digest = _split_digest(url)
    path = urllib.request.url2pathname(urllib.parse.urlsplit(url).path)
    if digest is not None:
        try:
            with open(path, "rb") as file:
                _check_digest(file, path, digest)
        except (FileNotFoundError, ValueError) as error:  # ValueError: no file has such a name
            raise DownloadError(f"there is no file {url}") from error
    return path


def _check_digest(file: IO[bytes], where: str, digest: str | None, hint: str = "; not used") -> None:
    """Raises DigestError unless the bytes of `file` have the SHA-256 `digest` (None: any). Rewinds the file."""
    file.seek(0)
    if digest is not None:
        found = hashlib.sha256()
        while chunk := file.read(1 << 20):
            found.update(chunk)
        file.seek(0)
        if found.hexdigest() != digest:
            raise DigestError(f"{where} has the SHA-256 {found.hexdigest()}, not {digest} as required{hint}")


def _cache_key(url: str) -> str:
    return hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()


def _cached_file(url: str, cache_dir: str) -> str | None:
    found = sorted(glob.glob(os.path.join(glob.escape(cache_dir), f"{_cache_key(url)}_*")))
    if found and not os.path.isfile(found[0]):
        raise CacheError(f"the cached copy of {url} is not a file: remove {found[0]}")
    return found[0] if found else None


def _fetch_to_cache(url: str, digest: str | None, cache_dir: str, num_attempts: int, verbose: bool) -> str:
    base_name = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1])
    safe_name = re.sub(r"[^0-9a-zA-Z._-]", "_", base_name)[-100:] or "download"
    path = os.path.join(cache_dir, f"{_cache_key(url)}_{safe_name}")
    try:
        os.makedirs(cache_dir, exist_ok=True)
        with open_atomic(path, "w+b") as file:
            _download(url, file, num_attempts, verbose, hint=f"; without a network, place the file at {path}")
            _check_digest(file, url, digest)
    except DownloadError:
        raise
    except OSError as error:
        raise CacheError(
            f"cannot keep {url} in the cache folder {cache_dir} ({error}); set DNNLIB_CACHE_DIR to a writable folder"
        ) from error
    return path


def _download(url: str, file: IO[bytes], num_attempts: int, verbose: bool, hint: str) -> None:
    """Fill the empty `file` with the content of `url`."""
    import requests  # slow to import (0.1 s), and most runs download nothing
    import urllib3

    reason = "no attempt was allowed"
    with requests.Session() as session:
        for attempt in range(1, num_attempts + 1):
            try:
                _receive(session, url, file, verbose)
                return
            except requests.HTTPError as error:
                reason = f"the server answered {error.response.status_code} {error.response.reason}"
                if 400 <= error.response.status_code < 500 and error.response.status_code not in (408, 429):
                    break
            except _UnusableError as error:
                reason = str(error)
                break
            except ValueError as error:  # from any of the libraries: an address, a name or a header that is not valid
                reason = f"an address or a header is not valid: {printable(str(error))}"
                break
            except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError) as error:
                reason = f"{type(error).__name__}: the connection failed or broke after {file.tell()} bytes"
                if file.tell() == 0 and attempt >= _ATTEMPTS_WITHOUT_A_BYTE:
                    break
            if attempt < num_attempts:
                time.sleep(min(0.2 * attempt, 2.0))
    raise DownloadError(f"cannot download {url} ({reason}){hint}")


def _receive(session, url: str, file: IO[bytes], verbose: bool) -> None:
    """One request, for the remaining bytes of `file`.

    Raises the exceptions of requests and urllib3, ConnectionError, ValueError or _UnusableError.
    """
    # Ranges count uncompressed bytes, so the server must not compress them.
    headers = {"Accept-Encoding": "identity"}
    if file.tell() > 0:
        headers["Range"] = f"bytes={file.tell()}-"
    with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        response.raise_for_status()
        if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            raise _UnusableError("the server sends compressed data, whose size it does not say")
        if response.status_code != 206:
            file.seek(0)
            file.truncate()
        length = response.headers.get("Content-Length")
        total = None if length is None else file.tell() + int(length)
        with contextlib.ExitStack() as stack:
            title = f"Downloading {printable(url)}"
            progress = stack.enter_context(Progress(total, title, "bytes")) if verbose else None
            if progress is not None:
                progress.update(file.tell())
            for chunk in _chunks(response.raw):
                if file.tell() + len(chunk) > _LARGEST_BYTES:
                    raise _UnusableError(f"it is larger than {_LARGEST_BYTES >> 20} MiB")
                file.write(chunk)
                if progress is not None:
                    progress.update(len(chunk))
        if total is not None and file.tell() != total:
            raise ConnectionError(f"{total} bytes were expected")


def _chunks(raw) -> Iterator[bytes]:
    """The body of a response as it arrives. Raises ConnectionError if hardly anything does."""
    # `read` waits until it has all the bytes that it was asked for; urllib3 1 has nothing else.
    read = getattr(raw, "read1", raw.read)
    start, received = time.monotonic(), 0
    while chunk := read(_CHUNK_BYTES):
        yield chunk
        received += len(chunk)
        seconds = time.monotonic() - start
        if seconds > _MEASURED_S:
            if received < seconds * _SLOWEST_BYTES_PER_S:
                raise ConnectionError(f"less than {_SLOWEST_BYTES_PER_S} bytes/s")
            start, received = time.monotonic(), 0
