"""What one application holds, and every request finds in `request.state`."""

from typing import TypedDict

from image_search.settings import Settings
from service.admission import Admission
from service.follower import IndexFollower
from service.health import Health
from service.keys import Keys
from service.metrics import Metrics
from service.originals import Originals, Origins


class State(TypedDict):
    """The parts of one application."""

    follower: IndexFollower
    health: Health
    settings: Settings
    metrics: Metrics
    admission: Admission
    keys: Keys
    originals: Originals
    origins: Origins
