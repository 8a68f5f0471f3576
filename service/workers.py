"""Several processes that answer on one port: python -m service --workers N.

Uvicorn starts them, starts those anew that end or hang, and replaces one after another on SIGHUP.
They share the files that the index is mapped from, and their counts, through files of their own.
"""

import logging
import os
import socket
from tempfile import TemporaryDirectory
from typing import Final

from fastapi import FastAPI
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.supervisors import Multiprocess

from image_search.settings import load_settings
from service import access_log, connections, memory
from service.app import create_app
from service.metrics import FOLDER_VARIABLE

# A worker that does not answer for so long is replaced.
_SECONDS_UNTIL_HUNG: Final = 30
# One that starts does not take requests that another could answer.
_SECONDS_TO_OPEN: Final = 20


def serve(listener: socket.socket, workers: int, *, seconds_to_finish: int) -> None:
    """Serve by so many processes until SIGINT or SIGTERM; then all finish what is in flight."""
    with TemporaryDirectory(prefix="image-search-metrics-") as folder:
        # Read by the library of Prometheus where it is imported, in each worker.
        os.environ[FOLDER_VARIABLE] = folder
        config = connections.config(
            "service.workers:app",
            seconds_to_finish=seconds_to_finish,
            factory=True,
            workers=workers,
            timeout_worker_healthcheck=_SECONDS_UNTIL_HUNG,
        )
        _Supervisor(config, [listener]).run()


def app() -> FastAPI:
    """The application of one worker."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    memory.give_back()
    settings = load_settings()
    if settings.access_log != "off":
        access_log.write_to_stdout()
    return create_app(settings, seconds_to_open=_SECONDS_TO_OPEN)


class _Supervisor(Multiprocess):
    _known: frozenset[int] = frozenset()

    def keep_subprocess_alive(self) -> None:
        """Also what is due now and then."""
        super().keep_subprocess_alive()
        for each in self.sockets:
            # A worker that starts lets fewer connections wait.
            connections.let_wait(each)
        running = frozenset(process.pid for process in self.processes if process.pid is not None)
        for pid in self._known - running:
            # What it counted stays.
            mark_process_dead(pid, os.environ[FOLDER_VARIABLE])  # type: ignore[no-untyped-call]
        self._known = running
