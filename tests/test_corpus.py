"""Hundreds of odd files over HTTP: each gets an answer that says what it is, at little cost."""

import base64
import random
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import psutil
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from image_search.settings import load_settings
from tests.support import ROOT, SHARED
from tests.support.indexes import FakeEmbedder, fill, serve_fakes
from tests.support.odd import odd_files
from tests.support.servers import SERVICE_KEY, serve, wait_for

FILES: Final = dict(odd_files())
SAMPLE: Final = random.Random(0).sample(list(FILES), 250)
KNOWN: Final = {"not_an_image", "too_many_pixels", "image_too_costly"}
CPU_SECONDS: Final = 10


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = load_settings(
        data_dir=tmp_path_factory.mktemp("corpus"), api_keys=SecretStr(SERVICE_KEY)
    )
    fill(settings, FakeEmbedder())
    with pytest.MonkeyPatch.context() as patch:
        serve_fakes(patch)
        with serve(settings) as client:
            wait_for(client, 200)
            yield client


def code_of(response: Any) -> str:
    """The code of problem details, or 200; asserts that it is one of them and tells no secret."""
    text = response.text
    for secret in (str(ROOT), sys.prefix, "site-packages", "/tmp", ".py", " at 0x", "Traceback"):
        assert secret not in text
    if response.is_success:
        return "200"
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert response.status_code == problem["status"] < 500, problem
    assert len(problem["detail"]) <= 320
    return str(problem["code"])


def cpu_seconds() -> float:
    """Of this process and its children, those that have ended among them."""
    now = sum(psutil.Process().cpu_times()[:4])
    return now + sum(sum(process.cpu_times()[:2]) for process in psutil.Process().children())


@pytest.mark.long
def test_each_is_answered_within_its_budget(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    counts: Counter[str] = Counter()
    for name in SAMPLE:
        before = cpu_seconds()
        code = code_of(client.post("/search?thumbnails=false", files={"image": FILES[name]}))
        assert code in {"200", *KNOWN}, name
        assert cpu_seconds() - before < CPU_SECONDS, name
        counts[code] += 1
    assert counts["200"] > 50
    assert counts["not_an_image"] > 50
    assert not [record for record in caplog.records if record.exc_info]
    assert "Traceback" not in caplog.text


@pytest.mark.slow
def test_every_way_of_sending_them_answers_alike(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    for name in SAMPLE[::20]:
        content = FILES[name]
        searched = client.post("/search?thumbnails=false", files={"image": content})
        expected = code_of(searched)
        encoded = base64.b64encode(content).decode()
        [in_batch] = client.post("/search/batch", files={"images": content}).json()["results"]
        detail = None if expected == "200" else searched.json()["detail"]
        assert (in_batch["problem"] or {}).get("detail") == detail, name
        for response in (
            client.post("/query", json={"image": encoded, "thumbnails": False}),
            client.post("/embeddings", files={"image": content}),
            client.post("/compare", files={"a": content, "b": content}),
            client.post("/compare", json={"a": {"image": encoded}, "b": {"image": encoded}}),
        ):
            assert code_of(response) == expected, name
        put = client.put(
            f"/images/odd/{name}",
            files={"image": content},
            headers={"X-API-Key": SERVICE_KEY},
        )
        assert code_of(put) == expected, name
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.slow
def test_files_of_others_are_answered(client: TestClient) -> None:
    folder = SHARED / "data" / "files"
    if not folder.exists():
        pytest.skip("files of others are not at hand")
    codes = {
        path.name: code_of(client.post("/search", files={"image": path.read_bytes()}))
        for path in folder.iterdir()
    }
    assert codes.pop("jpeg_trunc2.jpg", "200") in {"200", "not_an_image"}
    for name, code in codes.items():
        is_image = name.endswith((".png", ".heic", ".jpg"))
        assert code == ("200" if is_image else "not_an_image"), name
