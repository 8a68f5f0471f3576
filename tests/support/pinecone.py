"""An emulator of Pinecone's HTTP API, in memory, with faults on demand.

It is written from Pinecone's documentation and OpenAPI files and has nothing from image_search, so
that it can judge it. Where the documentation leaves something open it is the less convenient way:
equal scores come in any order, numbers in metadata come back as floats, empty metadata is left out.

Sources, as comments name them:
LIMITS    https://docs.pinecone.io/reference/quotas-and-limits
COST      https://docs.pinecone.io/guides/organizations/manage-cost/understanding-cost
ROLES     https://docs.pinecone.io/guides/operations/understanding-security
SDK TESTS integration tests of Pinecone's Python SDK, v8.1.2 and v9.0.1
OPENAPI   Pinecone's OpenAPI files
"""

import base64
import bisect
import json
import math
import random
import re
import socket
import ssl
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import numpy.typing as npt
import orjson
import yaml
from openapi_schema_validator import OAS30Validator
from referencing import Registry
from referencing.jsonschema import DRAFT4

Json = dict[str, Any]
Vector = npt.NDArray[np.float32]
Changes = Mapping[str, "Stored | None"]

API_KEY: Final = "emulated-key"
# ROLES: a key may have rights to the data alone, or to reading it.
DATA_KEY: Final = "emulated-data-key"
READING_KEY: Final = "emulated-reading-key"
RIGHTS: Final = {
    API_KEY: {"control", "write", "read"},
    DATA_KEY: {"write", "read"},
    READING_KEY: {"read"},
}
MAX_RECORDS: Final = 1000  # in an upsert, a fetch or a delete
MAX_REQUEST_BYTES: Final = 2 * 1024 * 1024
MAX_RESULT_BYTES: Final = 4 * 1024 * 1024
MAX_METADATA_BYTES: Final = 40 * 1024
MAX_URL: Final = 16 * 1024
MAX_TOP_K: Final = 10_000
MAX_OPERANDS: Final = 10_000
MAX_LIST: Final = 100
DEFAULT_NAMESPACES: Final = ("", "__default__")
# The one field of indexes that serve the vector routes.
VECTOR_FIELD: Final = "_values"

# LIMITS: requests a second, of each namespace, or of the whole index for OF_INDEX.
OF_INDEX: Final = {"fetch", "list", "stats"}
RATE_LIMITS: Final = {
    "query": 100,
    "upsert": 100,
    "delete": 100,
    "update": 100,
    "fetch": 100,
    "list": 200,
    "stats": 100,
}
WRITES: Final = {"upsert", "delete", "update"}

# The client sends a later version: these are the files nearest to it.
OPENAPI_FILES: Final = ("db_data_2026-04.oas.yaml", "db_control_2026-01.alpha.oas.yaml")

# The numbers of the data plane's errors and the names of the control plane's.
ERRORS: Final = {
    400: (3, "INVALID_ARGUMENT"),
    401: (16, "UNAUTHENTICATED"),
    403: (7, "FORBIDDEN"),
    404: (5, "NOT_FOUND"),
    409: (6, "ALREADY_EXISTS"),
    413: (11, "OUT_OF_RANGE"),
    414: (3, "INVALID_ARGUMENT"),
    422: (3, "UNPROCESSABLE_ENTITY"),
    429: (8, "RESOURCE_EXHAUSTED"),
    500: (13, "UNKNOWN"),
    503: (14, "UNAVAILABLE"),
}


class Refused(Exception):  # noqa: N818
    """The request is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    `status` answers with an error, unprocessed, and `body` with these bytes in place of an answer.
    `retry_after` is in seconds, or a time. `cut` closes the connection without an answer, before or
    after the request is processed, or in the middle of its answer.
    `keep` lets an upsert store only so many of its records. `delay` is in seconds, and `late` those
    between processing and the answer.
    """

    status: int | None = None
    retry_after: float | datetime | None = None
    cut: Literal["before", "after", "middle"] | None = None
    keep: int | None = None
    delay: float = 0.0
    late: float = 0.0
    body: bytes | None = None


@dataclass
class Request:
    """One request as it came in; `status` is None where no answer was sent.

    `at` is when, by the emulator's clock. Units are what Pinecone would count for it.
    """

    route: str
    bytes: int
    url_bytes: int
    headers: Mapping[str, str]
    at: float = 0.0
    namespace: str = ""
    status: int | None = None
    answer_bytes: int = 0
    read_units: float = 0.0
    write_units: float = 0.0


