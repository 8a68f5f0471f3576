"""HAProxy with the gateway's own configuration, in front of a service on the loopback."""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support import ROOT
from tests.support.servers import find_free_port

CONFIG: Final = ROOT / "gateway" / "haproxy.cfg"


@contextmanager
def gateway(
    service_port: int, folder: Path, changes: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Its port; `changes` are made to lines that the configuration has.

    In place of the containers' names, which need a name server, there is one service.
    """
    port = find_free_port()
    config = CONFIG.read_text()
    for old, new in {
        "bind :8000": f"bind 127.0.0.1:{port}",
        "resolvers docker init-addr none": "",
        "server-template api- 16 api:8000": f"server api 127.0.0.1:{service_port}",
        **(changes or {}),
    }.items():
        assert old in config, f"{CONFIG.name} has no {old!r} any more"
        config = config.replace(old, new)
    path = folder / CONFIG.name
    path.write_text(config)
    with subprocess.Popen(
        ["haproxy", "-q", "-db", "-f", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield port
        finally:
            process.kill()
