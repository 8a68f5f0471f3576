"""What one application holds, and every request finds in `request.state`."""

from typing import TypedDict

from image_search.settings import Settings
from service.keys import Keys
from service.metrics import Metrics
from service.searcher import Searcher
from service.uploads import Admission


class State(TypedDict):
    """The parts of one application."""

    searcher: Searcher
    settings: Settings
    metrics: Metrics
    admission: Admission
    keys: Keys
