"""Sources in buckets: `s3://bucket/prefix` and `gs://bucket/prefix`.

Images are read a few at once, and not again where neither size nor time of the object has changed.
Archives, tables and parquet files are downloaded first, as they are read more than once.
"""

import os
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, TypeVar, cast

import pyarrow as pa
from pyarrow import fs

from image_search.errors import ImageError, SourceError
from image_search.object_storage import S3Server
from image_search.progress import Progress
from worker.sources.archive import TAR_SUFFIXES
from worker.sources.files import (
    MAX_FILE_BYTES,
    START_BYTES,
    Choice,
    Chosen,
    File,
    Read,
    open_files,
    reading,
)
from worker.sources.names import printable
from worker.sources.parquet import PARQUET_SUFFIXES, open_parquet
from worker.sources.source import Source, at_address
from worker.sources.webdataset import is_webdataset, open_webdataset

SCHEMES: Final = ("s3://", "gs://")
_AT_ONCE: Final = 16
_ATTEMPTS: Final = 4
_SECONDS: Final = 30.0
# Each is a request.
_PIECE_BYTES: Final = 16 * 1024 * 1024
# What the library says of one object; all else is of the bucket, and ends the run.
_OF_ONE_OBJECT: Final = ("NO_SUCH_KEY", "RESOURCE_NOT_FOUND", "ACCESS_DENIED", "does not exist")
_REFUSED: Final = ("access_denied", "credential", "forbidden", "permission", "unauthenticated")
_KEYS: Final = (
    ". Keys are those that Amazon's and Google's own tools find: AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, a profile, or GOOGLE_APPLICATION_CREDENTIALS"
)

# Google's libraries send all requests to this address, where it is set.
_GOOGLE_EMULATOR: Final = "CLOUD_STORAGE_EMULATOR_ENDPOINT"
# That of a key, and those that tell of a machine or container that may have a role.
_GOOGLE_KEYS: Final = (
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GCE_METADATA_HOST",
    "K_SERVICE",
    "KUBERNETES_SERVICE_HOST",
)

S = TypeVar("S")
T = TypeVar("T")


def is_bucket(source: str) -> bool:
    """Whether it is the address of a bucket."""
    return source.lower().startswith(SCHEMES)


def open_bucket(
    url: str,
    endpoint: str,
    downloads: Path,
    choice: Choice,
    open_path: Callable[[Path], Source],
) -> Source:
    """The images below an address; or what `open_path` makes of a single object there.

    `endpoint` is the server of `s3://` where that is not Amazon's. Raises SourceError.
    """
    bucket = _Bucket(url, endpoint, downloads)
    with _errors(url):
        objects = bucket.list()
    if bucket.is_object:
        return open_path(bucket.download(objects[0]))
    chosen = Chosen()
    by_name = {bucket.name_of(one): one for one in objects}
    for name, one in by_name.items():
        chosen.add(File(name, name), partial(bucket.start, one))
    for suffixes, open_parts in (
        (PARQUET_SUFFIXES, open_parquet),
        (TAR_SUFFIXES, open_webdataset),
    ):
        parts = sorted(name for name in chosen.parts if name.lower().endswith(suffixes))
        if chosen.files or not parts:
            continue
        folder = bucket.download(by_name[parts[0]], below=parts[0])
        if suffixes == TAR_SUFFIXES and not is_webdataset(folder / parts[0]):
            continue
        for name in parts[1:]:
            bucket.download(by_name[name], below=name)
        chosen.skip_parts(but=parts)
        return at_address(url, open_parts(folder, parts, chosen.skipped, choice))

    def read(keys: Collection[str]) -> Iterator[Read]:
        with ThreadPoolExecutor(_AT_ONCE) as pool, _errors(url):
            ordered = sorted(keys)
            contents = _ahead(
                pool,
                lambda key: b"" if key in chosen.videos else bucket.read(by_name[key]),
                ordered,
            )
            for key, content in zip(ordered, contents, strict=True):
                changed = _seconds(by_name[key])
                if key not in chosen.videos:
                    yield key, content, changed
                    continue
                # Not ahead, as each takes its size of the disk.
                with reading(partial(bucket.open, by_name[key]), is_video=True) as video:
                    yield key, video, changed

    versions = {name: _version(one) for name, one in by_name.items()}
    return open_files(url, bucket.own_name, chosen, read, choice, place=url, versions=versions)


