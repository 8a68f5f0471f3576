"""The command line of the client, against the running service."""

import base64
import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from image_search_client import Client, ImageRejectedError, SearchResult, command, terminal
from tests.support import ROOT
from tests.support.images import KINDS, QUERY, draw, encode
from tests.support.servers import SERVICE_KEY
from worker.sources import sample

KIND = KINDS[1]


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "query.png"
    path.write_bytes(encode(QUERY))
    return str(path)


@pytest.fixture(autouse=True)
def _address(service_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_URL", service_url)


class Run:
    """The exit code and the output of one call."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        try:
            self.code = command.main(arguments)
        except SystemExit as exc:
            self.code = int(str(exc.code))
        self.out, self.err = capsys.readouterr()
        assert "Traceback" not in self.err


def test_a_query_prints_a_table(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, "query", picture, "--top-k", "3", "--label", KIND)
    assert (run.code, run.err) == (0, "")
    header, *rows = run.out.splitlines()
    assert header.split() == ["#", "score", "confidence", "label", "id"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3"]
    assert {row.split()[3] for row in rows} == {KIND}


def test_json_is_a_line_for_each_query(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, "query", picture, "missing.png", picture, "--json", "--top-k", "1")
    first, second, third = (json.loads(line) for line in run.out.splitlines())
    assert run.code == command.EXIT_INCOMPLETE
    assert first.keys() == {
        "image",
        "matches",
        "familiarity",
        "familiar",
        "complete",
        "model",
        "took_ms",
    }
    assert first["image"] == third["image"] == picture
    assert first["matches"] == third["matches"]
    assert second["problem"]["code"] == "unreadable"
    assert run.err == "image-search: missing.png: No such file or directory\n"


def test_standard_input_is_an_image(
    picture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Run(capsys, "query", picture).out
    with open(picture) as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert Run(capsys, "query", "-").out == expected


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["query"], 2, "an IMAGE or --id is needed"),
        (["query", "x", "--filter", "[1]"], 2, "not a JSON object"),
        (["query", "x", "--filter", "{"], 2, "not JSON"),
        (["query", "x", "--top-k", "many"], 2, "invalid int value"),
        (["query", "x", "--service", "localhost"], 2, "does not start with http://"),
        (["query", __file__], 3, "not_an_image"),
        (["query", "x\x1b[2J"], 3, r"x\x1b[2J: No such file"),
        (["put", "a", "missing.png"], 3, "missing.png: No such file"),
    ],
)
def test_errors_are_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    run = Run(capsys, *arguments)
    assert run.code == code
    assert message in run.err.splitlines()[-1]
    assert "\x1b" not in run.err


@pytest.mark.slow
def test_a_service_that_is_not_there(
    picture: str, capsys: pytest.CaptureFixture[str], free_port: int
) -> None:
    run = Run(capsys, "query", picture, "--service", f"http://127.0.0.1:{free_port}")
    assert run.code == command.EXIT_FAILED
    assert re.fullmatch(r"image-search: .* cannot be reached: .* \[unreachable\]\n", run.err)


def test_the_index_is_kept(
    picture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put = ("put", "pets/tom", picture, "--label", "tom", "--metadata", '{"year": 2026}')
    run = Run(capsys, *put)
    assert run.code == command.EXIT_FAILED
    assert run.err.endswith("[unauthorized]\n")

    monkeypatch.setenv("IMAGE_SEARCH_API_KEY", SERVICE_KEY)
    run = Run(capsys, *put)
    assert (run.code, run.out, run.err) == (0, "", "")
    assert json.loads(Run(capsys, *put, "--json").out)["metadata"]["year"] == 2026
    assert re.search(r"^1  tom$", Run(capsys, "labels").out, re.MULTILINE)
    assert json.loads(Run(capsys, "labels", "--json").out)["tom"] == 1
    run = Run(capsys, "query", picture, "--filter", '{"year": {"$gt": 2025}}', "--json")
    assert [match["id"] for match in json.loads(run.out)["matches"]] == ["pets/tom"]

    run = Run(capsys, "delete", "pets/tom", "nothing")
    assert run.code == command.EXIT_INCOMPLETE
    assert re.fullmatch(r"image-search: nothing: .* \[image_not_found\]\n", run.err)
    assert "tom" not in json.loads(Run(capsys, "labels", "--json").out)


def test_ids_are_queries_too(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, "query", picture, "--id", f"{KIND}/0", "--id", "nothing", "--json")
    assert run.code == command.EXIT_INCOMPLETE
    first, second, third = (json.loads(line) for line in run.out.splitlines())
    assert (first["image"], second["id"], third["id"]) == (picture, f"{KIND}/0", "nothing")
    assert f"{KIND}/0" not in {match["id"] for match in second["matches"]}
    assert third["problem"]["code"] == "image_not_found"


def test_ids_are_printed_as_names(
    picture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_API_KEY", SERVICE_KEY)
    id_ = "%C3%A9t%C3%A9-2.jpg"
    assert Run(capsys, "put", id_, picture, "--label", "summer").code == 0
    query = ("query", picture, "--label", "summer")
    assert Run(capsys, *query).out.split()[-1] == "été-2.jpg"
    assert json.loads(Run(capsys, *query, "--json").out)["matches"][0]["id"] == id_
    assert Run(capsys, "delete", id_).code == 0


def test_a_label_that_no_image_has_is_named(
    picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(capsys, "query", picture, "--label", KIND.upper()[:-1], "--label", "zebra")
    assert (run.code, run.out) == (0, "no matches\n")
    assert run.err.splitlines() == [
        f"image-search: no image has the label {KIND.upper()[:-1]!r}: did you mean {KIND!r}?",
        "image-search: no image has the label 'zebra'",
    ]
    run = Run(capsys, "query", picture, "--label", KIND, "--min-score", "2")
    assert (run.code, run.out, run.err) == (0, "no matches\n", "")


@pytest.mark.parametrize("familiar", [True, None, False])
def test_a_picture_that_nothing_is_like_is_said_to_be(
    picture: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    familiar: bool | None,  # noqa: FBT001
) -> None:
    search = Client.search

    def judged(client: Client, image: Any, **options: Any) -> SearchResult:
        return replace(search(client, image, **options), familiarity=0.01, familiar=familiar)

    monkeypatch.setattr(Client, "search", judged)
    said = "Nothing like this is in the index." in Run(capsys, "query", picture).out
    assert said == (familiar is False)
    answer = json.loads(Run(capsys, "query", picture, "--json").out)
    assert (answer["familiarity"], answer["familiar"]) == (0.01, familiar)


def test_two_pictures_are_compared(
    picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(capsys, "compare", picture, "--id", f"{KIND}/0")
    assert (run.code, run.err) == (0, "")
    score, same, different = run.out.splitlines()
    assert re.fullmatch(r"score +-?0\.\d{3}", score)
    share = r"(-|< 0\.01 %|\d+\.\d\d %)"
    assert re.fullmatch(rf"pairs of one kind that score higher +{share}", same)
    assert re.fullmatch(rf"pairs of different kinds that score higher +{share}", different)
    answer = json.loads(Run(capsys, "compare", picture, picture, "--json").out)
    assert answer["score"] == pytest.approx(1)
    assert (answer["a"], answer["b"]) == ({"image": picture}, {"image": picture})
    assert answer.keys() >= {"share_of_same_kind_above", "share_of_different_kinds_above", "model"}

    assert Run(capsys, "compare", picture).code == command.EXIT_USAGE
    run = Run(capsys, "compare", picture, picture, "--id", "x")
    assert run.code == command.EXIT_USAGE
    assert "not 3" in run.err
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    for arguments, message in (
        ((picture, str(text)), rf"{text}: .*not an image.* \[not_an_image\]"),
        ((picture, "missing.png"), "missing.png: No such file or directory"),
        ((picture, "--id", "nothing"), r".*'nothing'.* \[image_not_found\]"),
    ):
        run = Run(capsys, "compare", *arguments)
        assert (run.code, run.out) == (command.EXIT_INCOMPLETE, "")
        assert re.fullmatch(f"image-search: {message}\n", run.err, re.IGNORECASE)


def test_options_reach_the_service(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, "query", picture, "--min-score", "0.99", "--min-confidence", "0.5")
    assert (run.code, run.out) == (0, "no matches\n")
    run = Run(capsys, "query", picture, "--deduplicate", "--min-confidence", "2")
    assert run.code == command.EXIT_FAILED
    assert "min_confidence" in run.err


def test_health(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, "health")
    assert run.code == 0
    assert re.search(r"^count +64$", run.out, re.MULTILINE)
    assert json.loads(Run(capsys, "health", "--json").out)["count"] == 64


@pytest.mark.slow
def test_a_folder_is_put_and_put_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_API_KEY", SERVICE_KEY)
    folder = tmp_path / "holiday"
    (folder / "beach").mkdir(parents=True)
    for name in ("beach/1.png", "beach/2.png"):
        (folder / name).write_bytes(encode(draw(KIND, int(name[6]))))
    ids = ["2026/beach/1.png", "2026/beach/2.png"]
    try:
        run = Run(capsys, "put", "2026/", str(folder))
        assert (run.code, run.err) == (0, "")
        assert run.out == "2 images sent, 0 unchanged, 0 failed, 0 other files left out\n"
        listed = Run(capsys, "list", "--prefix", "2026/", "--json").out.splitlines()
        assert [json.loads(line)["id"] for line in listed] == ids
        (folder / "bad.png").write_bytes(b"bad")
        run = Run(capsys, "put", "2026/", str(folder), "--json")
        assert run.code == command.EXIT_INCOMPLETE
        answer = json.loads(run.out)
        assert answer.pop("errors")[str(folder / "bad.png")]["code"] == "not_an_image"
        assert answer == {"folder": str(folder), "sent": 0, "unchanged": 2, "left_out": 0}
        assert run.err.startswith(f"image-search: {folder / 'bad.png'}: ")
    finally:
        Run(capsys, "delete", *ids)
    for arguments, message in (
        (["put", str(folder), "--label", "x"], "--label and --metadata are for single images"),
        (["put", str(folder / "beach" / "1.png")], "an ID is needed, unless IMAGE is a folder"),
    ):
        run = Run(capsys, *arguments)
        assert run.code == command.EXIT_USAGE
        assert message in run.err


@pytest.mark.slow
def test_a_shell_completes_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    script = Run(capsys, "--print-completion", "bash").out

    def complete(*words: str) -> list[str]:
        typed = " ".join(f"'{word}'" for word in ("image-search", *words))
        program = (
            f"{script}\nCOMP_WORDS=({typed}); COMP_CWORD={len(words)}\n"
            "$(complete -p image-search | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n"
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert complete("co") == ["compare"]
    assert complete("query", "--top") == ["--top-k"]


def test_help_explains_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["query", "--help"]):
        run = Run(capsys, *arguments)
        assert run.code == 0
        assert "exit codes:" in run.out
        assert "IMAGE_SEARCH_API_KEY" in run.out


@pytest.mark.slow
@pytest.mark.parametrize("completes", [True, False])
def test_the_reader_may_stop_reading(picture: str, completes: bool) -> None:  # noqa: FBT001
    arguments = ["--print-completion", "bash"] if completes else ["query", *[picture] * 20]
    process = subprocess.Popen(
        [sys.executable, "-m", "image_search_client", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.wait() == 0


def test_requests_in_flight_end_before_the_client_is_closed(
    picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_flight: set[int] = set()
    at_close: list[int] = []

    def search(*_: Any, **__: Any) -> None:
        in_flight.add(threading.get_ident())
        time.sleep(0.1)
        in_flight.discard(threading.get_ident())
        raise ImageRejectedError("no answer", "not_an_image")

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "search", search)
    monkeypatch.setattr(Client, "close", lambda _: at_close.append(len(in_flight)))
    monkeypatch.setattr("builtins.print", interrupt)
    assert command.main(["query", *[picture] * 20]) == command.EXIT_INTERRUPTED
    assert at_close == [0]


@pytest.mark.slow
def test_a_full_disk_is_an_error(picture: str) -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "image_search_client", "query", picture],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert run.returncode == command.EXIT_FAILED
    assert run.stderr.count("\n") == 1
    assert "No space left" in run.stderr


# --- pictures ------------------------------------------------------------------------------------


def test_a_terminal_of_24_bit_colour_shows_pictures(picture: str) -> None:
    controller, end = pty.openpty()
    with open(controller, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            [sys.executable, "-m", "image_search_client", "query", picture, "--top-k", "2"],
            stdout=end,
            env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        )
        os.close(end)
        shown = b""
        while True:
            try:
                shown += screen.read(4096)
            except OSError:  # the other end is closed
                break
        assert process.wait() == 0
    lines = shown.decode().splitlines()
    assert all("▀" in line for line in lines[:8])
    assert lines[8].split() == ["1", KIND, "2", KIND]
    assert lines[9].startswith("#  score")


def halves(text: str) -> "np.ndarray[Any, Any]":
    """The pixels that half blocks show, uint8 [2 * lines, columns, 3]; black where empty."""
    rows: list[list[tuple[int, ...]]] = []
    for line in text.splitlines():
        upper, lower = [], []
        for codes, character in re.findall(r"\x1b\[([\d;]*)m([ ▀▄])", line):
            colours = {
                kind: tuple(map(int, numbers.split(";")))
                for kind, numbers in re.findall(r"([34]8);2;(\d+;\d+;\d+)", codes)
            }
            front = colours.get("38", (0, 0, 0))
            upper.append(front if character == "▀" else (0, 0, 0))
            lower.append(front if character == "▄" else colours.get("48", (0, 0, 0)))
        rows += [upper, lower]
    return np.array(rows, np.uint8)


def test_every_protocol_shows_the_same_pictures() -> None:
    drawn = [draw(kind, 0) for kind in sample.KINDS[:3]]
    pictures = [encode(image) for image in drawn]
    blocks = terminal.strips(pictures, "blocks", 80)
    shown = halves("\n".join(blocks.splitlines()[:8]))
    assert shown.shape == (16, 3 * 17 - 1, 3)

    iterm = terminal.strips(pictures, "iterm", 80)
    found = re.match(r"\x1b\]1337;File=inline=1;[^:]*width=50;height=8;[^:]*:([^\a]*)\a\n", iterm)
    assert found
    of_iterm = base64.b64decode(found[1])

    kitty = terminal.strips(pictures, "kitty", 80)
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty)
    assert chunks[0][0] == "a=T,f=100,q=2,c=50,r=8,m=1"
    assert [control for control, _ in chunks[1:]] == ["m=1"] * (len(chunks) - 2) + ["m=0"]
    assert max(len(chunk) for _, chunk in chunks) <= 4096
    assert base64.b64decode("".join(chunk for _, chunk in chunks)) == of_iterm

    joined = Image.open(io.BytesIO(of_iterm)).convert("RGB")
    for number, image in enumerate(drawn):
        left = number * 17
        expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC), int)
        cell = shown[:, left : left + 16].astype(int)
        assert np.abs(cell - expected).mean() < 8
        part = joined.crop((left * 10, 0, left * 10 + 160, 160)).resize((16, 16))
        assert np.abs(np.asarray(part, int) - expected).mean() < 12


def test_strips_fit_the_terminal_and_go_on_below() -> None:
    pictures = [encode(QUERY)] * 5
    lines = terminal.strips(pictures, "blocks", 40).splitlines()
    assert len(lines) == 3 * 9
    assert [lines[row].split() for row in (8, 17, 26)] == [["1", "2"], ["3", "4"], ["5"]]


@pytest.mark.slow
def test_lines_of_json_are_as_documented(
    picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_API_KEY", SERVICE_KEY)
    page = (ROOT / "docs" / "how-to" / "search.md").read_text()
    rows = re.findall(r"^\| `(\w+)`([^|]*)\| ([^|]+) \| ([^|]*)\|$", page, re.MULTILINE)
    documented = {
        f"{name}{rest}".strip(): set(re.findall("`(\\w+)`", text)) for name, rest, _, text in rows
    }
    image = f"{KIND}/0"

    def fields(*arguments: str) -> set[str]:
        line = Run(capsys, *arguments, "--json").out.splitlines()[0]
        assert line.isascii()
        return set(json.loads(line))

    (tmp_path / "empty").mkdir()
    queried = (
        fields("query", picture) | fields("query", "missing.png") | fields("query", "--id", image)
    )
    assert queried | {"url", "code", "detail"} == documented["query"]
    assert fields("list") == documented["list"]
    groups = fields("duplicates", "--threshold", "0.01")
    assert groups | {"id", "label", "score"} == documented["duplicates"]
    compared = fields("compare", picture, "--id", image)
    assert compared | {"image", "url", "id"} == documented["compare"]
    try:
        assert fields("put", "new/1", picture) == documented["put with an image"]
    finally:
        assert Run(capsys, "delete", "new/1", "--json").out == ""
    put = fields("put", str(tmp_path / "empty"))
    assert put | {"code", "detail"} == documented["put with a folder"]
    assert documented.keys() >= {"delete", "labels", "health"}


def test_captions_are_as_wide_as_pictures() -> None:
    captions = ["0:12 cat", "a label that is longer", "花" * 12, "\x1b[2Jx"]
    pictures = [encode(QUERY)] * 4
    line = terminal.strips(pictures, "blocks", 80, captions).splitlines()[8]
    assert "\x1b" not in line
    assert line.split("  ")[-1] != ""
    cells = ["1  0:12 cat".center(16), "2  a label that…", f"3  {'花' * 6}…"]
    assert line.startswith(" ".join(cells))
    assert line.endswith(r"4  \x1b[2Jx".center(16).rstrip())


def test_what_is_no_picture_stays_empty() -> None:
    assert not halves("\n".join(terminal.strips([None, b"x"], "blocks", 80).split("\n")[:8])).any()


@pytest.mark.parametrize(
    ("environ", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "tmux-256color", "LC_TERMINAL": "iTerm2", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "xterm-256color", "COLORTERM": "24bit"}, "blocks"),
        ({"TERM": "xterm-256color"}, None),
        ({}, None),
    ],
)
def test_terminals_are_known_by_what_they_say(
    environ: dict[str, str], protocol: str | None
) -> None:
    assert terminal.picture_protocol(environ) == protocol


def test_tables_are_aligned_also_with_wide_characters() -> None:
    lines = terminal.table([("a", "猫", "x"), ("12", "e\u0301", "\x1b[2J")], right=(0,))
    assert lines.splitlines() == [" a  猫  x", "12  e\u0301   \\x1b[2J"]


def test_images_are_listed_in_a_table_and_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, "list", "--label", KIND, "--sort=-seed", "--limit", "3")
    assert run.code == 0
    header, *rows = run.out.splitlines()
    assert header.split() == ["label", "taken", "id"]
    assert [row.split() for row in rows] == [[KIND, "-", f"{KIND}/{seed}"] for seed in (7, 6, 5)]
    assert run.err == "image-search: the first 3; --limit 0 lists all\n"
    run = Run(capsys, "list", "--filter", '{"seed": {"$gte": 6}}', "--limit", "0", "--json")
    lines = [json.loads(line) for line in run.out.splitlines()]
    assert [(line["label"], line["metadata"]["seed"]) for line in lines] == [
        (kind, seed) for kind in sorted(sample.KINDS[:8]) for seed in (6, 7)
    ]
    run = Run(capsys, "list", "--words", f"{KIND.upper()} 3")
    assert [row.split()[-1] for row in run.out.splitlines()[1:]] == [f"{KIND}/3"]
    run = Run(capsys, "list", "--prefix", f"{KIND}/", "--words", "nothing")
    assert (run.code, run.out, run.err) == (0, "no images\n", "")
    run = Run(capsys, "list", "--label", KIND[:-1])
    assert (run.code, run.out) == (0, "no images\n")
    assert f"did you mean '{KIND}'?" in run.err
    assert Run(capsys, "list", "--limit", "-1").code == 2
    assert Run(capsys, "list", "--filter", '{"a": {"$near": 1}}').code == 1


@pytest.mark.slow
def test_near_duplicates_are_printed_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, "duplicates", "--label", KIND, "--threshold", "0.01", "--json")
    groups = [json.loads(line) for line in run.out.splitlines()]
    assert [group["group"] for group in groups] == [*range(1, len(groups) + 1)]
    run = Run(capsys, "duplicates", "--label", KIND, "--threshold", "0.01")
    assert run.code == 0
    assert run.out.startswith(f"group 1: {len(groups[0]['images'])} images\nscore  label")
    for image in groups[0]["images"]:
        assert f"{image['score']:.3f}  {KIND}" in run.out
        assert image["id"] in run.out
    run = Run(capsys, "duplicates", "--label", KIND, "--threshold", "1")
    assert (run.code, run.out) == (0, "no near-duplicates\n")
    assert Run(capsys, "duplicates", "--threshold", "2").code == 2


def test_a_listed_name_and_date_are_readable(
    service_url: str, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(service_url, api_key=SERVICE_KEY) as client:
        for id_, taken in (("%C3%A9t%C3%A9-2.jpg", 1720980202), ("%E5%AF%BA.jpg", 10**15)):
            client.put_image(id_, picture, metadata={"taken": taken})
        try:
            run = Run(capsys, "list", "--filter", '{"taken": {"$gte": "2024-07-14"}}')
        finally:
            for id_ in ("%C3%A9t%C3%A9-2.jpg", "%E5%AF%BA.jpg"):
                client.delete_image(id_)
    lines = run.out.splitlines()[1:]
    assert [line.split() for line in lines] == [
        ["-", "2024-07-14", "18:03", "été-2.jpg"],
        ["-", "-", "寺.jpg"],
    ]
