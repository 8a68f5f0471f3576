"""The application, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from image_search import __version__
from image_search.settings import Settings
from service import openapi, page, problems
from service.admission import MAX_REQUESTS, Admission
from service.follower import IndexFollower
from service.keys import Keys
from service.metrics import CountRequests, Metrics
from service.routes import images, operation, search
from service.state import State


def create_app(settings: Settings) -> FastAPI:
    """The service with these settings; it opens the index in the background.

    Raises SettingsError for API keys that cannot be used.
    """
    keys = Keys(settings)
    counters = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        follower = app.state.follower = IndexFollower(settings, counters)
        follower.start()
        try:
            yield State(
                follower=follower,
                settings=settings,
                metrics=counters,
                admission=Admission(MAX_REQUESTS),
                keys=keys,
            )
        finally:
            follower.close()

    app: FastAPI = FastAPIOffline(
        redoc_url=None,
        title="Image search",
        version=__version__,
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        swagger_ui_parameters={"tryItOutEnabled": True},
        lifespan=lifespan,
    )
    problems.install(app)
    app.add_middleware(CountRequests, metrics=counters)
    for routes in (search, images, operation):
        app.include_router(routes.router)
    openapi.install(app, keys)

    app.router.routes.extend(page.routes())
    return app
