"""The JavaScript client that is generated from the OpenAPI document, as the docs say."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from image_search_client import Client
from tests.support import ROOT
from tests.support.images import KINDS, QUERY, encode

PAGE = (ROOT / "docs" / "how-to" / "search.md").read_text().partition("## From JavaScript")[2]
ADDRESS = "http://127.0.0.1:8000"
# Before the fixtures shut the network off: npx downloads what it runs, once.
OUTSIDE = {**os.environ, "npm_config_fetch_retries": "0"}


def block(language: str) -> str:
    """The first block of the section in this language."""
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.long
def test_a_generated_client_searches_and_passes_strict_types(
    service_url: str, tmp_path: Path
) -> None:
    if shutil.which("npx") is None:
        pytest.skip("npx is not installed")

    def run(*command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, cwd=tmp_path, env=OUTSIDE, capture_output=True, text=True, check=False
        )

    tools = run("npx", "--yes", "--package", "typescript@5.9.3", "tsc", "--version")
    if tools.returncode:
        pytest.skip("npx has no network")
    generate = block("sh").replace(ADDRESS, service_url).replace("npx ", "npx --yes ")
    generated = run("sh", "-c", generate)
    assert generated.returncode == 0, generated.stdout + generated.stderr

    (tmp_path / "picture.png").write_bytes(encode(QUERY))
    program = block("ts").replace(ADDRESS, service_url)
    program = program.replace("examples/flower.png", "picture.png")
    program = program.replace('["flower", "tree"]', json.dumps(KINDS[:2]))
    (tmp_path / "program.ts").write_text(program)
    # Node's own modules are declared in a package; the one function is enough here.
    (tmp_path / "node.d.ts").write_text(
        'declare module "node:fs" { export function openAsBlob(path: string): Promise<Blob>; }\n'
    )
    check = ["--strict", "--noEmit", "--target", "es2022", "--lib", "es2022,dom,dom.iterable"]
    types = ["--module", "preserve", "--moduleResolution", "bundler"]
    tsc = ["npx", "--yes", "--package", "typescript@5.9.3", "tsc"]
    checked = run(*tsc, *check, *types, "program.ts", "node.d.ts")
    assert checked.returncode == 0, checked.stdout
    (tmp_path / "wrong.ts").write_text(program.replace("top_k: 5", 'top_k: "five"'))
    assert "TS2322" in run(*tsc, *check, *types, "wrong.ts", "node.d.ts").stdout

    bundle = ["npx", "--yes", "esbuild@0.25.0", "program.ts", "--bundle", "--platform=node"]
    bundled = run(*bundle, "--format=esm", "--outfile=program.mjs")
    assert bundled.returncode == 0, bundled.stderr
    ran = run("node", "program.mjs")
    assert ran.returncode == 0, ran.stderr
    with Client(service_url) as client:
        expected = client.search(encode(QUERY), top_k=5, labels=KINDS[:2])
    lines = ran.stdout.splitlines()
    found = [line.split(" ") for line in lines[:5]]
    assert [(id_, label) for id_, label, _ in found] == [(m.id, m.label) for m in expected]
    for (_, _, score), match in zip(found, expected, strict=True):
        assert float(score) == pytest.approx(match.score, abs=1e-4)
    assert "".join(lines[5:]).count("'") == 2 * 3  # the ids of three more
