"""The files of an index in object storage, which processes of many machines share.

There are no locks. LanceDB commits a version by a conditional put of its manifest, and a small
object beside the table is replaced only where it is still the one that was read. So the server has
to honour both conditions, which is checked first. Objects appear whole, and are durable once they
are put. Snapshots, which processes map, are in a cache of each machine.
"""

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Final, Self
from uuid import uuid4

from obstore.exceptions import AlreadyExistsError, PermissionDeniedError, PreconditionError
from obstore.store import S3Store
from pyarrow import fs

from image_search.errors import StoreError
from image_search.object_storage import S3Folder, S3Server, region_of_environment
from image_search.settings import Settings
from image_search.stores.embedded.bucket_errors import errors_of_the_bucket
from image_search.stores.embedded.files import TABLE_SUFFIX, IndexFiles

# Of servers that have no regions.
_ANY_REGION: Final = "us-east-1"
_CONNECT_TIMEOUT: Final = "3s"
# A sample, the largest object that is put here, has some 50 MB.
_TIMEOUT: Final = "60s"
_RETRIES: Final = 3
_SECONDS_OF_RETRIES: Final = timedelta(seconds=20)
# How long others may come first when an object is replaced; each takes a few requests.
_SECONDS_FOR_OTHERS: Final = 60.0
_MOST_SECONDS_BETWEEN_TRIES: Final = 0.1

_CHECK: Final = "conditional-puts"
_CHECK_CONTENT: Final = b"Left by a check that this server honours If-None-Match and If-Match.\n"


