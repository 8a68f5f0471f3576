"""Answers as JSON, without the time that their validation would take."""

import base64
from typing import Any

import orjson
from fastapi import Response


def json_response(answer: Any, status: int = 200) -> Response:
    """NumPy arrays become lists."""
    content = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, status, media_type="application/json")


def data_uri(jpeg: bytes) -> str | None:
    """A JPEG as a data URI; None for none."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else None
