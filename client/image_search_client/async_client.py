"""The asynchronous client. `tools/sync_client.py` makes the synchronous one from this file."""

import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import httpx2
from tqdm.auto import tqdm

from image_search_client import aio, duplicates, folders, results, retries, tls
from image_search_client.errors import (
    ImageNotFoundError,
    ImageRejectedError,
    ImageSearchError,
    InvalidRequestError,
    RequestTimeoutError,
    UnexpectedAnswerError,
    UnreachableError,
    UnreadableImageError,
)
from image_search_client.inputs import (
    Example,
    ExampleInput,
    GroupBy,
    ImageInput,
    LabelFrom,
    Options,
    Upload,
    listing_query,
    pair_json,
    query_json,
    read_image,
    to_json_text,
)
from image_search_client.results import (
    Comparison,
    Duplicate,
    EmbedResult,
    FolderResult,
    Health,
    IndexedImage,
    SearchResult,
    SearchResults,
    Thumbnail,
    decode,
)
from image_search_client.version import VERSION

_LONGEST_EXCERPT: Final = 200


_THIS_MACHINE: Final = ("all://localhost", "all://127.0.0.1", "all://[::1]")


class AsyncClient:
    """The image search service at an address.

        async with AsyncClient("http://127.0.0.1:8000") as client:
            result = await client.search("cat.jpg", top_k=5)

    Every call raises ImageSearchError, of which `errors` shows the kinds. It is safe to share one
    client: it keeps connections open.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float | httpx2.Timeout = 30.0,
        retries: int = 3,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Open nothing yet.

        Args:
            base_url: Address of the service, as http://host:port or https://host/path.
            api_key: For services that want one; sent as X-API-Key, and never to another host.
            timeout: Seconds to wait for a connection, and for each next part of the answer.
            retries: How often a request is sent again, with growing delays or after the time that
                the service asks for, when the connection fails or the service is unavailable.
            transport: Replaces the network, or configures it: httpx2.AsyncHTTPTransport(…).
        """
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"{base_url!r} does not start with http:// or https://")
        headers = {"User-Agent": f"image-search-client/{VERSION}"}
        if api_key is not None:
            headers["X-API-Key"] = api_key
        self._retries = retries
        try:
            self._http = httpx2.AsyncClient(
                base_url=base_url,
                headers=headers,
                timeout=timeout,
                transport=transport,
                verify=tls.context(),
                # This machine is asked itself, whatever proxy the environment names.
                mounts=dict.fromkeys(_THIS_MACHINE),
            )
        except ImportError as exc:
            raise ValueError(
                "the environment names a SOCKS proxy (ALL_PROXY, HTTP_PROXY or HTTPS_PROXY): "
                "install httpx2[socks], or name an HTTP proxy"
            ) from exc
        url = self._http.base_url
        # For people: without a user's name and password, which a URL may hold.
        self._address = f"{url.scheme}://{url.netloc.decode()}{url.path.rstrip('/')}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    # --- searching ---------------------------------------------------------------------------

    async def search(
        self,
        image: ImageInput,
        *,
        top_k: int = 10,
        labels: Sequence[str] = (),
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        min_score: float | None = None,
        min_confidence: float | None = None,
        thumbnails: bool = True,
        deduplicate: bool = False,
        group_by: GroupBy = "none",
    ) -> SearchResult:
        """The images of the index most similar to an image, best first.

        Args:
            image: A path, the bytes of an image file, a binary file, a Pillow image, or a NumPy
                array: uint8 [height, width, 3] in RGB or [height, width] in grey.
            top_k: How many matches, 1 to 100.
            labels: Only images with one of these labels; empty for all.
            filter: Only images whose metadata pass, in Pinecone's grammar:
                {"year": {"$gte": 2020}}.
            min_score: Only matches at least this similar; for the euclidean metric, at most this
                far.
            min_confidence: Only matches with at least this confidence, 0 to 1.
            thumbnails: Whether matches carry thumbnails.
            deduplicate: Leave out near-duplicates of the query and of a better match.
            group_by: "video" gives one match for each video, its best frame; `moments` are the
                next best ones.

        Raises:
            ImageRejectedError: It is no image, or too large.
            UnreadableImageError: The path cannot be read.
        """
        options = Options(
            top_k, labels, filter, min_score, min_confidence, thumbnails, deduplicate, group_by
        )
        return await self._search(image, options)

    async def search_many(
        self,
        images: Iterable[ImageInput],
        *,
        concurrency: int = 8,
        progress: bool = True,
        top_k: int = 10,
        labels: Sequence[str] = (),
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        min_score: float | None = None,
        min_confidence: float | None = None,
        thumbnails: bool = True,
        deduplicate: bool = False,
        group_by: GroupBy = "none",
    ) -> SearchResults:
        """What `search` finds for each of any number of images, in their order.

        An image that cannot be read or is rejected does not stop the others: its error is raised
        where its result is asked for, and is in `errors`. What would fail the others as well, such
        as a service that cannot be reached, is raised at once.

        Args:
            images: As for `search`; taken only as fast as they are searched with.
            concurrency: How many requests at once. The service embeds together what comes together.
            progress: Show a progress bar, on a terminal and in Jupyter.
            top_k: This and the others are options of `search`.
            labels: See `search`.
            filter: See `search`.
            min_score: See `search`.
            min_confidence: See `search`.
            thumbnails: See `search`.
            deduplicate: See `search`.
            group_by: See `search`.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; it must be at least 1")
        options = Options(
            top_k, labels, filter, min_score, min_confidence, thumbnails, deduplicate, group_by
        )

        async def outcome(image: ImageInput) -> SearchResult | ImageSearchError:
            try:
                return await self._search(image, options)
            except (ImageRejectedError, UnreadableImageError) as exc:
                return exc

        outcomes = []
        # None: not where standard error is no terminal.
        with tqdm(
            total=len(images) if isinstance(images, Sized) else None,
            unit=" images",
            disable=None if progress else True,
        ) as bar:
            async for result in aio.map_ordered(outcome, images, concurrency):
                outcomes.append(result)
                bar.update()
        return SearchResults(tuple(outcomes))

    async def search_batch(
        self,
        images: Iterable[ImageInput],
        *,
        top_k: int = 10,
        labels: Sequence[str] = (),
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        min_score: float | None = None,
        min_confidence: float | None = None,
        thumbnails: bool = True,
        deduplicate: bool = False,
        group_by: GroupBy = "none",
    ) -> SearchResults:
        """What `search` finds for each of 1 to 32 images, in one request.

        An image that is rejected does not stop the others, as in `search_many`. The options are
        those of `search`.

        Raises:
            UnreadableImageError: A path cannot be read.
        """
        options = Options(
            top_k, labels, filter, min_score, min_confidence, thumbnails, deduplicate, group_by
        )
        files = [("images", _part(await aio.in_thread(read_image, image))) for image in images]
        response = await self._send("POST", "/search/batch", files=files, params=options.to_query())
        return decode(response.content, results.BatchAnswer).results_or_errors()

    async def query(
        self,
        *,
        id: str | None = None,  # noqa: A002
        image: ImageInput | None = None,
        embedding: Iterable[float] | None = None,
        url: str | None = None,
        positive: Iterable[ExampleInput] = (),
        negative: Iterable[ExampleInput] = (),
        top_k: int = 10,
        labels: Sequence[str] = (),
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        min_score: float | None = None,
        min_confidence: float | None = None,
        thumbnails: bool = True,
        deduplicate: bool = False,
        group_by: GroupBy = "none",
    ) -> SearchResult:
        """The images of the index most similar to a query and examples, best first.

        The query is at most one of `id`, `image`, `embedding` and `url`; examples say what matches
        should be like, and what not:

            await client.query(id=result[0].id)
            await client.query(image="cat.jpg", positive=[result[1]], negative=[result[4]])
            await client.query(positive=[Example(image="a.jpg"), Example(image="b.jpg")])

        Args:
            id: Of an image of the index. Those named by id are left out of the matches.
            image: As for `search`.
            embedding: 512 numbers, as from `embed`.
            url: Of an image on the web; the operator of the service has to have allowed it.
            positive: At most 16: matches of an earlier search, or Example(…).
            negative: The same, for what matches should not be like.
            top_k: This and the others are options of `search`.
            labels: See `search`.
            filter: See `search`.
            min_score: See `search`.
            min_confidence: See `search`.
            thumbnails: See `search`.
            deduplicate: See `search`.
            group_by: See `search`.

        Raises:
            ImageNotFoundError: There is no image with such an id.
            ImageRejectedError: It is no image, too large, or cannot be fetched.
            UnreadableImageError: A path cannot be read.
        """
        options = Options(
            top_k, labels, filter, min_score, min_confidence, thumbnails, deduplicate, group_by
        )
        none = id is None and image is None and embedding is None and url is None
        query = None if none else Example(id=id, image=image, embedding=embedding, url=url)
        body = await aio.in_thread(query_json, query, positive, negative)
        response = await self._send(
            "POST",
            "/query",
            content=to_json_text({**body, **options.to_json()}),
            headers={"Content-Type": "application/json"},
        )
        return decode(response.content, SearchResult)

    async def compare(
        self, a: ImageInput | ExampleInput, b: ImageInput | ExampleInput
    ) -> Comparison:
        """How similar two images are, and what that means in this index.

            await client.compare("cat.jpg", "dog.jpg")
            await client.compare("cat.jpg", result[0])
            await client.compare(Example(id="pets/tom"), Example(url="https://…"))

        Args:
            a: An image as for `search`, a match of an earlier search, or Example(…).
            b: The other one.

        Raises:
            ImageNotFoundError: There is no image with such an id.
            ImageRejectedError: One of them, which is named, is no image, too large, or cannot be
                fetched.
            UnreadableImageError: A path cannot be read.
        """
        body = await aio.in_thread(pair_json, a, b)
        response = await self._send(
            "POST",
            "/compare",
            content=to_json_text(body),
            headers={"Content-Type": "application/json"},
        )
        return decode(response.content, Comparison)

    async def embed(self, image: ImageInput) -> EmbedResult:
        """The embedding of an image: 512 numbers. Raises as `search` does."""
        response = await self._upload("POST", "/embeddings", image, {})
        return decode(response.content, EmbedResult)

    # --- the index ---------------------------------------------------------------------------

    async def get_image(self, id: str) -> IndexedImage:  # noqa: A002
        """An image of the index. Raises ImageNotFoundError."""
        response = await self._send("GET", f"/images/{_quoted(id)}")
        return decode(response.content, IndexedImage)

    async def put_image(
        self,
        id: str,  # noqa: A002
        image: ImageInput,
        *,
        label: str | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> IndexedImage:
        """Insert an image into the index, or replace the one with this id; needs a key.

        Args:
            id: 1 to 512 printable ASCII characters; it may hold slashes.
            image: As for `search`.
            label: What it shows.
            metadata: Strings, numbers, booleans and lists of strings, to filter by.

        Raises:
            ImageRejectedError: It is no image, or too large.
            UnreadableImageError: The path cannot be read.
            AccessError: The key is missing or wrong, or the service does not allow writing.
        """
        parameters: dict[str, str] = {}
        if label is not None:
            parameters["label"] = label
        if metadata is not None:
            parameters["metadata"] = to_json_text(metadata)
        response = await self._upload("PUT", f"/images/{_quoted(id)}", image, parameters)
        return decode(response.content, IndexedImage)

    async def put_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        prefix: str | None = None,
        label_from: LabelFrom = "folder",
        concurrency: int = 8,
        progress: bool = True,
    ) -> FolderResult:
        """Insert the images of a folder into the index, or replace them; needs a key.

        Images that the index has already, by id and content, are not sent. So a second call
        resumes one that was stopped, and sends what is new or has changed. An image that fails does
        not stop the others. For folders that the worker can read, it is faster.

        Args:
            folder: Its images, and those of the folders in it, but for hidden ones.
            prefix: What ids begin with, before the path in the folder; None for the folder's name
                and a slash.
            label_from: Whether images in sub-folders get the folder's name as their label.
            concurrency: How many requests at once.
            progress: Show a progress bar, on a terminal and in Jupyter.

        Raises:
            UnreadableImageError: The folder cannot be read.
            AccessError: The key is missing or wrong, or the service does not allow writing.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; it must be at least 1")
        root = Path(folder)
        if prefix is None:
            prefix = folders.prefix_of(root)
        images, others = await aio.in_thread(
            folders.images_of, root, prefix, labels=label_from == "folder"
        )
        known = {
            image.id: (image.metadata.get("sha256"), image.label)
            async for image in self.iter_images(prefix=prefix, page_size=1000)
        }
        errors: dict[str, ImageSearchError] = {}

        async def put(image: folders.FolderImage) -> bool:
            try:
                if image.id in known:
                    content = await aio.in_thread(folders.digest, image.path)
                    if known[image.id] == (content, image.label):
                        return False
                await self.put_image(image.id, image.path, label=image.label)
            except (ImageRejectedError, InvalidRequestError, UnreadableImageError) as exc:
                errors[str(image.path)] = exc
            return True

        sent = 0
        with tqdm(total=len(images), unit=" images", disable=None if progress else True) as bar:
            async for was_sent in aio.map_ordered(put, images, concurrency):
                sent += was_sent
                bar.update()
        return FolderResult(sent - len(errors), len(images) - sent, others, errors)

    async def delete_image(self, id: str) -> None:  # noqa: A002
        """Delete an image from the index; needs a key.

        Raises ImageNotFoundError when there is none, and AccessError as `put_image` does.
        """
        await self._send("DELETE", f"/images/{_quoted(id)}")

    async def iter_images(
        self,
        *,
        labels: Sequence[str] = (),
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        words: str = "",
        prefix: str = "",
        sort: str | None = None,
        thumbnails: bool = False,
        page_size: int = 100,
    ) -> AsyncIterator[IndexedImage]:
        """The images of the index, all or those asked for, without a picture to search with.

            async for image in client.iter_images(labels=["cat"], sort="-taken"):

        Args:
            labels: Only images with one of these labels; empty for all.
            filter: Only images whose metadata pass: {"taken": {"$gte": "2024-07-01"}}.
            words: Only images with all of these words, or parts of words, in their id, label or
                text of their metadata.
            prefix: Only images whose id begins with this.
            sort: `id`, which is the usual one, `label` or a field of metadata; `-taken` is
                descending.
            thumbnails: Whether images carry thumbnails.
            page_size: How many are asked for at once, 1 to 1,000.

        Raises:
            InvalidRequestError: An option is not valid, or the index's store does not have it:
                Pinecone knows neither words nor orders.
        """
        parameters = listing_query(
            labels, filter, {"words": words, "prefix": prefix, "sort": sort}, thumbnails=thumbnails
        )
        parameters["limit"] = page_size
        while True:
            response = await self._send("GET", "/images", params=parameters)
            page = decode(response.content, results.ImagePage)
            for image in page.images:
                yield image
            if not page.cursor:
                return
            parameters["cursor"] = page.cursor

    async def duplicates(
        self,
        *,
        threshold: float | None = None,
        labels: Sequence[str] = (),
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        concurrency: int = 8,
        progress: bool = True,
    ) -> list[tuple[Duplicate, ...]]:
        """Groups of images that are nearly the same picture, the largest first.

        Every image is a query, so it takes as long as so many searches. Images that are linked by
        pairs form a group, so two of it may be less alike than `threshold`. A video counts as one
        image. An image is compared with 100 others at most: a larger group may come in parts.

        Args:
            threshold: The least cosine similarity of two near-duplicates, above 0 and at most 1;
                None for what the service takes when it leaves out near-duplicates.
            labels: Only images with one of these labels; empty for all.
            filter: Only images whose metadata pass, as for `search`.
            concurrency: How many requests at once.
            progress: Show a progress bar, on a terminal and in Jupyter.

        Raises:
            InvalidRequestError: The index's scores are no cosines, or a filter is not valid.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; it must be at least 1")
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"threshold is {threshold}; it must be above 0 and at most 1")
        health = await self.health()
        if threshold is None:
            threshold = health.near_duplicate_cosine
        if threshold is None:
            raise ValueError("this service does not say a threshold: give one")
        scores = duplicates.Scores(health)
        min_score = scores.of(threshold)
        images = [
            duplicates.Image.of(image)
            async for image in self.iter_images(labels=labels, filter=filter, page_size=1000)
        ]
        groups = duplicates.Groups()

        async def compare(image: duplicates.Image) -> None:
            try:
                found = await self.query(
                    id=image.id,
                    top_k=duplicates.MOST_MATCHES,
                    labels=labels,
                    filter=filter,
                    min_score=min_score,
                    thumbnails=False,
                    group_by="video",
                )
            except ImageNotFoundError:
                return  # deleted meanwhile
            for match in found:
                groups.join(image, duplicates.Image.of(match), scores.cosine(match.score))

        with tqdm(total=len(images), unit=" images", disable=None if progress else True) as bar:
            async for _ in aio.map_ordered(compare, images, concurrency):
                bar.update()
        return groups.listed()

    async def thumbnail(self, id: str) -> Thumbnail:  # noqa: A002
        """The thumbnail of an image of the index, a JPEG. Raises ImageNotFoundError."""
        response = await self._send("GET", f"/thumbnails/{_quoted(id)}")
        return Thumbnail(response.content)

    async def original(self, id: str) -> bytes:  # noqa: A002
        """The file that an image came from; of a frame, and of a video's id, the video.

        Raises AccessError where the operator shows none, and ImageNotFoundError.
        """
        response = await self._send("GET", f"/originals/{_quoted(id)}")
        return response.content

    async def labels(self) -> dict[str, int | None]:
        """The labels of the index, sorted, and how many images have each.

        The number is None where the store cannot count.
        """
        response = await self._send("GET", "/labels")
        answer = decode(response.content, results.LabelsAnswer)
        return {item.label: item.count for item in answer.labels}

    async def health(self) -> Health:
        """What answers searches; asked once. Raises UnavailableError with the reason when not."""
        response = await self._send("GET", "/health", attempts=1)
        return decode(response.content, Health)

    # --- requests ----------------------------------------------------------------------------

    async def _search(self, image: ImageInput, options: Options) -> SearchResult:
        response = await self._upload("POST", "/search", image, options.to_query())
        return decode(response.content, SearchResult)

    async def _upload(
        self, method: str, path: str, image: ImageInput, parameters: Mapping[str, Any]
    ) -> httpx2.Response:
        part = _part(await aio.in_thread(read_image, image))
        return await self._send(method, path, files={"image": part}, params=parameters)

    async def _send(
        self, method: str, path: str, *, attempts: int | None = None, **request: Any
    ) -> httpx2.Response:
        """The answer, after as many attempts as it takes and as are allowed."""
        if attempts is None:
            attempts = self._retries + 1
        lost = False
        attempt = 0
        while True:
            retry_after = None
            try:
                response = await self._http.request(method, path, **request)
            except httpx2.RequestError as exc:
                error = self._transport_error(exc)
                lost = True
            else:
                if response.is_success or (
                    # An earlier attempt has done it, and its answer was lost.
                    method == "DELETE" and lost and response.status_code == httpx2.codes.NOT_FOUND
                ):
                    return response
                error = _problem(response)
                retry_after = response.headers.get("Retry-After")
            delay = retries.delay(error, attempt, retry_after)
            attempt += 1
            if delay is None or attempt >= attempts:
                raise error
            await aio.sleep(delay)

    def _transport_error(self, exc: httpx2.RequestError) -> ImageSearchError:
        if isinstance(exc, httpx2.TimeoutException):
            error: ImageSearchError = RequestTimeoutError(
                f"{self._address} did not answer in time", "timeout"
            )
        else:
            reason = str(exc) or type(exc).__name__
            error = UnreachableError(f"{self._address} cannot be reached: {reason}", "unreachable")
        error.__cause__ = exc
        return error


def _part(upload: Upload) -> tuple[str, bytes, str]:
    # A file's extension may be wrong; the service looks at its bytes.
    return upload.name, upload.content, "application/octet-stream"


def _quoted(id_: str) -> str:
    if not id_:
        raise ValueError("the id is empty")
    # Else the address of the id `..` would be another one.
    return quote(id_, safe="").replace(".", "%2E") if id_ in {".", ".."} else quote(id_, safe="")


def _problem(response: httpx2.Response) -> ImageSearchError:
    status = response.status_code
    try:
        return decode(response.content, results.Problem).error()
    except UnexpectedAnswerError:
        if location := response.headers.get("Location"):
            detail = f"the answer is a redirect to {location}: use that address"
        else:
            excerpt = " ".join(response.text.split())[:_LONGEST_EXCERPT]
            detail = f"the answer is {status}, and not from the image search service: {excerpt}"
        return ImageSearchError.of_other(detail, status)
