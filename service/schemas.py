"""What the service is sent and what it answers, as OpenAPI tells it."""

from datetime import datetime
from itertools import combinations
from typing import Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from image_search import __version__
from image_search.duplicates import NEAR_DUPLICATE_COSINE
from image_search.filters import FILTER_SCHEMA, JUNCTIONS, OPERATORS
from image_search.manifest import ModelSpec
from image_search.values import DIMENSION, MAX_ID_LENGTH, MetadataValue, Metric
from service.problems import Problem
from service.selection import MOST_MOMENTS, MOST_ROUNDS, GroupBy

MAX_TOP_K: Final = 100
# All of them fit into an address.
MAX_LABELS: Final = 100
MAX_LABEL_LENGTH: Final = 255
MAX_EXAMPLES: Final = 16
MAX_PAGE: Final = 1000

# A running service shows an id of its own index instead.
EXAMPLE_ID: Final = "cifar10-train-00042"
EXAMPLE_EMBEDDING: Final = [round(0.01 * (1 + number % 7), 2) for number in range(DIMENSION)]
EXAMPLE_IMAGE: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAG0lEQVR42mM8oWHDgA0w"
    "MeAApEsw/voQRWs7AM3vA3/F0l8JAAAAAElFTkSuQmCC"
)
_EXAMPLE_THUMBNAIL: Final = "data:image/jpeg;base64,/9j/4AAQSkZJRg…"
_EXAMPLE_METADATA: Final = {"source": "api", "year": 2026, "tags": ["pet", "indoors"]}

# --- what every way of asking shares ---

Id = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_ID_LENGTH,
        pattern="^[ -~]+$",
        description=f"Id of an image: 1 to {MAX_ID_LENGTH} printable ASCII characters.",
        examples=[EXAMPLE_ID],
    ),
]
Label = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_LENGTH)]


def _whole(value: object) -> object:
    """JSON Schema's integers include 5.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


TopK = Annotated[
    int,
    Field(ge=1, le=MAX_TOP_K, description="How many matches.", examples=[5]),
    BeforeValidator(_whole),
]
_OPERATORS: Final = f"{', '.join((*OPERATORS, JUNCTIONS[0]))} and {JUNCTIONS[1]}"


# A filter in a query string.
FILTER_FIELD: Final[Any] = Field(
    description="Only images whose metadata passes this filter: a JSON object in Pinecone's "
    f"grammar, with the operators {_OPERATORS}. With `label`, both must hold.",
    examples=['{"label": {"$exists": true}}'],
    json_schema_extra={"format": "json-filter"},
)


class SearchOptions(BaseModel):
    """What uploads and JSON alike can ask for."""

    top_k: TopK = 10
    min_score: Annotated[
        float | None,
        Field(
            allow_inf_nan=False,
            description="Only matches at least this similar; with the metric euclidean, at most "
            "this far away.",
            examples=[0.1],
        ),
    ] = None
    min_confidence: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Only matches with at least this confidence; those without one do not "
            "pass.",
            examples=[0],
        ),
    ] = None
    thumbnails: Annotated[
        bool, Field(description="Whether to include the thumbnails.", examples=[True])
    ] = True
    deduplicate: Annotated[
        bool,
        Field(
            description="Leave out matches that are almost the same picture as the query, or as a "
            "better match.",
            examples=[False],
        ),
    ] = False
    group_by: Annotated[
        GroupBy,
        Field(
            description="With `video`, each match is the best frame of another video, or an image "
            "that is of none, and `top_k` counts these; its `moments` are the next best frames.",
            examples=["none"],
        ),
    ] = "none"


class SearchParameters(SearchOptions):
    """The query string of a search with uploads."""

    model_config = ConfigDict(extra="forbid")

    labels: Annotated[
        list[Label],
        Field(
            alias="label",
            max_length=MAX_LABELS,
            description="Only images with this label; repeat it to allow several.",
        ),
    ] = []
    filter: Annotated[str | None, FILTER_FIELD] = None


def _decoded(value: Any) -> Any:
    """Base64 was decoded where the JSON was parsed; a ValueError tells what is wrong with it."""
    if isinstance(value, ValueError):
        raise value
    if not isinstance(value, bytes):
        raise ValueError("base64 text or a data URI is expected")  # noqa: TRY004
    return value


_MAX_FIELDS: Final = 100
_FORMS: Final = ("id", "image", "embedding", "url")
_QUERY: Final[dict[str, Any]] = {
    "anyOf": [
        *({"required": [name]} for name in _FORMS),
        {"required": ["positive"], "properties": {"positive": {"minItems": 1}}},
    ],
    "not": {"anyOf": [{"required": list(pair)} for pair in combinations(_FORMS, 2)]},
    # In place of what they are in Example.
    "minProperties": 1,
    "maxProperties": _MAX_FIELDS,
}


def _at_most(most: int) -> BeforeValidator:
    """Refuses a long list at once, where Pydantic looks for what is wrong with each item."""

    def check(value: Any) -> Any:
        if isinstance(value, list) and len(value) > most:
            raise ValueError(f"{len(value):,} are given, which is more than {most:,}")
        return value

    return BeforeValidator(check)


Embedding = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]],
    _at_most(DIMENSION),
    Field(
        min_length=DIMENSION,
        max_length=DIMENSION,
        examples=[EXAMPLE_EMBEDDING],
        json_schema_extra={"contains": {"not": {"const": 0}}},
    ),
]
Url = Annotated[
    str,
    Field(
        min_length=1,
        max_length=2000,
        pattern="^https?://",
        examples=["https://example.org/cat.jpg"],
    ),
]


class _Object(BaseModel):
    """An object of JSON that has the fields that are known."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _is_small(cls, values: Any) -> Any:
        # At once, where Pydantic complains of each that it does not know.
        if isinstance(values, dict) and len(values) > _MAX_FIELDS:
            raise ValueError(f"it has {len(values):,} fields, which is more than {_MAX_FIELDS}")
        return values


