"""All settings, in one place: environment variables that begin with IMAGE_SEARCH_."""

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from image_search.errors import SettingsError
from image_search.object_storage import S3_SCHEME, S3Folder
from image_search.values import MOST_PIXELS, FileMetadata, Metric, Precision, RecipeName, Store

ENV_PREFIX = "IMAGE_SEARCH_"
# The command line of the client reads these; a shell may have them set for both.
_CLIENT_VARIABLES = {"IMAGE_SEARCH_URL", "IMAGE_SEARCH_API_KEY"}


def _in_home(path: Path) -> Path:
    """The path, where `~` is a home folder: no shell replaces it within quotes or in a file."""
    try:
        return path.expanduser()
    except RuntimeError as exc:
        raise ValueError(f"{path.parts[0]} is no home folder: {exc}") from exc


def _data_dir(value: object) -> Path | S3Folder:
    if isinstance(value, S3Folder):
        return value
    text = str(value)
    if text.lower().startswith(S3_SCHEME):
        return S3Folder.parse(text)
    if "://" in text:
        raise ValueError(f"write the path of a folder, or {S3_SCHEME}BUCKET/PREFIX")
    return _in_home(Path(text))


class Settings(BaseSettings):
    """One field per variable; the field's name in capitals follows the prefix."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True)

    store: Annotated[
        Store,
        Field(description="Where the index is: embedded (in the data folder) or pinecone."),
    ] = "embedded"
    data_dir: Annotated[
        Path | S3Folder,
        NoDecode,
        PlainValidator(_data_dir),
        Field(
            description="Folder for the index and for downloads, or s3://BUCKET/PREFIX for an "
            "embedded index in object storage."
        ),
    ] = Path("data")
    # Pinecone's rule for index names, so that a name fits every store.
    index: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9]([a-z0-9-]{0,43}[a-z0-9])?$",
            description="Name of the index: lower-case letters, digits and hyphens, at most 45.",
        ),
    ] = "images"
    namespace: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9_-]{1,64}$",
            description="Part of the index to use: letters, digits, _ and -, at most 64.",
        ),
    ] = "__default__"
    metric: Annotated[
        Metric, Field(description="Metric of a new index: cosine, euclidean or dotproduct.")
    ] = "cosine"
    index_memory: Annotated[
        int,
        Field(
            ge=0,
            le=1 << 20,
            description="MiB of memory that a process may use to search the embedded index; a "
            "larger index is searched on disk, which is slower. 0 for none.",
        ),
    ] = 1024
    store_timeout: Annotated[
        float,
        Field(gt=0, description="Seconds that a query to Pinecone may take, including retries."),
    ] = 10.0
    pinecone_cloud: Annotated[str, Field(description="Cloud of a new Pinecone index.")] = "aws"
    pinecone_region: Annotated[str, Field(description="Region of a new Pinecone index.")] = (
        "us-east-1"
    )
    pinecone_host: Annotated[
        str, Field(description="Address of Pinecone's control plane, if not the default.")
    ] = "https://api.pinecone.io"
    pinecone_index_host: Annotated[
        str,
        Field(
            description="Address of the Pinecone index itself, for keys without permission to look "
            "it up and for private endpoints; if empty, Pinecone is asked for it."
        ),
    ] = ""
    s3_endpoint: Annotated[
        str,
        Field(
            description="Server of s3:// addresses, such as https://s3.example.org, if not "
            "Amazon's."
        ),
    ] = ""
    weights: Annotated[
        str,
        AfterValidator(lambda weights: str(_in_home(Path(weights)))),
        Field(
            min_length=1,
            description="VGG16 weights of a new index: bundled (ImageNet's), imagenet (the same, "
            "exact, downloaded), auto (bundled), or the path of a Keras .h5 or .weights.h5 file.",
        ),
    ] = "auto"
    input_size: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=32, le=1024)],
        Field(
            description="Side of the square, in pixels, that a new index's images are resized to: "
            "32 to 1024, or auto, which is 96 for small images and 160 for others."
        ),
    ] = "auto"
    precision: Annotated[
        Literal["auto", Precision],
        Field(
            description="Precision in which a new index's embeddings are computed: float32, int8, "
            "or auto, which is float32 on a GPU and int8 otherwise."
        ),
    ] = "auto"
    recipe: Annotated[
        Literal["auto", RecipeName],
        Field(
            description="Recipe for a new index's embeddings: none (VGG16's last block), "
            "neighbours or components (two blocks, fitted to the images), discriminant (fitted to "
            "their labels, too), or auto: neighbours for an input size below 128, components from "
            "128, and none with fewer than 100 images."
        ),
    ] = "auto"
    batch_size: Annotated[
        int, Field(ge=1, le=4096, description="Number of images that the worker embeds at once.")
    ] = 128
    max_pixels: Annotated[
        int,
        Field(
            ge=1,
            le=MOST_PIXELS,
            description="Largest image accepted, in pixels; memory and time for decoding are "
            "limited separately.",
        ),
    ] = 200_000_000
    metadata: Annotated[
        FileMetadata,
        Field(
            description="Metadata fields that images get from their files: none, default (size, "
            "format, date, camera), or gps (default and the place)."
        ),
    ] = "default"
    max_upload_bytes: Annotated[
        int, Field(ge=1, description="Largest request body that the service accepts, in bytes.")
    ] = 20 * 1024 * 1024
    api_keys: Annotated[
        SecretStr,
        Field(
            description="Keys for writing over HTTP, separated by commas; if empty, writing is off."
        ),
    ] = SecretStr("")
    read_needs_key: Annotated[
        bool, Field(description="Whether searching and reading over HTTP need a key, too.")
    ] = False
    fetch_urls: Annotated[
        bool,
        Field(description="Whether the service fetches images from public URLs in requests."),
    ] = False
    media_root: Annotated[
        str,
        AfterValidator(lambda root: root and str(_in_home(Path(root)))),
        Field(
            description="Folder of the original images and videos, which the service then serves; "
            "empty for none."
        ),
    ] = ""
    public_url: Annotated[
        str,
        Field(
            description="Address of the service behind a proxy, such as https://example.org/find; "
            "the proxy must remove the path."
        ),
    ] = ""
    trusted_hosts: Annotated[
        str,
        Field(
            description="Host names that the service answers for, in addition to localhost and its "
            "own name and addresses, separated by commas; *.example.org for all subdomains, * for "
            "any."
        ),
    ] = ""
    cors_origins: Annotated[
        str,
        Field(
            description="Origins of other sites whose pages may use the service, separated by "
            "commas; * for any."
        ),
    ] = ""
    access_log: Annotated[
        Literal["off", "text", "json"],
        Field(
            description="Access log on standard output, one line for each request: off, text "
            "or json."
        ),
    ] = "off"
    host: Annotated[str, Field(description="Address that the service listens on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535, description="Port of the service.")] = 8000

    @property
    def local_dir(self) -> Path:
        """The folder for what stays on this machine: the data folder, or a cache of the user's.

        Raises SettingsError if the user has no home folder.
        """
        if isinstance(self.data_dir, Path):
            return self.data_dir
        try:
            caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        except RuntimeError as exc:
            raise SettingsError("there is no home folder for caches: set XDG_CACHE_HOME") from exc
        return Path(caches) / "image-search"


def variable(field: str) -> str:
    """The environment variable that sets `field`."""
    return ENV_PREFIX + field.upper()


def load_settings(**overrides: Any) -> Settings:
    """Read the environment; `overrides` (fields by name) win over it.

    Raises SettingsError, which names the variable, for a bad value or an unknown variable.
    """
    known = {variable(field) for field in Settings.model_fields}
    for name in os.environ:
        if name.startswith(ENV_PREFIX) and name not in known | _CLIENT_VARIABLES:
            # Without the prefix, which would make any two names alike.
            fields = {known_name.removeprefix(ENV_PREFIX): known_name for known_name in known}
            near = get_close_matches(name.removeprefix(ENV_PREFIX), fields, n=1)
            hint = (
                f"did you mean {fields[near[0]]}?"
                if near
                else f"known are {', '.join(sorted(known))}"
            )
            raise SettingsError(f"{name} is not a setting: {hint}")
    try:
        return Settings(**overrides)
    except ValidationError as exc:
        problems = "; ".join(
            f"{variable(str(error['loc'][0]))}={error['input']!r}: {error['msg']}"
            for error in exc.errors()
        )
        raise SettingsError(problems) from exc
