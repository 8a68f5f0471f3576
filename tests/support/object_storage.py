"""A server of Amazon's protocol on loopback: moto's, in this process."""

import logging
from functools import cache
from typing import Any, Final
from uuid import uuid4

KEYS: Final = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


class S3Emulator:
    """A server that runs until it is stopped, or the process ends."""

    def __init__(self) -> None:
        # Few tests need them, and they take long to import.
        import boto3
        from moto.moto_server.threaded_moto_server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        self.stop = server.stop
        host, port = server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead there."""
        return {**KEYS, "IMAGE_SEARCH_S3_ENDPOINT": self.url}

    def new_bucket(self) -> str:
        """The address of one, s3://NAME."""
        name = f"bucket-{uuid4().hex}"
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def keys(self, bucket: str) -> set[str]:
        """Those of the objects in a bucket, which is named by its address."""
        name = bucket.removeprefix("s3://").partition("/")[0]
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=name)
        return {one["Key"] for page in pages for one in page.get("Contents", [])}


@cache
def s3_emulator() -> S3Emulator:
    """The one of all tests, as one takes half a second to stop; each has buckets of its own."""
    return S3Emulator()
