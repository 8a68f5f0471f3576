"""Write the reference of the commands from their parsers.

usage: python -m tools.cli_reference
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import service.__main__
import worker.__main__
from image_search_client import command

TARGET: Final = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli.md"

_HEAD: Final = """\
# Commands

<!-- Made by `python -m tools.cli_reference` from the programs' own help: change it there. -->

In a checkout, run the programs from its environment: `.venv/bin/python -m worker`,
`.venv/bin/python -m service` and `.venv/bin/image-search`. `--help` prints what is on this page.

To have them as commands anywhere, install them from the checkout, with `uv tool install` or
`pipx install`:

```sh
uv tool install '.[service,video]'    # image-search-worker and image-search-service
uv tool install ./client              # image-search
```

`image-search-worker` is `python -m worker`, and `image-search-service` is `python -m service`, with
the same options. Both keep the index in the folder `data` where they are run, unless
`IMAGE_SEARCH_DATA_DIR` is set.
"""


def generate() -> str:
    """The text of the page: a section for each program and each of its commands."""
    parts = [_HEAD]
    for parser in (worker.__main__.make_parser(), service.__main__.make_parser()):
        parts += _sections(parser, None)
    parts += _sections(command.make_parser(), None)
    return "\n".join(parts)


def _sections(parser: argparse.ArgumentParser, parent: argparse.ArgumentParser | None) -> list[str]:
    parts = [f"## {parser.prog}\n" if parent is None else f"### {parser.prog}\n"]
    parts += _prose(parser.description or "")
    commands = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    own = [each for each in parser._actions if each not in commands]
    parts.append(f"```text\n{_usage(parser, own, commands=bool(commands))}\n```\n")
    own.sort(key=lambda action: bool(action.option_strings))
    rows = [row for action in own for row in _rows(parser, action)]
    if rows:
        parts.append("| argument | meaning |\n|---|---|\n" + "\n".join(rows) + "\n")
    epilog = (parser.epilog or "").strip()
    if epilog and not (parent and epilog in (parent.epilog or "")):
        parts.append(f"```text\n{epilog}\n```\n")
    for action in commands:
        for subparser in action.choices.values():
            parts += _sections(subparser, parser)
    return parts


def _prose(description: str) -> Iterator[str]:
    """Paragraphs as one line each; what is indented, as it is."""
    for paragraph in description.split("\n\n"):
        lines = paragraph.splitlines()
        prose = [line for line in lines if not line.startswith(" ")]
        yield " ".join(prose) + "\n"
        if indented := [line.removeprefix("  ") for line in lines if line.startswith(" ")]:
            yield "```text\n" + "\n".join(indented) + "\n```\n"


def _usage(
    parser: argparse.ArgumentParser, actions: list[argparse.Action], *, commands: bool
) -> str:
    # Not argparse's own line, which differs between versions of Python.
    options = " [OPTIONS]" if any(action.option_strings for action in actions) else ""
    names = [
        {"?": f" [{name}]", "*": f" [{name} …]", "+": f" {name} [{name} …]"}.get(
            str(action.nargs), f" {name}"
        )
        for action in actions
        if not action.option_strings
        for name in [str(action.metavar or action.dest)]
    ]
    return f"{parser.prog}{options}{' COMMAND' if commands else ''}{''.join(names)}"


def _rows(parser: argparse.ArgumentParser, action: argparse.Action) -> Iterator[str]:
    if isinstance(action, argparse._HelpAction):
        return
    value = action.metavar
    if value is None and action.choices is not None:
        value = f"{{{','.join(map(str, action.choices))}}}"
    if not action.option_strings:
        name = str(value or action.dest)
    elif action.nargs == 0:
        name = ", ".join(action.option_strings)
    else:
        shown = f"[{value}]" if action.nargs == "?" else value
        name = f"{', '.join(action.option_strings)} {shown}"
    meaning = (action.help or "") % {**vars(action), "prog": parser.prog}
    yield f"| `{name}` | {_cell(meaning)} |"


def _cell(text: str) -> str:
    return re.sub(r"([|*_<])", r"\\\1", text)


if __name__ == "__main__":
    TARGET.write_text(generate())
