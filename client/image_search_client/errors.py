"""Every error that a call raises, except for arguments of a wrong type or value.

ImageSearchError
├── UnreachableError         no answer: connection refused or lost, name not known
│   └── RequestTimeoutError  no answer in time
├── UnexpectedAnswerError    an answer, but not one of this service: another program's
├── UnavailableError         429, 502, 503, 504: starting, no_index, overloaded and so on
├── ImageRejectedError       413, not_an_image, no_video_support, image_too_costly, too_many_pixels,
│                            upload_too_large, unsupported_media_type, url_not_fetched
├── UnreadableImageError     a path that cannot be read; an OSError, too
├── ImageNotFoundError       image_not_found, original_not_found
├── AccessError              401, 403: unauthorized, writing_disabled, urls_disabled,
│                            originals_disabled
├── InvalidRequestError      any other 4xx: invalid_parameters, invalid_filter
└── ServiceError             any other 5xx: internal_error

The service says `code`, and it does not change. A code of a newer service, and what a proxy answers
(its code is unexpected_answer), get the class of their status.
"""

from typing import Final


class ImageSearchError(Exception):
    """Base of all errors: what is wrong and what to do (`detail`), and its kind (`code`).

    `status` is the HTTP status, None where there was no answer.
    """

    def __init__(self, detail: str, code: str, status: int | None = None) -> None:
        super().__init__(detail, code, status)
        self.detail: Final = detail
        self.code: Final = code
        self.status: Final = status

    def __str__(self) -> str:
        return f"{self.detail} [{self.code}]"

    @classmethod
    def of(cls, detail: str, code: str, status: int) -> "ImageSearchError":
        """The error of the class that the code or else the status has."""
        kind = _BY_CODE.get(code) or _BY_STATUS.get(status)
        if kind is None:
            kind = ServiceError if status >= _SERVER_ERRORS else InvalidRequestError
        return kind(detail, code, status)

    @classmethod
    def of_other(cls, detail: str, status: int) -> "ImageSearchError":
        """The error of an answer that the service did not give, such as a proxy's."""
        return _BY_STATUS.get(status, UnexpectedAnswerError)(detail, "unexpected_answer", status)


class UnreachableError(ImageSearchError):
    """There was no answer: the connection was refused or lost, or the name is not known."""


class RequestTimeoutError(UnreachableError):
    """There was no answer in time."""


class UnexpectedAnswerError(ImageSearchError):
    """The answer did not come from this service, but from another program or a proxy."""


class UnavailableError(ImageSearchError):
    """The service cannot answer now, even after retries."""


class ImageRejectedError(ImageSearchError):
    """The image cannot be used: not an image, damaged, too large, or its URL cannot be fetched."""


class UnreadableImageError(ImageSearchError, OSError):
    """The file of an image cannot be read; `errno`, `strerror` and `filename` say why."""

    @classmethod
    def of_file(cls, error: OSError) -> "UnreadableImageError":
        """The error of a file that could not be opened or read."""
        reason = error.strerror or str(error)
        own = cls(f"{error.filename} cannot be read: {reason}", "unreadable")
        own.errno, own.strerror, own.filename = error.errno, reason, error.filename
        return own


class ImageNotFoundError(ImageSearchError):
    """The index has no image with this id."""


class AccessError(ImageSearchError):
    """The key is missing or wrong, or the operator has not turned this on."""


class InvalidRequestError(ImageSearchError):
    """An argument is not valid, or this service is too old for it."""


class ServiceError(ImageSearchError):
    """The service failed: its log has details."""


_SERVER_ERRORS: Final = 500

_BY_CODE: Final[dict[str, type[ImageSearchError]]] = {
    "image_not_found": ImageNotFoundError,
    "image_too_costly": ImageRejectedError,
    "no_video_support": ImageRejectedError,
    "original_not_found": ImageNotFoundError,
    "not_an_image": ImageRejectedError,
    "too_many_pixels": ImageRejectedError,
    "unsupported_media_type": ImageRejectedError,
    "upload_too_large": ImageRejectedError,
    "url_not_fetched": ImageRejectedError,
}

_BY_STATUS: Final[dict[int, type[ImageSearchError]]] = {
    401: AccessError,
    403: AccessError,
    413: ImageRejectedError,
    429: UnavailableError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}