@dataclass(frozen=True)
class Answer:
    """`sent` is how much of the body is sent before the connection is cut."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    sent: int | None = None


# --- records -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    values: Vector
    metadata: Json


@dataclass
class _Write:
    lsn: int
    changes: Changes
    at: float
    reads: int = 0


class Namespace:
    """Records as they were last written, and as reads see them."""

    def __init__(self) -> None:
        self.latest: dict[str, Stored] = {}
        self.lsn = 0
        self.bytes = 0
        self.visible: dict[str, Stored] = {}
        self.visible_lsn = 0
        self._pending: deque[_Write] = deque()
        self._matrix: Vector | None = None
        self._sorted: list[str] | None = None

    def write(self, changes: Changes, now: float) -> int:
        self.lsn += 1
        self.bytes += sum(
            _bytes_of(id_, record) - _bytes_of(id_, self.latest.get(id_))
            for id_, record in changes.items()
        )
        _apply(self.latest, changes)
        self._pending.append(_Write(self.lsn, changes, now))
        return self.lsn

    def settle(self, stale_writes: int, stale_reads: int, before: float) -> Self:
        """Begin a read: let it see the writes that are old enough, those at `before` the last."""
        while (
            len(self._pending) > stale_writes
            and self._pending[0].reads >= stale_reads
            and self._pending[0].at <= before
        ):
            write = self._pending.popleft()
            _apply(self.visible, write.changes)
            self.visible_lsn = write.lsn
            self._matrix = self._sorted = None
        for write in self._pending:
            write.reads += 1
        return self

    def matrix(self) -> Vector:
        if self._matrix is None:
            self._matrix = np.stack([record.values for record in self.visible.values()])
        return self._matrix

    def sorted_ids(self) -> list[str]:
        if self._sorted is None:
            self._sorted = sorted(self.visible)
        return self._sorted


def _bytes_of(id_: str, record: Stored | None) -> int:
    """COST: bytes of an id, of its vector, four a number, and of its metadata; 0 for none."""
    if record is None:
        return 0
    return len(id_) + 4 * len(record.values) + len(orjson.dumps(record.metadata))


def _apply(records: dict[str, Stored], changes: Changes) -> None:
    for id_, record in changes.items():
        if record is None:
            records.pop(id_, None)
        else:
            records[id_] = record


@dataclass
class Index:
    name: str
    dimension: int
    metric: str
    tags: dict[str, str]
    deployment: Json
    fields: Json = field(default_factory=dict)
    deletion_protection: str = "disabled"
    describes_until_ready: int = 0
    namespaces: dict[str, Namespace] = field(default_factory=dict)


def _shown(id_: str, record: Stored, parts: set[str]) -> Json:
    shown: Json = {"id": id_, "values": record.values.tolist() if "values" in parts else []}
    return shown | (
        {"metadata": record.metadata} if record.metadata and "metadata" in parts else {}
    )


def _scores(metric: str, rows: Vector, query: Vector) -> Vector:
    # einsum, not a matrix product: equal rows must have equal scores.
    if metric == "euclidean":
        return np.asarray(np.einsum("ij,ij->i", rows - query, rows - query))
    scores = np.einsum("ij,j->i", rows, query)
    if metric == "cosine" and query.any():
        scores /= np.sqrt(np.einsum("ij,ij->i", rows, rows)) * np.linalg.norm(query)
    return np.asarray(scores)


# --- checks ------------------------------------------------------------------------------------


def _require(ok: bool, message: str, status: int = 400) -> None:  # noqa: FBT001
    if not ok:
        raise Refused(status, message)


def _require_size(size: int, limit: int, status: int) -> None:
    found = f"found {size} bytes, the limit is: {limit} bytes"
    _require(size <= limit, f"Error, message length too large: {found}", status)


def _require_count(count: int) -> None:
    valid = 1 <= count <= MAX_RECORDS
    _require(valid, f"1 to {MAX_RECORDS} records are allowed in a request, not {count}")


def _get(message: Json, key: str, kind: type, default: Any = None) -> Any:
    value = message.get(key)
    if value is None:
        return default
    valid = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _require(valid, f"{key} must not be of type {type(value).__name__}")
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _id(value: Any) -> str:
    valid = isinstance(value, str) and 1 <= len(value) <= 512
    _require(valid, "Vector ID must be a string of 1 to 512 characters")
    _require(value.isascii() and "\0" not in value, f"Vector ID must be ASCII, but is {value!r}")
    return str(value)


def _ids(values: Sequence[Any]) -> list[str]:
    _require_count(len(values))
    return [_id(value) for value in values]


def _vector(values: Any, dimension: int, id_: str = "", *, zeros: bool = False) -> Vector:
    count = len(values) if isinstance(values, list) else 0
    wrong = f"Vector dimension {count} does not match the dimension of the index {dimension}"
    _require(count == dimension, wrong)
    numbers = set(map(type, values)) <= {int, float}
    _require(numbers, f"Vector ID '{id_}' holds a value that is not a number")
    with np.errstate(over="ignore"):
        vector = np.array(values, np.float32)
    finite = bool(np.isfinite(vector).all())
    _require(finite, f"Vector ID '{id_}' holds a value that is not a 32-bit float")
    wrong = "Dense vectors must contain at least one non-zero value."
    _require(zeros or bool(vector.any()), f"{wrong} Vector ID '{id_}' contains only zeros")
    return vector


def _metadata(source: Any) -> Json:
    _require(isinstance(source, dict), "Metadata must be an object")
    metadata: Json = {}
    for name, value in source.items():
        _require(not name.startswith("$"), f"Metadata key '{name}' must not begin with '$'")
        valid = isinstance(value, str | bool) or _is_number(value)
        if isinstance(value, list):
            valid = all(isinstance(item, str) for item in value)
        if not valid:
            wrong = "Metadata value must be a string, number, boolean or list of strings, got"
            raise Refused(400, f"{wrong} '{json.dumps(value)[:80]}' for field '{name}'")
        metadata[name] = float(value) if _is_number(value) else value
    size = len(orjson.dumps(metadata))
    wrong = f"Metadata size is {size} bytes, which exceeds the limit of {MAX_METADATA_BYTES} bytes"
    _require(size <= MAX_METADATA_BYTES, f"{wrong} per vector")
    return metadata


# --- filters -----------------------------------------------------------------------------------

NUMERIC: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "$gt": lambda value, operand: value > operand,
    "$gte": lambda value, operand: value >= operand,
    "$lt": lambda value, operand: value < operand,
    "$lte": lambda value, operand: value <= operand,
}


def check_filter(source: Any) -> Json:
    """The filter with bare values as `$eq`; Refused if it is not one of Pinecone's."""
    _require(isinstance(source, dict), f"A filter must be an object, got {source!r}")
    checked: Json = {}
    for name, value in source.items():
        if name in ("$and", "$or"):
            valid = isinstance(value, list) and bool(value)
            _require(valid, f"{name} needs a non-empty array of filters")
            checked[name] = [check_filter(part) for part in value]
        else:
            _require(not name.startswith("$"), f"Unknown operator {name}")
            checked[name] = value if isinstance(value, dict) else {"$eq": value}
            _require(bool(checked[name]), f"Field {name} has no operator")
            for operator, operand in checked[name].items():
                valid = _takes(operator, operand)
                _require(valid, f"There is no operator {operator} for {operand!r}"[:200])
    return checked


