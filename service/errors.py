"""Errors of the service itself.

ImageSearchError
├── StartingError            the model is being loaded
├── OverloadedError          too many searches at once
├── DeadlineExceededError    a search took too long
└── EngineFailedError        the model could not be run
"""

from image_search.errors import ImageSearchError


class StartingError(ImageSearchError):
    """The model is being loaded."""


class OverloadedError(ImageSearchError):
    """Too many searches at once."""


class DeadlineExceededError(ImageSearchError):
    """A search took too long."""


class EngineFailedError(ImageSearchError):
    """The model could not be run."""
