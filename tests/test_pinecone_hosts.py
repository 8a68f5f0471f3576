"""Which hosts the Pinecone store speaks to, and through which proxies."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from image_search.errors import SettingsError, StoreError
from image_search.index import Record
from image_search.manifest import Manifest
from image_search.settings import load_settings
from image_search.stores import create_index, open_index
from image_search.values import DIMENSION
from tests.support.indexes import MODEL
from tests.support.pinecone import API_KEY, PineconeEmulator, forget_failures
from tests.support.proxies import Proxy, certificate, proxy

# Names that nobody resolves: only a proxy leads there.
CONTROL, DATA, PRIVATE = (
    f"{name}.pinecone.test" for name in ("api", "images.svc", "images.svc.private")
)


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[PineconeEmulator]:
    """Over plain HTTP."""
    forget_failures()
    with PineconeEmulator() as emulator:
        emulator.put_index("images")
        settings(monkeypatch, emulator.host)
        yield emulator
    forget_failures()


@pytest.fixture
def encrypted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[PineconeEmulator]:
    """Over TLS, by the names that Pinecone has here."""
    forget_failures()
    file = certificate(tmp_path, [CONTROL, DATA, PRIVATE, "127.0.0.1"])
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with PineconeEmulator(certificate=file) as emulator:
        emulator.put_index("images")
        emulator.data_host = DATA
        settings(monkeypatch, f"https://{CONTROL}")
        yield emulator
    forget_failures()


@pytest.fixture
def tunnel(encrypted: PineconeEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that leads to the emulator by CONNECT, whatever the host is called."""
    with proxy(("127.0.0.1", encrypted.port)) as running:
        use(monkeypatch, "https", running.address)
        yield running


def settings(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_STORE", "pinecone")
    monkeypatch.setenv("IMAGE_SEARCH_STORE_TIMEOUT", "5")
    monkeypatch.setenv("IMAGE_SEARCH_PINECONE_HOST", host)
    monkeypatch.setenv("PINECONE_API_KEY", API_KEY)


def use(monkeypatch: pytest.MonkeyPatch, scheme: str, address: str, without: str = "") -> None:
    """Name the proxy in the environment, in both spellings."""
    for name, value in ((f"{scheme}_proxy", address), ("no_proxy", without)):
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.upper(), value)


def write_one() -> None:
    embedding = np.random.default_rng(0).standard_normal(DIMENSION).astype(np.float32)
    with create_index(load_settings(), Manifest.new(MODEL, "cosine", "__default__")) as index:
        index.upsert([Record("a", embedding, None, {}, b"jpeg")])


def test_plain_requests_go_through_the_proxy(
    emulator: PineconeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_one()
    with proxy() as running:
        use(monkeypatch, "http", running.address)
        with open_index(load_settings()) as opened:
            assert opened.count() == 1
    lines = [line for line, _ in running.seen]
    assert {line.split()[0] for line in lines} == {"GET", "POST"}
    assert all(emulator.host in line for line in lines), lines


@pytest.mark.usefixtures("emulator")
def test_a_proxy_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "http", "socks5://user:secret@127.0.0.1:9")
    with pytest.raises(SettingsError, match=r"socks5.*HTTPS_PROXY") as caught:
        open_index(load_settings())
    assert "secret" not in str(caught.value)


def test_control_and_data_plane_are_reached_by_connect(
    encrypted: PineconeEmulator, tunnel: Proxy
) -> None:
    write_one()
    with open_index(load_settings()) as opened:
        assert opened.count() == 1
    assert tunnel.tunnels() == {f"{CONTROL}:443", f"{DATA}:443"}
    assert encrypted.count("/indexes", 200) > 0
    assert encrypted.count("/vectors/upsert", 200) > 0
    # What is sent through the tunnel is none of the proxy's business.
    assert all(line.startswith("CONNECT ") for line, _ in tunnel.seen)
    assert API_KEY not in str(tunnel.seen)


def test_a_private_host_is_used_alone(
    encrypted: PineconeEmulator, tunnel: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_PINECONE_INDEX_HOST", PRIVATE)
    write_one()
    with open_index(load_settings()) as opened:
        assert opened.count() == 1
    assert tunnel.tunnels() == {f"{PRIVATE}:443"}
    assert encrypted.count("/indexes") == 0, "the control plane is left alone"


def test_no_proxy_leads_past_the_proxy(
    encrypted: PineconeEmulator, tunnel: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_PINECONE_INDEX_HOST", f"{encrypted.host}/data/images")
    use(monkeypatch, "https", tunnel.address, without="127.0.0.1,.example.com")
    write_one()
    assert encrypted.count("/vectors/upsert", 200) > 0
    assert tunnel.seen == []


@pytest.mark.slow
@pytest.mark.usefixtures("encrypted", "tunnel")
def test_a_certificate_that_nobody_trusts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(StoreError, match="cannot be reached"):
        open_index(load_settings())