class _Bucket:
    """The objects below an address."""

    def __init__(self, url: str, endpoint: str, downloads: Path) -> None:
        self._url = url.rstrip("/")
        scheme, _, path = self._url.partition("://")
        self._path = path
        if not path:
            raise SourceError(f"{url} names no bucket: write {scheme}://BUCKET/PREFIX")
        self._downloads = downloads
        self._files = _file_system(scheme.lower(), path.partition("/")[0], endpoint)
        self.own_name = PurePosixPath(path).name
        self.is_object = False

    def list(self) -> list[fs.FileInfo]:
        """All objects below, or the one that is there."""
        info = self._files.get_file_info(self._path)
        if info.type == fs.FileType.File:
            self.is_object = True
            return [info]
        if info.type == fs.FileType.NotFound:
            raise SourceError(f"there is nothing at {self._url}")
        found = self._files.get_file_info(fs.FileSelector(self._path, recursive=True))
        return [one for one in found if one.type == fs.FileType.File]

    def name_of(self, one: fs.FileInfo) -> str:
        return str(one.path).removeprefix(f"{self._path}/")

    def start(self, one: fs.FileInfo) -> bytes:
        with self._files.open_input_file(one.path) as file:
            return bytes(file.read(START_BYTES))

    def open(self, one: fs.FileInfo) -> BinaryIO:
        return cast("BinaryIO", self._files.open_input_stream(one.path))

    def read(self, one: fs.FileInfo) -> bytes | ImageError:
        if one.size > MAX_FILE_BYTES:
            return ImageError(f"the object has more than {MAX_FILE_BYTES:,} bytes")
        try:
            with self._files.open_input_stream(one.path) as file:
                return bytes(file.read())
        except OSError as exc:
            is_gone = isinstance(exc, FileNotFoundError)
            if is_gone or any(sign in str(exc) for sign in _OF_ONE_OBJECT):
                return ImageError(f"the object cannot be read: {printable(str(exc))}")
            raise

    def download(self, one: fs.FileInfo, below: str = "") -> Path:
        """Where the object is as a file; or the folder that it is in, under the name `below`.

        It is downloaded once for each size and time; what came before a break is not sent again.
        """
        digest = sha256(self._url.encode()).hexdigest()[:16]
        folder = self._downloads / digest / self.own_name if below else self._downloads / digest
        path = folder / (below or self.own_name)
        if not Path(os.path.normpath(path)).is_relative_to(folder) or path == folder:
            raise SourceError(f"{self._url} has an object with an odd name: {printable(one.path)}")
        stamp = path.with_name(f".{path.name}.version")
        if not (path.exists() and stamp.exists() and stamp.read_text() == _version(one)):
            with _errors(self._url):
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(f".{path.name}.part")
                self._fetch(one, part)
                part.replace(path)
                stamp.write_text(_version(one))
        return folder if below else path

    def _fetch(self, one: fs.FileInfo, part: Path) -> None:
        """Write the object to a file, or go on with one of an earlier run."""
        begun = part.with_name(f"{part.name}.version")
        if not (part.exists() and begun.exists() and begun.read_text() == _version(one)):
            part.unlink(missing_ok=True)
            begun.write_text(_version(one))
        done = part.stat().st_size if part.exists() else 0
        free = shutil.disk_usage(part.parent).free
        if one.size - done > free:
            raise SourceError(
                f"{self._url} has {one.size - done:,} bytes to download, and the disk of the data "
                f"folder {free:,} free: make room, or set IMAGE_SEARCH_DATA_DIR to another disk"
            )
        with (
            self._files.open_input_file(one.path) as file,
            part.open("ab") as out,
            Progress(
                f"downloading {printable(one.base_name)}", one.size, "B", done=done
            ) as progress,
        ):
            file.seek(done)
            while piece := file.read(_PIECE_BYTES):
                out.write(piece)
                progress.update(len(piece))
        begun.unlink()
        if _version(self._files.get_file_info(one.path)) != _version(one):
            part.unlink()
            raise SourceError(f"{self._url} has changed while it was downloaded: start again")


def _file_system(scheme: str, bucket: str, endpoint: str) -> fs.FileSystem:
    if scheme == "gs":
        return fs.GcsFileSystem(
            anonymous=not _may_have_google_keys(),
            retry_time_limit=timedelta(seconds=_ATTEMPTS * _SECONDS),
        )
    options = {
        "connect_timeout": _SECONDS,
        "request_timeout": _SECONDS,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    }
    server = S3Server.of(endpoint)
    if server is None:
        with _errors(f"s3://{bucket}"):
            return fs.S3FileSystem(region=fs.resolve_s3_region(bucket), **options)
    return fs.S3FileSystem(endpoint_override=server.host, scheme=server.scheme, **options)


def _may_have_google_keys() -> bool:
    """Whether there are keys where Google's libraries look for them, or a role may give some.

    Without any, nothing could be read, also what is public.
    https://cloud.google.com/docs/authentication/application-default-credentials
    """
    if os.environ.get(_GOOGLE_EMULATOR):
        return False
    config = os.environ.get("CLOUDSDK_CONFIG") or Path.home() / ".config" / "gcloud"
    if (Path(config) / "application_default_credentials.json").exists():
        return True
    product = Path("/sys/class/dmi/id/product_name")
    is_at_google = product.exists() and product.read_text(errors="replace").startswith("Google")
    return is_at_google or any(map(os.environ.get, _GOOGLE_KEYS))


def _version(one: fs.FileInfo) -> str:
    """What changes when an object is replaced; its ETag would cost a request for each."""
    return f"{one.size}-{one.mtime_ns}"


def _seconds(one: fs.FileInfo) -> int | None:
    return None if one.mtime_ns is None else int(one.mtime_ns // 10**9)


def _ahead(pool: ThreadPoolExecutor, work: Callable[[S], T], values: Iterable[S]) -> Iterator[T]:
    """What `work` makes of each value, in order; a few more are worked on meanwhile."""
    remaining = iter(values)
    waiting: deque[Future[T]] = deque(
        pool.submit(work, value) for value in islice(remaining, 2 * _AT_ONCE)
    )
    try:
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(work, value) for value in islice(remaining, 1))
            yield result
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def _errors(url: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as exc:
        reason = printable(" ".join(str(exc).split()))
        is_refused = any(sign in reason.lower() for sign in _REFUSED)
        raise SourceError(f"{url} cannot be read: {reason}{_KEYS if is_refused else ''}") from exc
