"""What an OpenAPI document promises, as lines that can be compared.

`openapi-42e6778.txt` has those of the document of commit 42e6778.
"""

import json
from collections.abc import Iterator
from typing import Any

_LIMITS = ("minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength", "pattern")


def promises(document: dict[str, Any]) -> Iterator[str]:
    """A line for each operation, parameter, body, successful answer, and field of a schema.

    A required parameter or field has an exclamation mark.
    """
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            name = f"{method.upper()} {path}"
            yield f"{name} is {operation['operationId']}"
            for parameter in operation.get("parameters", ()):
                mark = "!" if parameter.get("required") else ""
                kind = _kind(parameter["schema"])
                yield f"{name} takes {parameter['in']} {parameter['name']}{mark}: {kind}"
            for media, content in operation.get("requestBody", {}).get("content", {}).items():
                yield f"{name} takes {media}: {_kind(content['schema'])}"
            for status, answer in operation["responses"].items():
                if status.startswith("2"):
                    for media, content in (answer.get("content") or {"nothing": {}}).items():
                        yield f"{name} answers {status} {media}: {_kind(content.get('schema', {}))}"
    for name, schema in document["components"]["schemas"].items():
        for field, kind in schema.get("properties", {}).items():
            mark = "!" if field in schema.get("required", ()) else ""
            yield f"{name}.{field}{mark}: {_kind(kind)}"


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " | ".join(map(_kind, schema[several]))
    if "enum" in schema:
        return " | ".join(map(json.dumps, schema["enum"]))
    if "const" in schema:
        return json.dumps(schema["const"])
    limits = "".join(f" {name} {schema[name]}" for name in _LIMITS if name in schema)
    if schema.get("type") == "array":
        return f"[{_kind(schema['items'])}]{limits}"
    return str(schema.get("type", "any")) + limits