def _takes(operator: str, operand: Any) -> bool:
    if operator in NUMERIC:
        return _is_number(operand)
    if operator in ("$eq", "$ne"):
        return isinstance(operand, str | bool) or _is_number(operand)
    if operator in ("$in", "$nin"):
        valid = isinstance(operand, list) and 1 <= len(operand) <= MAX_OPERANDS
        return valid and all(isinstance(item, str) or _is_number(item) for item in operand)
    return operator == "$exists" and isinstance(operand, bool)


def passes(checked: Json, metadata: Json) -> bool:
    """Whether a record with this metadata passes a filter from `check_filter`."""
    return all(_passes(name, value, metadata) for name, value in checked.items())


def _passes(name: str, value: Any, metadata: Json) -> bool:
    if name == "$and":
        return all(passes(part, metadata) for part in value)
    if name == "$or":
        return any(passes(part, metadata) for part in value)
    return all(_holds(metadata.get(name), operator, operand) for operator, operand in value.items())


def _holds(value: Any, operator: str, operand: Any) -> bool:
    if operator in NUMERIC:
        return _is_number(value) and NUMERIC[operator](value, operand)
    if operator == "$exists":
        return bool((value is not None) == operand)
    operands = operand if operator in ("$in", "$nin") else [operand]
    elements = value if isinstance(value, list) else [value]
    equal = any(_equal(one, other) for one in elements for other in operands)
    return equal == (operator in ("$eq", "$in"))


def _equal(value: Any, operand: Any) -> bool:
    if _is_number(value) and _is_number(operand):
        return float(value) == float(operand)
    return bool(type(value) is type(operand) and value == operand)


# --- OpenAPI -----------------------------------------------------------------------------------


class OpenApi:
    """Checks messages against Pinecone's OpenAPI files (version 3.0)."""

    def __init__(self, *files: Path) -> None:
        self._operations: dict[str, tuple[str, Json]] = {}
        registry: Registry[Any] = Registry()
        for file in files:
            document = yaml.safe_load(file.read_text(encoding="utf-8"))
            uri = f"urn:{file.name}"
            registry = registry.with_resource(uri, DRAFT4.create_resource(document))
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    self._operations[f"{method.upper()} {path}"] = (uri, operation)
        self._registry = registry

    def check_request(
        self, route: str, params: Json, headers: Mapping[str, str], message: Any
    ) -> list[str]:
        if route not in self._operations:
            return [f"{route}: no such operation"]
        uri, operation = self._operations[route]
        declared = {item["name"]: item for item in operation.get("parameters", [])}
        sent = {name: headers[name.lower()] for name in declared if name.lower() in headers}
        given: Json = {**params, **sent}
        problems = [f"unknown parameter {name}" for name in given.keys() - declared.keys()]
        for name, item in declared.items():
            if item["in"] == "path":
                continue
            if name not in given:
                problems += [f"no parameter {name}"] * item.get("required", False)
                continue
            value = given[name]
            if item["schema"]["type"] == "integer" and re.fullmatch(r"-?\d+", value):
                value = int(value)
            problems += self._problems(uri, item["schema"], value)
        if "requestBody" in operation:
            content = operation["requestBody"]["content"]["application/json"]
            problems += self._problems(uri, content["schema"], message)
        return [f"{route}: {problem}" for problem in problems]

    def check_answer(self, route: str, answer: Answer) -> list[str]:
        if route not in self._operations:
            return []
        uri, operation = self._operations[route]
        responses, status = operation["responses"], answer.status
        # All errors of a file have the same body, also those that it does not list.
        keys = (str(status), f"{status // 100}XX", "500" if status >= 400 else "")
        response = next((responses[key] for key in keys if key in responses), None)
        if response is None:
            return [f"{route}: no answer {status}"]
        problems = []
        if "content" in response:
            schema = response["content"]["application/json"]["schema"]
            try:
                problems = self._problems(uri, schema, json.loads(answer.body))
            except ValueError as exc:
                problems = [str(exc)]
        elif answer.body:
            problems = ["a body"]
        return [f"{route}: answer {status}: {problem}" for problem in problems]

    def _problems(self, uri: str, schema: Json, value: Any) -> list[str]:
        # References in the schema are relative to its file.
        absolute = json.loads(json.dumps(schema).replace('"#/', f'"{uri}#/'))
        validator = OAS30Validator(absolute, registry=self._registry)
        return [
            f"{'.'.join(map(str, error.path))}: {error.message[:200]}"
            for error in validator.iter_errors(_thin(value))
        ]


