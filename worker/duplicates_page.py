"""Near-duplicates as one HTML file of pictures."""

from itertools import islice
from pathlib import Path

from image_search.errors import SettingsError
from image_search.index import VectorIndex
from worker.duplicates import MOST_SHOWN, Duplicates, summary
from worker.pages import environment, made


def check_page(path: Path) -> None:
    """Raise SettingsError, before work begins, where the page could not be written."""
    if path.is_dir() or not path.parent.is_dir():
        raise SettingsError(
            f"the page cannot be written to {path}: name a file in a folder that exists"
        )


def write_page(found: Duplicates, index: VectorIndex, name: str, path: Path, most: int) -> None:
    """Write the first `most` groups, and the first 50 images of each, with their thumbnails.

    `name` is that of the index. Raises SettingsError when it cannot be written, and StoreError.
    """
    shown = list(islice(found.groups, most))
    ids = [image.id for group in shown for image in group[:MOST_SHOWN]]
    thumbnails: dict[str, bytes] = {}
    for start in range(0, len(ids), 1000):
        records = index.fetch(ids[start : start + 1000]).values()
        thumbnails |= {record.id: record.thumbnail for record in records}
    html = (
        environment()
        .get_template("duplicates.html")
        .render(
            groups=shown,
            most_shown=MOST_SHOWN,
            thumbnails=thumbnails,
            summary=list(summary(found, most)),
            name=name,
            made=made(),
        )
    )
    try:
        path.write_text(html, encoding="utf-8")
    except OSError as exc:
        raise SettingsError(f"the page cannot be written to {path}: {exc.strerror or exc}") from exc
