"""The application: its routes and what they answer."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, TypedDict

import orjson
from fastapi import APIRouter, FastAPI, File, Query, Request, Response, UploadFile
from fastapi.responses import PlainTextResponse, RedirectResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field

from image_search import __version__
from image_search.filters import Condition
from image_search.index import LABEL_FIELD, Match, MetadataValue
from image_search.manifest import ModelSpec
from image_search.settings import Metric, Settings
from service import metrics, problems
from service.metrics import CountRequests, Metrics
from service.searcher import Searcher
from service.uploads import MAX_REQUESTS, UploadRoute

MAX_TOP_K = 100


class SearchParameters(BaseModel):
    """The query string of a search."""

    model_config = ConfigDict(extra="forbid")

    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K, description="How many matches.")] = 10
    label: Annotated[
        list[str],
        Field(description="Only images with this label; repeat it to allow several."),
    ] = []
    thumbnails: Annotated[bool, Field(description="Whether matches carry thumbnails.")] = True


class MatchResponse(BaseModel):
    """One image of the index."""

    id: Annotated[str, Field(examples=["cifar10-train-00042"])]
    label: Annotated[str | None, Field(examples=["cat"])]
    score: Annotated[
        float,
        Field(
            description="Cosine similarity or dot product, where more is more similar; or the "
            "squared euclidean distance, where less is.",
            examples=[0.91],
        ),
    ]
    thumbnail: Annotated[
        str | None, Field(description="JPEG as a data URI.", examples=["data:image/jpeg;base64,…"])
    ]
    metadata: dict[str, MetadataValue]


class TookMs(BaseModel):
    """Milliseconds spent, from the last byte of the upload on."""

    decode: Annotated[float, Field(description="Reading the image.")]
    queue: Annotated[float, Field(description="Waiting, before and between the other stages.")]
    embed: Annotated[float, Field(description="Embedding the batch that the image was in.")]
    search: Annotated[float, Field(description="Querying the index for it.")]
    total: Annotated[float, Field(description="All of these.")]


class SearchResponse(BaseModel):
    """The matches, best first."""

    matches: list[MatchResponse]
    model: ModelSpec
    took_ms: TookMs


class HealthResponse(BaseModel):
    """What answers searches."""

    status: Annotated[str, Field(examples=["ok"])]
    store: Annotated[str, Field(examples=["embedded"])]
    index: Annotated[str, Field(examples=["images"])]
    namespace: Annotated[str, Field(examples=["__default__"])]
    count: Annotated[int, Field(description="Images in the index.", examples=[50000])]
    metric: Metric
    model: ModelSpec
    created_at: Annotated[datetime, Field(description="When the index was created.")]
    created_by: Annotated[str, Field(description="By what.", examples=["image-search 0.1.0"])]
    version: Annotated[str, Field(description="Version of this service.", examples=["0.1.0"])]


class State(TypedDict):
    """What requests find in `request.state`."""

    searcher: Searcher
    settings: Settings
    metrics: Metrics
    admission: asyncio.Semaphore


router = APIRouter(route_class=UploadRoute)


@router.post(
    "/search",
    operation_id="search",
    tags=["search"],
    summary="Find the images most similar to an uploaded one",
    response_model=SearchResponse,
    responses=problems.responses(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.SERVICE_UNAVAILABLE,
    ),
)
async def search(
    request: Request,
    image: Annotated[UploadFile, File(description="Any image that Pillow reads.")],
    parameters: Annotated[SearchParameters, Query()],
) -> Response:
    """The `top_k` images of the index whose VGG16 embeddings are most similar, best first."""
    searcher: Searcher = request.state.searcher
    labels = Condition(LABEL_FIELD, "$in", tuple(parameters.label)) if parameters.label else None
    result = await searcher.search(image.file, parameters.top_k, labels)
    # A SearchResponse, without the time that its validation takes.
    answer = {
        "matches": [_match(match, thumbnail=parameters.thumbnails) for match in result.matches],
        "model": result.model.model_dump(),
        "took_ms": result.took_ms,
    }
    return Response(orjson.dumps(answer), media_type="application/json")


def _match(match: Match, *, thumbnail: bool) -> dict[str, Any]:
    return {
        "id": match.id,
        "label": match.label,
        "score": match.score,
        "thumbnail": _data_uri(match.thumbnail) if thumbnail else None,
        "metadata": dict(match.metadata),
    }


def _data_uri(jpeg: bytes) -> str | None:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else None


def create_app(settings: Settings) -> FastAPI:
    """The service with these settings; it opens the index in the background."""

    counters = Metrics()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        searcher = Searcher(settings, counters)
        searcher.start()
        try:
            yield State(
                searcher=searcher,
                settings=settings,
                metrics=counters,
                admission=asyncio.Semaphore(MAX_REQUESTS),
            )
        finally:
            searcher.close()

    app: FastAPI = FastAPIOffline(
        redoc_url=None,
        title="Image search",
        version=__version__,
        description="Upload a picture, get the most similar images of the index.",
        swagger_ui_parameters={"tryItOutEnabled": True},
        lifespan=lifespan,
    )
    problems.install(app)
    app.add_middleware(CountRequests, metrics=counters)
    app.include_router(router)

    @app.get(
        "/health",
        operation_id="health",
        tags=["operation"],
        summary="Whether a search would succeed",
        responses=problems.responses(HTTPStatus.SERVICE_UNAVAILABLE),
    )
    def health(request: Request) -> HealthResponse:
        """200 when a search would succeed, 503 with the reason when not."""
        manifest, count = request.state.searcher.check()
        return HealthResponse(
            status="ok",
            store=settings.store,
            index=settings.index,
            count=count,
            version=__version__,
            **dict(manifest),
        )

    @app.get(
        "/metrics",
        operation_id="metrics",
        tags=["operation"],
        summary="Counts and times for Prometheus",
        response_class=PlainTextResponse,
    )
    def text() -> Response:
        """Prometheus' text format."""
        return Response(counters.text(), media_type=metrics.MEDIA_TYPE)

    @app.get("/", include_in_schema=False)
    def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    return app
