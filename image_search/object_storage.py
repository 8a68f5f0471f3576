"""Addresses in object storage that speaks the protocol of Amazon S3, and the server of them."""

import os
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

from image_search.errors import SettingsError

S3_SCHEME: Final = "s3://"
# Those that Amazon's own tools read.
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_REGIONS: Final = ("AWS_REGION", "AWS_DEFAULT_REGION")


@dataclass(frozen=True)
class S3Folder:
    """A place in a bucket, `s3://bucket/prefix`; the prefix may be empty."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises ValueError where it names no bucket."""
        bucket, _, prefix = url[len(S3_SCHEME) :].partition("/")
        if not bucket:
            raise ValueError(f"{url} names no bucket: write {S3_SCHEME}BUCKET/PREFIX")
        return cls(bucket, prefix.strip("/"))

    def __str__(self) -> str:
        return f"{S3_SCHEME}{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    def __truediv__(self, name: str) -> Self:
        return type(self)(self.bucket, f"{self.prefix}/{name}".lstrip("/"))


@dataclass(frozen=True)
class S3Server:
    """Where buckets are; `scheme` is http or https, and `host` may have a port."""

    scheme: str
    host: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}"

    @classmethod
    def of(cls, endpoint: str) -> Self | None:
        """The server of this address, or of Amazon's variables; None where it is Amazon's own.

        Raises SettingsError for an address that is none.
        """
        variable = "IMAGE_SEARCH_S3_ENDPOINT"
        if not endpoint:
            variable = next((name for name in _ENDPOINTS if os.environ.get(name)), "")
            endpoint = os.environ.get(variable, "")
        if not endpoint:
            return None
        parts = urlsplit(endpoint)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise SettingsError(
                f"{variable}={endpoint!r}: write an address as https://s3.example.org"
            )
        return cls(parts.scheme, parts.netloc)


def region_of_environment() -> str:
    """The region that Amazon's variables name; empty if none does."""
    return next(filter(None, map(os.environ.get, _REGIONS)), "")