def load_openapi(folder: Path) -> OpenApi | None:
    """Pinecone's files from this folder, or None where they are not."""
    files = [folder / name for name in OPENAPI_FILES]
    return OpenApi(*files) if all(file.exists() for file in files) else None


def _thin(value: Any) -> Any:
    """The same with one number for many: checking each of a vector takes too long."""
    if isinstance(value, dict):
        return {name: _thin(item) for name, item in value.items()}
    if isinstance(value, list):
        return value[:1] if set(map(type, value)) == {float} else [_thin(item) for item in value]
    return value


# --- the emulator ------------------------------------------------------------------------------


def forget_failures() -> None:
    """Clear what Pinecone's client remembers of hosts that failed.

    It does so for the whole process and for all ports of a host, so one test would disturb others.
    """
    from pinecone._internal.bulk import get_registry
    from pinecone._internal.http_client import get_budget_registry

    get_budget_registry()._reset()
    get_registry()._reset()


class PineconeEmulator:
    """Pinecone on an address and port of this machine, for one project and API key.

    `host` is the control plane, and the data plane where there is only one index; each index has
    its own data host too, which is described. Attributes may be changed at any time:

    `delay` seconds are added to each data request. Reads of any kind do not see the last
    `stale_writes` writes of a namespace, nor a write before `stale_reads` more reads, nor what was
    written less than `lag` seconds ago. More requests of a kind than `rate_limits` within a second
    are refused. Created indexes are not ready for the first `describes_until_ready` descriptions.
    There may be `max_indexes`, of `max_namespaces` each, and upserts are refused once the project
    stores `max_stored` bytes. `default_name` is what answers call the default namespace, and
    `data_host`, if set, what they call the data plane's host. `clock` gives seconds. With a
    `certificate`, a file that has its key too, TLS is spoken. With `openapi`, messages are checked,
    which is slow, and `violations` lists what was wrong.
    """

    def __init__(
        self,
        *,
        api_key: str = API_KEY,
        address: str = "127.0.0.1",
        port: int = 0,
        openapi: OpenApi | None = None,
        seed: int = 0,
        certificate: Path | None = None,
    ) -> None:
        self.rights: dict[str, set[str]] = {**RIGHTS, api_key: RIGHTS[API_KEY]}
        self.clock: Callable[[], float] = time.monotonic
        self.rate_limits: dict[str, int] = dict(RATE_LIMITS)
        self.max_indexes = self.max_namespaces = self.max_stored = sys.maxsize
        self.delay = 0.0
        self.lag = 0.0
        self.stale_writes = 0
        self.stale_reads = 0
        self.describes_until_ready = 0
        self.default_name = ""
        self.data_host = ""
        self.indexes: dict[str, Index] = {}
        self.requests: list[Request] = []
        self.violations: list[str] = []
        self.openapi = openapi
        self._address = address
        self._port = port
        self._certificate = certificate
        self._random = random.Random(seed)
        self._faults: list[tuple[str, Fault]] = []
        self._random_faults: tuple[float, Sequence[Fault], str] = (0.0, (), "")
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._server: _Server | None = None
        self._bytes_written = 0
        self._recent: defaultdict[tuple[str, ...], deque[float]] = defaultdict(deque)
        self._data_routes: dict[str, Callable[[Index, Json, Fault], Answer]] = {
            "POST /vectors/upsert": self._upsert,
            "POST /query": self._query,
            "GET /vectors/fetch": self._fetch,
            "POST /vectors/fetch_by_metadata": self._fetch_by_metadata,
            "GET /vectors/list": self._list,
            "POST /vectors/delete": self._delete,
            "POST /vectors/update": self._update,
            "POST /describe_index_stats": self._stats,
        }
        self._control_routes: dict[str, Callable[[str, Json], Answer]] = {
            "POST /indexes": self._create_index,
            "GET /indexes": self._list_indexes,
            "GET /indexes/{index_name}": self._describe_index,
            "DELETE /indexes/{index_name}": self._delete_index,
            "PATCH /indexes/{index_name}": self._configure_index,
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; on the same port as before, with the data of before."""
        self._stopped.clear()
        self._server = _Server(self, (self._address, self._port), self._certificate)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Close the port and all connections: an outage. Does nothing if it is stopped."""
        server, self._server = self._server, None
        if server is not None:
            self._stopped.set()
            server.shutdown()
            server.server_close()
            server.cut_connections()

    @property
    def port(self) -> int:
        return self._port

    @property
    def host(self) -> str:
        scheme = "https" if self._certificate else "http"
        return f"{scheme}://{self._address}:{self._port}"

    def put_index(
        self,
        name: str,
        dimension: int = 512,
        metric: str = "cosine",
        tags: Mapping[str, str] | None = None,
        fields: Json | None = None,
    ) -> Index:
        """An index as made by hand in the console: ready, and without tags.

        It is a document index where its schema has other `fields` than `_values`.
        """
        deployment = {"deployment_type": "managed", "cloud": "aws", "region": "us-east-1"}
        vector = {"type": "dense_vector", "dimension": dimension, "metric": metric}
        index = Index(name, dimension, metric, dict(tags or {}), deployment)
        index.fields = {VECTOR_FIELD: vector} if fields is None else fields
        self.indexes[name] = index
        return index

    def records(self, name: str, namespace: str = "") -> dict[str, Stored]:
        """All records of a namespace as last written; changing the dict changes nothing."""
        with self._lock:
            return dict(self._namespace(self.indexes[name], {"namespace": namespace}).latest)

    def fail(self, fault: Fault, times: int = 1, route: str = "") -> None:
        """Let the next `times` requests whose route contains `route` fail so."""
        with self._lock:
            self._faults += [(route, fault)] * times

    def fail_randomly(self, share: float, faults: Sequence[Fault], route: str = "") -> None:
        """Let this share of the requests fail, one way or another, whose route has `route`.

        That is a regular expression.
        It replaces the share of before; 0 ends it.
        """
        with self._lock:
            self._random_faults = (share, faults, route)

    def count(self, route: str = "", *statuses: int | None) -> int:
        """How many requests there were whose route contains `route`, with one of the statuses."""
        with self._lock:
            return sum(
                route in request.route and (not statuses or request.status in statuses)
                for request in self.requests
            )

    def respond(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> Answer | None:
        """The answer to a request, or None where the connection is to be cut.

        The names of the headers are in lower case.
        """
        url = urlsplit(target)
        data_host = re.match(r"/data/([^/]+)(?=/)", url.path)
        name = data_host[1] if data_host else ""
        path = url.path[data_host.end() :] if data_host else url.path
        if control := path.startswith("/indexes"):
            name = unquote(path.removeprefix("/indexes").removeprefix("/"))
            path = "/indexes/{index_name}" if name else "/indexes"
        route = f"{method} {path}"
        shown = {key: value for key, value in headers.items() if key != "api-key"}
        request = Request(route, len(body), len(target), shown, self.clock())
        with self._lock:
            self.requests.append(request)
            fault = self._take_fault(route)
        delay = fault.delay + (0.0 if control else self.delay)
        if self._stopped.wait(delay) or fault.cut == "before":
            return None
        try:
            if fault.status is not None and fault.body is None:
                _require(ok=False, message="An injected fault", status=fault.status)
            _require(len(target) <= MAX_URL, "URI too long", 414)
            rights = self.rights.get(headers.get("api-key", ""))
            _require(rights is not None, "Invalid API Key", 401)
            # A plus is a plus: https://github.com/pinecone-io/python-sdk/pull/372, and OPENAPI of
            # fetch and list: "Does not accept values containing spaces."
            params: Json = parse_qs(url.query.replace("+", "%2B"), keep_blank_values=True)
            params = {key: value if key == "ids" else value[0] for key, value in params.items()}
            message = _parse(body) if body else {}
            if self.openapi is not None:
                self.violations += self.openapi.check_request(route, params, headers, message)
            _require(isinstance(message, dict), "The body must be an object")
            self._check_rights(rights or set(), route)
            with self._lock:
                if route in self._control_routes:
                    answer = self._control_routes[route](name, message)
                else:
                    _require(route in self._data_routes, f"No such route: {route}", 404)
                    _require_size(len(body), MAX_REQUEST_BYTES, 413)
                    index = self._index(name or "".join(self.indexes) * (len(self.indexes) == 1))
                    _require(not index.describes_until_ready, "The index is not ready", 503)
                    # SDK 10: an index with a schema of its own serves documents, not vectors.
                    wrong = "This operation is not supported for document indexes"
                    _require(VECTOR_FIELD in index.fields, wrong)
                    message = {**params, **message}
                    request.namespace = self._name(message)
                    self._check_rate(index, route, request)
                    answer = self._data_routes[route](index, message, fault)
                    self._count_units(index, request, answer)
        except Refused as exc:
            answer = _error(exc, control=control)
        if isinstance(fault.retry_after, datetime):
            after = format_datetime(fault.retry_after, usegmt=True)
            answer = replace(answer, headers={"Retry-After": after})
        elif fault.retry_after is not None:
            answer = replace(answer, headers={"Retry-After": str(fault.retry_after)})
        if self.openapi is not None and answer.status not in _TEXT_STATUSES:
            self.violations += self.openapi.check_answer(route, answer)
        if fault.body is not None:
            answer = Answer(fault.status or 200, fault.body)
        if self._stopped.wait(fault.late) or fault.cut == "after":
            return None
        if fault.cut == "middle":
            answer = replace(answer, sent=len(answer.body) // 2)
        else:
            request.status = answer.status
        request.answer_bytes = len(answer.body)
        return answer

    def _check_rights(self, rights: set[str], route: str) -> None:
        needed = "read"
        if route in self._control_routes:
            needed = "control"
        elif _kind(route) in WRITES:
            needed = "write"
        wrong = "The API key does not have permission to perform this operation"
        _require(needed in rights, wrong, 403)

    def _check_rate(self, index: Index, route: str, request: Request) -> None:
        """LIMITS: past the limit, requests are refused with 429, and retrying later is advised."""
        kind = _kind(route)
        scope = "" if kind in OF_INDEX else request.namespace
        recent = self._recent[index.name, kind, scope]
        while recent and recent[0] <= request.at - 1:
            recent.popleft()
        limit = self.rate_limits[kind]
        wrong = f"You've reached the {kind} requests per second limit of {limit}: try again later"
        _require(len(recent) < limit, wrong, 429)
        recent.append(request.at)

    def _count_units(self, index: Index, request: Request, answer: Answer) -> None:
        """COST: what the request is charged for."""
        kind = _kind(request.route)
        if kind == "query":
            namespace = index.namespaces.get(request.namespace, Namespace())
            request.read_units = max(0.25, namespace.bytes / 1e9)
        elif kind == "fetch":
            found = len(orjson.loads(answer.body)["vectors"])
            request.read_units = max(1, math.ceil(found / 10))
        elif kind == "list":
            request.read_units = 1
        elif kind in WRITES:
            request.write_units = max(5, math.ceil(self._bytes_written / 1000))

    def _take_fault(self, route: str) -> Fault:
        for position, (part, fault) in enumerate(self._faults):
            if part in route:
                del self._faults[position]
                return fault
        share, faults, part = self._random_faults
        if re.search(part, route) and self._random.random() < share:
            return self._random.choice(faults)
        return Fault()

    # --- control plane ---

    def _index(self, name: str) -> Index:
        _require(name in self.indexes, f"Index {name} not found.", 404)
        return self.indexes[name]

    def _create_index(self, _: str, message: Json) -> Answer:
        name = str(message.get("name"))
        valid = re.fullmatch(r"(?!-)[a-z0-9-]{1,45}(?<!-)", name) is not None
        _require(valid, "The name must be 1 to 45 lower case letters, digits or hyphens")
        fields = _get(_get(message, "schema", dict, {}), "fields", dict, {})
        dense = [key for key, item in fields.items() if item.get("type") == "dense_vector"]
        _require(len(dense) == 1, "The schema must have one dense vector field", 422)
        vector = fields[dense[0]]
        # LIMITS: 403, and the name of the quota.
        wrong = "Request failed. You've reached the max serverless indexes allowed in project test"
        more = len(self.indexes) < self.max_indexes
        _require(more, f"{wrong} ({self.max_indexes}). To add more, upgrade your plan.", 403)
        dimension, metric = _get(vector, "dimension", int, 0), vector.get("metric")
        _require(1 <= dimension <= 20_000, "The dimension must be 1 to 20000")
        _require(metric in ("cosine", "euclidean", "dotproduct"), f"Unknown metric {metric!r}")
        _require(name not in self.indexes, "Resource already exists.", 409)
        index = self.put_index(name, dimension, metric, message.get("tags"), fields)
        index.deployment = message.get("deployment") or index.deployment
        index.deletion_protection = message.get("deletion_protection", "disabled")
        index.describes_until_ready = self.describes_until_ready
        return _json(self._description(index), 201)

    def _list_indexes(self, _: str, __: Json) -> Answer:
        return _json({"indexes": [self._description(index) for index in self.indexes.values()]})

    def _describe_index(self, name: str, _: Json) -> Answer:
        index = self._index(name)
        description = self._description(index)
        index.describes_until_ready = max(0, index.describes_until_ready - 1)
        return _json(description)

    def _delete_index(self, name: str, _: Json) -> Answer:
        protected = self._index(name).deletion_protection == "enabled"
        _require(not protected, "Deletion protection is enabled for this index.", 403)
        del self.indexes[name]
        return Answer(202)

    def _configure_index(self, name: str, message: Json) -> Answer:
        index = self._index(name)
        tags = {**index.tags, **_get(message, "tags", dict, {})}
        index.tags = {key: value for key, value in tags.items() if value}
        index.deletion_protection = message.get("deletion_protection", index.deletion_protection)
        return _json(self._description(index), 202)

    def _description(self, index: Index) -> Json:
        ready = not index.describes_until_ready
        return {
            "name": index.name,
            "host": self.data_host or f"{self.host}/data/{index.name}",
            "status": {"ready": ready, "state": "Ready" if ready else "Initializing"},
            "schema": {"fields": index.fields},
            "deployment": index.deployment,
            "deletion_protection": index.deletion_protection,
            "read_capacity": {"mode": "OnDemand", "status": {"state": "Ready"}},
            **({"tags": index.tags} if index.tags else {}),
        }

    # --- data plane ---

    def _name(self, message: Json) -> str:
        name = str(_get(message, "namespace", str, ""))
        return "" if name in DEFAULT_NAMESPACES else name

    def _namespace(self, index: Index, message: Json) -> Namespace:
        return index.namespaces.get(self._name(message), Namespace())

    def _read(self, index: Index, message: Json) -> Namespace:
        return self._namespace(index, message).settle(
            self.stale_writes, self.stale_reads, self.clock() - self.lag
        )

    def _result(self, message: Json, **body: Any) -> Json:
        name = self._name(message) or self.default_name
        return {"namespace": name, "usage": {"readUnits": 1}, **body}

    def _upsert(self, index: Index, message: Json, fault: Fault) -> Answer:
        vectors = _get(message, "vectors", list, [])
        _require_count(len(vectors))
        # LIMITS: 403 where a quota is reached.
        is_new = self._name(message) not in index.namespaces
        more = not is_new or len(index.namespaces) < self.max_namespaces
        wrong = "Request failed. You've reached the max namespaces allowed in serverless index"
        _require(more, f"{wrong} {index.name}. To add more, upgrade your plan.", 403)
        if self.max_stored < sys.maxsize:
            stored = sum(
                namespace.bytes
                for other in self.indexes.values()
                for namespace in other.namespaces.values()
            )
            wrong = "Request failed. You've reached the max storage allowed for project test"
            _require(stored < self.max_stored, f"{wrong}. Upgrade your plan.", 403)
        _require(all(isinstance(vector, dict) for vector in vectors), "A vector is an object")
        changes: dict[str, Stored] = {}
        for vector in vectors[: fault.keep]:
            id_ = _id(vector.get("id"))
            values = _vector(vector.get("values"), index.dimension, id_)
            # Where a record is replaced it takes its new place in the order, too.
            changes.pop(id_, None)
            changes[id_] = Stored(values, _metadata(vector.get("metadata") or {}))
        count = len(vectors[: fault.keep])
        return self._written(index, message, changes, {"upsertedCount": count})

    def _written(self, index: Index, message: Json, changes: Changes, body: Json) -> Answer:
        # COST: the records that are written, and those that they replace or that are deleted.
        latest = self._namespace(index, message).latest
        self._bytes_written = sum(
            _bytes_of(id_, record) + _bytes_of(id_, latest.get(id_))
            for id_, record in changes.items()
        )
        lsn = index.namespaces.setdefault(self._name(message), Namespace()).write(
            changes, self.clock()
        )
        return _json(body, headers={"x-pinecone-request-lsn": str(lsn)})

    def _query(self, index: Index, message: Json, _: Fault) -> Answer:
        top_k = _get(message, "topK", int, 0)
        _require(1 <= top_k <= MAX_TOP_K, f"topK must be 1 to {MAX_TOP_K}, not {top_k}")
        _require(("id" in message) != ("vector" in message), "Exactly one of id, vector is needed")
        namespace = self._read(index, message)
        checked = check_filter(_get(message, "filter", dict, {}))
        query = None
        if "vector" in message:
            # SDK TESTS: a query of zeros is answered, a record of zeros is refused.
            query = _vector(message["vector"], index.dimension, zeros=True)
        elif (record := namespace.visible.get(_id(message["id"]))) is not None:
            query = record.values
        shown = {key for key in ("values", "metadata") if message.get(f"include{key.title()}")}
        matches = []
        records = list(namespace.visible.items())
        rows = [row for row, (_, record) in enumerate(records) if passes(checked, record.metadata)]
        if rows and query is not None:
            matrix = namespace.matrix()
            matrix = matrix if len(rows) == len(matrix) else matrix[rows]
            scores = _scores(index.metric, matrix, query)
            order = np.argsort(scores if index.metric == "euclidean" else -scores, kind="stable")
            for position in order[:top_k]:
                id_, record = records[rows[position]]
                matches.append({"score": float(scores[position]), **_shown(id_, record, shown)})
        lsn = {"x-pinecone-max-indexed-lsn": str(namespace.visible_lsn)}
        answer = _json(self._result(message, matches=matches), headers=lsn)
        _require_size(len(answer.body), MAX_RESULT_BYTES, 400)
        return answer

    def _fetch(self, index: Index, message: Json, _: Fault) -> Answer:
        visible = self._read(index, message).visible
        ids = [id_ for id_ in _ids(message.get("ids", [])) if id_ in visible]
        vectors = {id_: _shown(id_, visible[id_], {"values", "metadata"}) for id_ in ids}
        return _json(self._result(message, vectors=vectors))

    def _fetch_by_metadata(self, index: Index, message: Json, _: Fault) -> Answer:
        checked = check_filter(_get(message, "filter", dict, {}))
        _require(bool(checked), "Empty filter provided for fetch by metadata request")
        limit = _get(message, "limit", int, MAX_LIST)
        _require(1 <= limit <= MAX_TOP_K, f"limit must be 1 to {MAX_TOP_K}, not {limit}")
        visible = self._read(index, message).visible
        # The documentation names no order: by the ids from their ends, which nobody expects.
        found = sorted(id_[::-1] for id_ in visible if passes(checked, visible[id_].metadata))
        start = 0
        if "paginationToken" in message:
            try:
                after = base64.b64decode(message["paginationToken"], validate=True).decode()
            except ValueError as exc:
                raise Refused(400, "Invalid pagination token") from exc
            start = bisect.bisect_right(found, after)
        page = found[start : start + limit]
        vectors = {
            id_[::-1]: _shown(id_[::-1], visible[id_[::-1]], {"values", "metadata"}) for id_ in page
        }
        result = self._result(message, vectors=vectors)
        if start + limit < len(found):
            result["pagination"] = {"next": base64.b64encode(page[-1].encode()).decode()}
        answer = _json(result)
        _require_size(len(answer.body), MAX_RESULT_BYTES, 400)
        return answer

    def _list(self, index: Index, message: Json, _: Fault) -> Answer:
        prefix, limit = message.get("prefix", ""), message.get("limit", str(MAX_LIST))
        valid = limit.isdecimal() and 1 <= int(limit) <= MAX_LIST
        _require(valid, f"limit must be 1 to {MAX_LIST}, not {limit}")
        ids = self._read(index, message).sorted_ids()
        start = bisect.bisect_left(ids, prefix)
        if "paginationToken" in message:
            try:
                after = base64.b64decode(message["paginationToken"], validate=True).decode()
            except ValueError as exc:
                raise Refused(400, "Invalid pagination token") from exc
            start = max(start, bisect.bisect_right(ids, after))
        found = [id_ for id_ in ids[start : start + int(limit) + 1] if id_.startswith(prefix)]
        page = found[: int(limit)]
        result = self._result(message, vectors=[{"id": id_} for id_ in page])
        if len(found) > len(page):
            result["pagination"] = {"next": base64.b64encode(page[-1].encode()).decode()}
        return _json(result)

    def _delete(self, index: Index, message: Json, _: Fault) -> Answer:
        selectors = [key for key in ("ids", "deleteAll", "filter") if message.get(key)]
        _require(len(selectors) == 1, "Exactly one of ids, deleteAll and a filter is needed")
        ids = _ids(_get(message, "ids", list)) if "ids" in selectors else None
        # SDK TESTS: so it is in the default namespace, while that is empty.
        _require(self._name(message) in index.namespaces, "Namespace not found", 404)
        if ids is None:
            ids = self._passing(index, message)
        return self._written(index, message, dict.fromkeys(ids), {})

    def _passing(self, index: Index, message: Json) -> list[str]:
        checked = check_filter(message.get("filter", {}))
        records = self._namespace(index, message).latest.items()
        return [id_ for id_, record in records if passes(checked, record.metadata)]

    def _update(self, index: Index, message: Json, _: Fault) -> Answer:
        by_filter = bool(message.get("filter"))
        _require(("id" in message) != by_filter, "Exactly one of id and a filter is needed")
        _require(not (by_filter and "values" in message), "A filter cannot update vector values")
        records = self._namespace(index, message).latest
        ids = self._passing(index, message) if by_filter else [_id(message["id"])]
        added = _metadata(_get(message, "setMetadata", dict, {}))
        changes: dict[str, Stored] = {}
        for id_ in records.keys() & ids:
            values = records[id_].values
            if "values" in message:
                values = _vector(message["values"], index.dimension, id_)
            changes[id_] = Stored(values, _metadata({**records[id_].metadata, **added}))
        body = {"matchedRecords": len(changes)} if by_filter else {}
        dry_run = _get(message, "dryRun", bool)
        return self._written(index, message, {} if dry_run else changes, body)

    def _stats(self, index: Index, message: Json, _: Fault) -> Answer:
        supported = not message.get("filter")
        _require(supported, "Serverless indexes do not support stats with a metadata filter")
        counts = {
            name or self.default_name: len(self._read(index, {"namespace": name}).visible)
            for name in index.namespaces
        }
        body = {
            "namespaces": {name: {"vectorCount": count} for name, count in counts.items()},
            "dimension": index.dimension,
            "indexFullness": 0.0,
            "totalVectorCount": sum(counts.values()),
            "metric": index.metric,
            "vectorType": "dense",
        }
        return _json(body)


# --- HTTP --------------------------------------------------------------------------------------


def _parse(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except ValueError as exc:
        raise Refused(400, f"Invalid JSON: {exc}") from exc


def _json(body: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, orjson.dumps(body), headers or {})


# SDK TESTS: the text alone, and no JSON.
_TEXT_STATUSES: Final = (401, 414)


def _kind(route: str) -> str:
    """Of a data route: query, upsert, fetch, list, delete, update or stats."""
    name = route.rsplit("/", 1)[1]
    return {"describe_index_stats": "stats", "fetch_by_metadata": "fetch"}.get(name, name)


def _error(error: Refused, *, control: bool) -> Answer:
    if error.status in _TEXT_STATUSES:
        return Answer(error.status, str(error).encode(), {"Content-Type": "text/plain"})
    number, name = ERRORS.get(error.status, (2, "UNKNOWN"))
    if control:
        body: Json = {"error": {"code": name, "message": str(error)}, "status": error.status}
    else:
        body = {"code": number, "message": str(error), "details": []}
    return _json(body, error.status)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: "_Server"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.emulator.respond(self.command, self.path, headers, body)
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body[: answer.sent])
        self.close_connection |= answer.sent is not None

    do_GET = do_PATCH = do_DELETE = do_POST  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, emulator: PineconeEmulator, address: tuple[str, int], certificate: Path | None
    ) -> None:
        self.emulator = emulator
        self._connections: set[Any] = set()
        super().__init__(address, _Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # The handshake is left to the connection's own thread.
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )

    def get_request(self) -> Any:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients hang up when they have waited long enough; anything else is a mistake in here.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)
