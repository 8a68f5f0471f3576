"""Values that OpenAPI cannot describe, for schemathesis: pictures, and JSON within strings."""

import base64
import io
import json
from typing import Any

import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.specs.openapi.schemas import OpenApiSchema


def _encode(size: tuple[int, int], colour: int, format_: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, format_)
    return out.getvalue()


_SIDES = st.integers(1, 40)
_PICTURES = st.builds(
    _encode,
    st.tuples(_SIDES, _SIDES),
    st.integers(1, 0xFFFFFF),
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP"]),
)
_NAMES = st.text(min_size=1, max_size=8).filter(
    lambda name: not name.startswith("$") and name not in {"label", "thumbnail"}
)
_SCALARS = st.one_of(
    st.text(max_size=8),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
)
_CONDITIONS = st.one_of(
    _SCALARS,
    st.dictionaries(st.sampled_from(["$eq", "$ne"]), _SCALARS, min_size=1),
    st.dictionaries(st.sampled_from(["$gt", "$lte"]), st.integers(-9, 9), min_size=1),
    st.fixed_dictionaries({"$in": st.lists(st.text(max_size=8), min_size=1, max_size=3)}),
)

schemathesis.openapi.media_type("image/*", _PICTURES)
schemathesis.openapi.format(
    "base64-image", _PICTURES.map(lambda picture: base64.b64encode(picture).decode())
)
schemathesis.openapi.format(
    "json-filter", st.dictionaries(_NAMES, _CONDITIONS, max_size=3).map(json.dumps)
)
schemathesis.openapi.format(
    "json-metadata", st.dictionaries(_NAMES, _SCALARS, max_size=3).map(json.dumps)
)
# Others than that of the first page come from the page before.
schemathesis.openapi.format("cursor", st.just(""))

_prepare_multipart = OpenApiSchema.prepare_multipart


def _with_names(self: OpenApiSchema, *args: Any, **options: Any) -> Any:
    """Files of a form have names, which schemathesis leaves out where there are several."""
    parts, data = _prepare_multipart(self, *args, **options)
    named = [
        (field, ("picture", *part[1:]) if isinstance(part, tuple) and part[0] is None else part)
        for field, part in parts or []
    ]
    return named or parts, data


OpenApiSchema.prepare_multipart = _with_names  # type: ignore[method-assign]
