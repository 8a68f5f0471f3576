"""The OpenAPI document: keys, and examples that work with the index that is served."""

import json
from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI

from image_search.errors import ImageSearchError
from image_search.values import Store
from service.follower import IndexFollower
from service.keys import HEADER, Keys
from service.schemas import EXAMPLE_ID

DESCRIPTION: Final = (
    "Upload a picture, or name one of the index, and get the most similar images.\n\n"
    "Errors are problem details (RFC 9457) with a `code` that never changes."
)
TAGS: Final = [
    {"name": "search", "description": "Find similar images."},
    {"name": "images", "description": "Look at the index, and keep it up to date."},
    {"name": "operation", "description": "For operators of the service."},
]
_OPEN: Final = {"/health", "/livez", "/metrics", "/readyz"}
_WRITING: Final = {"put", "delete"}
_SCHEME: Final = "key"
_FORM: Final = "multipart/form-data"


def install(app: FastAPI, keys: Keys, store: Store) -> None:
    """Let the document name keys, an id of the application's own index, and what its store has."""
    generate: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            _add_keys(document, keys)
            _describe_forms(document)
            _fill_in(document)
            if store == "pinecone":
                _without_orders(document)
        return _with_id(generate(), _first_id(app))

    app.openapi = openapi  # type: ignore[method-assign]


def _add_keys(document: dict[str, Any], keys: Keys) -> None:
    document["components"]["securitySchemes"] = {
        _SCHEME: {
            "type": "apiKey",
            "in": "header",
            "name": HEADER,
            "description": "One of IMAGE_SEARCH_API_KEYS.",
        }
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method in _WRITING or (keys.reading_needs_key and path not in _OPEN):
                operation["security"] = [{_SCHEME: []}]


def _describe_forms(document: dict[str, Any]) -> None:
    """Forms hold their files and nothing else."""
    schemas = document["components"]["schemas"]
    for operations in document["paths"].values():
        for operation in operations.values():
            content = operation.get("requestBody", {}).get("content", {})
            if "$ref" not in content.get(_FORM, {}).get("schema", {}):
                continue
            name = content[_FORM]["schema"]["$ref"].rpartition("/")[2]
            form = schemas.pop(name)
            form["additionalProperties"] = False
            del form["title"]
            for field in form["properties"].values():
                file = field.get("items", field)
                del file["contentMediaType"]
                file["format"] = "binary"
            content[_FORM] = {
                "schema": form,
                "encoding": {field: {"contentType": "image/*"} for field in form["properties"]},
            }


def _fill_in(document: dict[str, Any]) -> None:
    """Swagger UI fills in the examples of parameters, not those of their schemas."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["required"]:
                    parameter["example"] = parameter["schema"]["examples"][0]
                elif parameter["name"] == "thumbnails":
                    # What is tried out would be hidden among base64.
                    parameter["example"] = False


def _without_orders(document: dict[str, Any]) -> None:
    """Pinecone lists images in its own order, and does not look for words."""
    listing = document["paths"]["/images"]["get"]
    listing["parameters"] = [
        parameter
        for parameter in listing["parameters"]
        if parameter["name"] not in {"words", "sort"}
    ]


def _first_id(app: FastAPI) -> str | None:
    follower: IndexFollower | None = getattr(app.state, "follower", None)
    if follower is None:  # the application does not run
        return None
    try:
        ids = follower.loaded().index.list_ids(limit=1).ids
    except ImageSearchError:
        return None
    return ids[0] if ids else None


def _with_id(document: dict[str, Any], id_: str | None) -> dict[str, Any]:
    if id_ is None:
        return document
    changed: dict[str, Any] = json.loads(
        json.dumps(document).replace(json.dumps(EXAMPLE_ID), json.dumps(id_))
    )
    return changed