@dataclass(frozen=True, kw_only=True)
class BucketFiles(IndexFiles):
    """Objects below `root`/indexes/`index`; `cache` is a folder of this machine.

    `server` is None for Amazon's. There is one generation alone: nobody could know when those that
    write to the former have ended.
    """

    root: S3Folder
    index: str
    server: S3Server | None
    region: str
    cache: Path

    # Amazon and others refuse requests of clocks that are wrong by more than 15 minutes.
    clocks_differ: ClassVar[timedelta] = timedelta(hours=1)
    is_remote: ClassVar[bool] = True

    @classmethod
    def of(cls, settings: Settings, root: S3Folder) -> Self:
        """Those of the index that the settings name, in `root`; raises StoreError."""
        server = S3Server.of(settings.s3_endpoint)
        with errors_of_the_bucket(root):
            region = region_of_environment() or (
                _region_at_amazon(root.bucket) if server is None else _ANY_REGION
            )
        digest = hashlib.sha256(f"{server} {root}".encode()).hexdigest()[:16]
        return cls(
            namespace=settings.namespace,
            root=root,
            index=settings.index,
            server=server,
            region=region,
            cache=settings.local_dir / "indexes" / digest / settings.index,
        )

    @property
    def uri(self) -> str:
        return str(self._folder)

    @property
    def options(self) -> dict[str, str]:
        given = {"aws_region": self.region, "connect_timeout": _CONNECT_TIMEOUT}
        if self.server is not None:
            given["aws_endpoint"] = str(self.server)
            given["allow_http"] = str(self.server.scheme == "http").lower()
        return given

    @property
    def snapshots(self) -> Path:
        return self.cache / f"{self.name}.snapshots"

    @property
    def snapshots_lock(self) -> Path:
        return self.cache / f"{self.name}.snapshots.lock"

    @property
    def _folder(self) -> S3Folder:
        return self.root / "indexes" / self.index

    @property
    def _store(self) -> S3Store:
        return _store(self.root.bucket, self.server, self.region)

    @property
    def _table(self) -> str:
        return self._key(f"{self.name}{TABLE_SUFFIX}")

    def errors(self) -> AbstractContextManager[None]:
        return errors_of_the_bucket(self.address)

    def make_folder(self) -> None:
        self.prepare()

    def namespaces(self) -> Iterator[Self]:
        found = self._store.list_with_delimiter(self._folder.prefix)["common_prefixes"]
        for name in sorted(PurePosixPath(path).name for path in found):
            files = replace(self, namespace=name.removesuffix(TABLE_SUFFIX))
            if name.endswith(TABLE_SUFFIX) and files.has_table():
                yield files

    def has_table(self) -> bool:
        return any(self._objects(f"{self._table}/_versions"))

    def prepare(self) -> None:
        """Check the server's conditions, and make the folder of snapshots, if it can be made."""
        _check_conditions(self.root, self.server, self.region)
        with suppress(OSError):
            self.cache.mkdir(parents=True, exist_ok=True)

    def versions_before(self, seconds: float) -> int:
        versions = self._objects(f"{self._table}/_versions")
        return sum(one["last_modified"].timestamp() < seconds for one in versions)

    def state(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (0, 0), (0, 0)

    def remove(self) -> None:
        self.remove_facts()
        self._remove_below(self._table)

    def sync(self) -> None:
        pass

    def in_use(self) -> Self:
        return self

    def former(self) -> Iterator[Self]:
        return iter(())

    def reading(self) -> None:
        return None

    def if_unread(self) -> AbstractContextManager[bool]:
        return nullcontext(enter_result=False)

    def writing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def nobody_writing(self) -> AbstractContextManager[bool]:
        return nullcontext(enter_result=False)

    def cleaning(self) -> AbstractContextManager[bool]:
        # LanceDB removes files that no version has once they are seven days old. No clock is wrong
        # by so much, as servers refuse its requests.
        return nullcontext(enter_result=True)

    def if_not_refitting(self) -> AbstractContextManager[bool]:
        return nullcontext(enter_result=False)

    def _key(self, name: str) -> str:
        return (self._folder / name).prefix

    def _objects(self, prefix: str) -> Iterator[Any]:
        for some in self._store.list(prefix):
            yield from some

    def _remove_below(self, prefix: str) -> None:
        for some in self._store.list(prefix):
            self._store.delete([one["path"] for one in some])

    def _read(self, name: str) -> bytes | None:
        try:
            return bytes(self._store.get(self._key(name)).bytes())
        except FileNotFoundError:
            return None

    def _write(self, name: str, content: bytes) -> None:
        self._store.put(self._key(name), content)

    def _update(self, name: str, change: Callable[[bytes | None], bytes]) -> None:
        key = self._key(name)
        deadline = time.monotonic() + _SECONDS_FOR_OTHERS
        while True:
            try:
                found = self._store.get(key)
                new = change(bytes(found.bytes()))
                self._store.put(key, new, mode={"e_tag": found.meta["e_tag"] or ""})
            except FileNotFoundError:
                with suppress(AlreadyExistsError):
                    self._store.put(key, change(None), mode="create")
                    return
            except PreconditionError:
                pass
            else:
                return
            if time.monotonic() > deadline:
                raise StoreError(
                    "the index failed: other processes keep changing what is beside its table; "
                    "run it again to resume",
                    details=f"{self.uri}/{name}",
                )
            time.sleep(random.uniform(0, _MOST_SECONDS_BETWEEN_TRIES))

    def _delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._store.delete(self._key(name))

    def _version(self, name: str) -> str:
        try:
            return self._store.head(self._key(name))["e_tag"] or ""
        except FileNotFoundError:
            return ""


@contextmanager
def scratch_folder(settings: Settings, root: S3Folder) -> Iterator[S3Folder]:
    """A place in `root` of which nothing stays."""
    place = root / f"scratch-{uuid4().hex}"
    files = BucketFiles.of(settings, place)
    try:
        yield place
    finally:
        with files.errors():
            files._remove_below(place.prefix)


@lru_cache(maxsize=16)
def _store(bucket: str, server: S3Server | None, region: str) -> S3Store:
    # Keys are those of Amazon's variables, or of the role that the machine has.
    config: dict[str, Any] = {} if server is None else {"endpoint": str(server)}
    return S3Store(
        bucket,
        region=region,
        client_options={
            "allow_http": server is not None and server.scheme == "http",
            "connect_timeout": _CONNECT_TIMEOUT,
            "timeout": _TIMEOUT,
        },
        retry_config={"max_retries": _RETRIES, "retry_timeout": _SECONDS_OF_RETRIES},
        **config,
    )


@lru_cache(maxsize=16)
def _region_at_amazon(bucket: str) -> str:
    return str(fs.resolve_s3_region(bucket))


@lru_cache(maxsize=16)
def _check_conditions(root: S3Folder, server: S3Server | None, region: str) -> None:
    """Raise StoreError where the server overwrites what it was told not to."""
    store, key = _store(root.bucket, server, region), (root / _CHECK).prefix
    try:
        for _ in range(2):
            store.put(key, _CHECK_CONTENT, mode="create")
    except AlreadyExistsError:
        try:
            store.put(key, _CHECK_CONTENT, mode={"e_tag": '"another"'})
        except PreconditionError:
            return
    except PermissionDeniedError:  # who may not put anything overwrites nothing
        return
    raise StoreError(
        "the index failed: its object storage ignores the conditions of puts, and two that write "
        "at once would lose images: use a server that honours If-None-Match and If-Match, as "
        "Amazon S3 does",
        details=root,
    )
