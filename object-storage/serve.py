"""Serves two buckets: `photos` has the files of the folder /photos, and `index` is empty."""

import threading
from pathlib import Path

import boto3
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

ThreadedMotoServer(ip_address="0.0.0.0", port=5000, verbose=False).start()  # noqa: S104
client = boto3.client("s3", endpoint_url="http://127.0.0.1:5000")
client.create_bucket(Bucket="photos")
folder = Path("/photos")
for file in sorted(folder.rglob("*")):
    if file.is_file():
        client.upload_file(str(file), "photos", file.relative_to(folder).as_posix())
# Last, as the health check looks for it.
client.create_bucket(Bucket="index")
threading.Event().wait()
