"""Every error that users can meet; each message says what to do.

ImageSearchError
├── SettingsError            an environment variable or option has a bad value
├── SourceError              the images to ingest are not available (missing, empty, damaged)
├── DownloadError            a download failed or its checksum is wrong
├── WeightsError             the model's weights are not available
├── ImageError               one image cannot be used
│   ├── NotAnImageError      not an image, or damaged
│   ├── ImageTooLargeError   too many pixels
│   ├── ImageTooCostlyError  decoding takes too much memory or time
│   └── NoVideoSupportError  it is a video, and PyAV is not installed
├── FilterError              a metadata filter is not valid
├── RecordError              a record or query vector is not valid
└── VectorIndexError
    ├── IndexNotFoundError   there is no such index yet
    ├── IndexMismatchError   the index was built with something else (model, metric, dimension)
    ├── StoreError           the store failed: disk full, read-only, unreachable, damaged
    │   └── IndexReplacedError   another index took the place of the one that is open
    └── UnsupportedError     the store cannot do what was asked for
"""


class ImageSearchError(Exception):
    """Base of all errors that are shown to users without a traceback.

    `str()` is for everyone who uses the program, over HTTP, too. `details` are for whoever runs it
    alone, in its log or terminal: folders, files, what a library said. `in_full` has both.
    """

    def __init__(self, message: str, *, details: object = "") -> None:
        super().__init__(message)
        self.details = str(details)

    @property
    def in_full(self) -> str:
        """The message with its details."""
        return f"{self} ({self.details})" if self.details else str(self)


class SettingsError(ImageSearchError):
    """An environment variable or option has a bad value."""


class SourceError(ImageSearchError):
    """The images to ingest are not available."""


class DownloadError(ImageSearchError):
    """A download failed, or what came has the wrong checksum."""


class WeightsError(ImageSearchError):
    """The model's weights are not available."""


class ImageError(ImageSearchError):
    """One image cannot be used."""


class NotAnImageError(ImageError):
    """The bytes are not an image, or a damaged one."""


class ImageTooLargeError(ImageError):
    """The image has more pixels than allowed."""


class ImageTooCostlyError(ImageError):
    """Decoding the image takes more memory or time than allowed."""


class NoVideoSupportError(ImageError):
    """It is a video, and what reads videos is not installed."""


class FilterError(ImageSearchError):
    """A metadata filter is not valid."""


class RecordError(ImageSearchError):
    """A record or a query vector is not valid."""


class VectorIndexError(ImageSearchError):
    """Base of the errors of the vector index."""


class IndexNotFoundError(VectorIndexError):
    """There is no such index yet."""


class IndexMismatchError(VectorIndexError):
    """The index was built with another model, metric or dimension."""


class StoreError(VectorIndexError):
    """The store failed: disk full, read-only, unreachable or damaged."""


class IndexReplacedError(StoreError):
    """Another index took the place of the one that is open; who opens it again has that one."""


class UnsupportedError(VectorIndexError):
    """The store cannot do what was asked for; another one, or the index made anew, can."""
