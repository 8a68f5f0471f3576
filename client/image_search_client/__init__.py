"""Client of the image search service: here is a picture, what is similar to it?

    from image_search_client import Client

    with Client("http://127.0.0.1:8000") as client:
        for match in client.search("cat.jpg", top_k=5, labels=["cat"]):
            print(match.id, match.label, match.score)

`AsyncClient` is the same with `await`. Every error is an `ImageSearchError`.
"""

from image_search_client.async_client import AsyncClient
from image_search_client.client import Client
from image_search_client.errors import (
    AccessError,
    ImageNotFoundError,
    ImageRejectedError,
    ImageSearchError,
    InvalidRequestError,
    RequestTimeoutError,
    ServiceError,
    UnavailableError,
    UnexpectedAnswerError,
    UnreachableError,
    UnreadableImageError,
)
from image_search_client.inputs import Example, GroupBy, ImageInput, LabelFrom
from image_search_client.results import (
    Comparison,
    Duplicate,
    EmbedResult,
    FolderResult,
    Health,
    IndexedImage,
    Match,
    Model,
    Moment,
    SearchResult,
    SearchResults,
    Thumbnail,
    TookMs,
)

__all__ = [
    "AccessError",
    "AsyncClient",
    "Client",
    "Comparison",
    "Duplicate",
    "EmbedResult",
    "Example",
    "FolderResult",
    "GroupBy",
    "Health",
    "ImageInput",
    "ImageNotFoundError",
    "ImageRejectedError",
    "ImageSearchError",
    "IndexedImage",
    "InvalidRequestError",
    "LabelFrom",
    "Match",
    "Model",
    "Moment",
    "RequestTimeoutError",
    "SearchResult",
    "SearchResults",
    "ServiceError",
    "Thumbnail",
    "TookMs",
    "UnavailableError",
    "UnexpectedAnswerError",
    "UnreachableError",
    "UnreadableImageError",
]
