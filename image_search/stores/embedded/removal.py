"""Removing generations of an index that are no longer in use."""

from collections.abc import Iterator

from image_search.errors import IndexMismatchError
from image_search.stores.embedded import table as tables
from image_search.stores.embedded.files import IndexFiles


def remove_former(files: IndexFiles) -> bool:
    """Remove what is no longer in use where nobody reads it; returns whether nothing is left."""
    left = False
    for former in files.in_use().former():
        with former.errors(), former.if_unread() as unread:
            if unread:
                remove(former)
            else:
                left = True
    return not left


def remove(files: IndexFiles) -> None:
    """Remove a generation, and its recipe where no other one has it."""
    recipe = _recipe_of(files)
    if recipe and recipe not in {_recipe_of(other) for other in _all_in(files) if other != files}:
        files.remove_recipe(recipe)
    files.remove()


def _all_in(files: IndexFiles) -> Iterator[IndexFiles]:
    for used in files.namespaces():
        yield from (used, *used.former(), used.next())


def _recipe_of(files: IndexFiles) -> str:
    """The fingerprint of its recipe; empty where it has none, or is removed in part already."""
    try:
        table = tables.connect(files).open_table(files.name)
        return tables.parse_manifest(tables.manifest_json(table), files).model.recipe_fingerprint
    except (OSError, RuntimeError, ValueError, IndexMismatchError):
        return ""