class Example(_Object):
    """One image: exactly one of its id, its content, its embedding and its URL."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    id: Annotated[Id | SkipJsonSchema[None], Field(description="An image of the index.")] = None
    image: Annotated[
        bytes | None,
        BeforeValidator(_decoded),
        WithJsonSchema({"type": "string", "minLength": 1, "format": "base64-image"}),
        Field(
            description="An image file in base64, or as a data URI; its lines may be broken.",
            examples=[EXAMPLE_IMAGE],
        ),
    ] = None
    embedding: Annotated[
        Embedding | SkipJsonSchema[None],
        Field(
            description=f"{DIMENSION} numbers that the index's model made, as POST /embeddings "
            "gives them; not all zero."
        ),
    ] = None
    url: Annotated[
        Url | SkipJsonSchema[None],
        Field(description="The address of an image; only if the operator allows it."),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _no_null(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for name in _FORMS:
                if name in values and values[name] is None:
                    raise ValueError(f"{name} is null: leave it out")
        return values

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if self.given != 1:
            raise ValueError("give exactly one of id, image, embedding and url")
        return self

    @property
    def given(self) -> int:
        """How many of the four there are."""
        return sum(getattr(self, name) is not None for name in _FORMS)


class Query(Example, SearchOptions):
    """An image or examples to search with, and which matches are wanted."""

    model_config = ConfigDict(
        json_schema_extra=_QUERY,
    )

    positive: Annotated[
        list[Example],
        _at_most(MAX_EXAMPLES),
        Field(
            max_length=MAX_EXAMPLES,
            description="Images that matches should also be similar to.",
            examples=[[{"id": EXAMPLE_ID}]],
        ),
    ] = []
    negative: Annotated[
        list[Example],
        _at_most(MAX_EXAMPLES),
        Field(
            max_length=MAX_EXAMPLES,
            description="Images that matches should not be similar to.",
            examples=[[]],
        ),
    ] = []
    labels: Annotated[
        list[Label],
        _at_most(MAX_LABELS),
        Field(
            max_length=MAX_LABELS,
            description="Only images with one of these labels.",
            examples=[["cat", "dog"]],
        ),
    ] = []
    filter: Annotated[
        dict[str, Any] | None,
        WithJsonSchema({"anyOf": [FILTER_SCHEMA, {"type": "null"}]}),
        Field(
            description="Only images whose metadata passes this filter, in Pinecone's grammar: "
            f"the operators {_OPERATORS}. With `labels`, both must hold.",
            examples=[{"label": {"$exists": True}}],
        ),
    ] = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if self.given > 1:
            raise ValueError("give at most one of id, image, embedding and url")
        if not self.given and not self.positive:
            raise ValueError("give one of id, image, embedding and url, or a positive example")
        return self


class Pair(_Object):
    """Two images to compare."""

    a: Example
    b: Example


# Either of two kinds of body, which FastAPI cannot declare.
_EXAMPLE_REFERENCE: Final = "#/components/schemas/Example"
PAIR_BODY: Final = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "additionalProperties": False,
                "required": ["a", "b"],
                "properties": {
                    "a": {"$ref": _EXAMPLE_REFERENCE, "description": "One image."},
                    "b": {"$ref": _EXAMPLE_REFERENCE, "description": "The other one."},
                },
            },
            "example": {"a": {"id": EXAMPLE_ID}, "b": {"image": EXAMPLE_IMAGE}},
        },
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "additionalProperties": False,
                "required": ["a", "b"],
                "properties": {
                    "a": {"type": "string", "format": "binary", "description": "One image."},
                    "b": {"type": "string", "format": "binary", "description": "The other one."},
                },
            },
            "encoding": {"a": {"contentType": "image/*"}, "b": {"contentType": "image/*"}},
        },
    },
}


# --- answers ---

_TIME: Final = Field(
    description="Seconds from the start of its video; null for other images.", examples=[12.0]
)


class MomentResponse(BaseModel):
    """One more moment of a video."""

    id: Annotated[str, Field(description="Id of the frame.", examples=["clips/beach.mp4#t=12.000"])]
    time: Annotated[float | None, _TIME]
    score: Annotated[float, Field(description="As of a match.", examples=[0.88])]
    confidence: Annotated[float | None, Field(description="As of a match.", examples=[0.81])]


class MatchResponse(BaseModel):
    """One image of the index."""

    id: Annotated[str, Field(description="Its id.", examples=[EXAMPLE_ID])]
    label: Annotated[
        str | None, Field(description="What it shows, if that is known.", examples=["cat"])
    ]
    score: Annotated[
        float,
        Field(
            description="Cosine similarity or dot product, where more is more similar; or the "
            "squared euclidean distance, where less is.",
            examples=[0.91],
        ),
    ]
    confidence: Annotated[
        float | None,
        Field(
            description="Estimated probability that it shows the same kind of thing as the query; "
            "null if that cannot be estimated: without labels, if the query is not familiar, and "
            "if matches are filtered by label.",
            examples=[0.87],
        ),
    ]
    thumbnail: Annotated[
        str | None,
        Field(description="A JPEG as a data URI.", examples=[_EXAMPLE_THUMBNAIL]),
    ]
    metadata: Annotated[
        dict[str, MetadataValue],
        Field(description="What else is known of it.", examples=[_EXAMPLE_METADATA]),
    ]
    video: Annotated[
        str | None,
        Field(
            description="The video that it is a frame of; null for other images.",
            examples=["clips/beach.mp4"],
        ),
    ]
    time: Annotated[float | None, _TIME]
    moments: Annotated[
        list[MomentResponse],
        Field(
            max_length=MOST_MOMENTS,
            description="With `group_by=video`, other moments of the video among the best "
            f"matches: at most {MOST_MOMENTS}, best first.",
        ),
    ]


class TookMs(BaseModel):
    """Milliseconds spent, from the last byte of the request on."""

    decode: Annotated[float, Field(description="Reading the image.", examples=[0.7])]
    queue: Annotated[
        float, Field(description="Waiting, before and between the other stages.", examples=[0.4])
    ]
    embed: Annotated[
        float, Field(description="Embedding the batch that the image was in.", examples=[2.9])
    ]
    search: Annotated[float, Field(description="Querying the index for it.", examples=[6.2])]
    total: Annotated[float, Field(description="All of these.", examples=[10.2])]


_MODEL: Final = Field(description="What made the embeddings.")
_TOOK: Final = Field(description="Where the time went.")


Familiarity = Annotated[
    float | None,
    Field(
        description="How usual the query is among the images of the index: the share of them, 0 "
        "to 1, that are as unlike the others, a p-value. Null if it is not known: for a query "
        "that is not a single image file, and in an index of few images or of an earlier version.",
        examples=[0.43],
    ),
]
Familiar = Annotated[
    bool | None,
    Field(
        description="False if the query is unlike everything in the index; then no match has a "
        "confidence. Null if `familiarity` is null.",
        examples=[True],
    ),
]


Complete = Annotated[
    bool,
    Field(
        description="False where there may be more matches than are given, though fewer than "
        f"`top_k`: the service looks at 1,000 matches for `deduplicate`, and {MOST_ROUNDS} times "
        "at up to 1,000 for `group_by=video`, each time without the videos found before.",
        examples=[True],
    ),
]


class SearchResponse(BaseModel):
    """The matches, best first."""

    matches: Annotated[list[MatchResponse], Field(description="Best first.")]
    complete: Complete
    familiarity: Familiarity
    familiar: Familiar
    model: Annotated[ModelSpec, _MODEL]
    took_ms: Annotated[TookMs, _TOOK]


class ComparisonResponse(BaseModel):
    """How similar two images are, and what that means in this index."""

    score: Annotated[
        float,
        Field(
            description="Cosine similarity or dot product, where more is more similar; or the "
            "squared euclidean distance, where less is.",
            examples=[0.41],
        ),
    ]
    share_of_same_kind_above: Annotated[
        float | None,
        Field(
            description="Share of the index's pairs of images with one label whose score is "
            "higher, 0 to 1; null if the index has too few labels.",
            examples=[0.12],
        ),
    ]
    share_of_different_kinds_above: Annotated[
        float | None,
        Field(
            description="Share of the index's pairs of images with two labels whose score is "
            "higher, 0 to 1; null if the index has too few labels.",
            examples=[0.002],
        ),
    ]
    model: Annotated[ModelSpec, _MODEL]
    took_ms: Annotated[TookMs, _TOOK]


class BatchResult(BaseModel):
    """What one of several images found, or why it could not be searched with."""

    filename: Annotated[
        str | None, Field(description="Its name in the form.", examples=["cat.jpg"])
    ]
    matches: Annotated[list[MatchResponse], Field(description="Best first; empty for a problem.")]
    complete: Complete
    familiarity: Familiarity
    familiar: Familiar
    problem: Annotated[
        Problem | None, Field(description="Why this image could not be searched with.")
    ]


class BatchResponse(BaseModel):
    """One result for each image, in their order."""

    results: Annotated[list[BatchResult], Field(description="In the order of the images.")]
    model: Annotated[ModelSpec, _MODEL]
    took_ms: Annotated[TookMs, Field(description="Where the time of the slowest image went.")]


class EmbeddingResponse(BaseModel):
    """The embedding of an image."""

    embedding: Annotated[
        list[float],
        Field(
            min_length=DIMENSION,
            max_length=DIMENSION,
            description=f"{DIMENSION} numbers, not normalised.",
            examples=[EXAMPLE_EMBEDDING],
        ),
    ]
    familiarity: Familiarity
    familiar: Familiar
    model: Annotated[ModelSpec, _MODEL]
    took_ms: Annotated[TookMs, _TOOK]


class ListedImage(BaseModel):
    """One image of a listing."""

    id: Annotated[str, Field(description="Its id.", examples=[EXAMPLE_ID])]
    label: Annotated[
        str | None, Field(description="What it shows, if that is known.", examples=["cat"])
    ]
    metadata: Annotated[
        dict[str, MetadataValue],
        Field(description="What else is known of it.", examples=[_EXAMPLE_METADATA]),
    ]

    thumbnail: Annotated[
        str | None,
        Field(
            description="A JPEG as a data URI; only if requested.",
            examples=[_EXAMPLE_THUMBNAIL],
        ),
    ] = None


class ImageResponse(ListedImage):
    """One image of the index."""

    thumbnail: Annotated[
        str | None,
        Field(description="A JPEG as a data URI.", examples=[_EXAMPLE_THUMBNAIL]),
    ]


class PageResponse(BaseModel):
    """Some images, in order."""

    images: Annotated[list[ListedImage], Field(description="In the requested order.")]
    cursor: Annotated[
        str | None,
        Field(description="Leads to the next page; null at the end.", examples=[EXAMPLE_ID]),
    ]


class LabelCount(BaseModel):
    """A label of the index."""

    label: Annotated[str, Field(description="The label.", examples=["cat"])]
    count: Annotated[
        int | None,
        Field(
            description="The number of images with it; null if the store cannot count.",
            examples=[5000],
        ),
    ]


class LabelsResponse(BaseModel):
    """All labels of the index."""

    labels: Annotated[list[LabelCount], Field(description="In order.")]


class StatusResponse(BaseModel):
    """That something is so; otherwise there is a problem."""

    status: Annotated[str, Field(description="Always `ok`.", examples=["ok"])]


class HealthResponse(BaseModel):
    """What answers searches."""

    status: Annotated[str, Field(description="Always `ok`.", examples=["ok"])]
    store: Annotated[
        str, Field(description="Where the index is: embedded or pinecone.", examples=["embedded"])
    ]
    index: Annotated[str, Field(description="Its name.", examples=["images"])]
    namespace: Annotated[
        str, Field(description="The part of it that is searched.", examples=["__default__"])
    ]
    count: Annotated[int, Field(description="Images in the index.", examples=[50000])]
    metric: Annotated[Metric, Field(description="What scores are.", examples=["cosine"])]
    model: Annotated[ModelSpec, _MODEL]
    created_at: Annotated[
        datetime,
        Field(description="When the index was created.", examples=["2026-11-23T21:33:42Z"]),
    ]
    created_by: Annotated[
        str, Field(description="By what.", examples=[f"image-search {__version__}"])
    ]
    version: Annotated[str, Field(description="Version of this service.", examples=[__version__])]
    near_duplicate_cosine: Annotated[
        float,
        Field(
            description="The cosine from which on `deduplicate` takes two images for one.",
            examples=[NEAR_DUPLICATE_COSINE["components"]],
        ),
    ]
    originals: Annotated[
        bool,
        Field(description="Whether it serves the files that images came from.", examples=[False]),
    ]


QUERY_EXAMPLES: Final[dict[str, Any]] = {
    "id": {
        "summary": "More like an image of the index",
        "value": {"id": EXAMPLE_ID, "top_k": 5, "thumbnails": False},
    },
    "examples": {
        "summary": "Like one image, and not like another",
        "value": {
            "positive": [{"id": EXAMPLE_ID}],
            "negative": [{"image": EXAMPLE_IMAGE}],
            "thumbnails": False,
        },
    },
    "image": {
        "summary": "An image in base64, with options",
        "value": {
            "image": EXAMPLE_IMAGE,
            "top_k": 5,
            "filter": {"label": {"$exists": True}},
            "deduplicate": True,
            "thumbnails": False,
        },
    },
    "embedding": {
        "summary": "An embedding",
        "value": {"embedding": EXAMPLE_EMBEDDING, "thumbnails": False},
    },
}
