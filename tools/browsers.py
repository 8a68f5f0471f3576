"""Browsers that are installed, for the page's tests and pictures; none is downloaded."""

import shutil
from typing import Final

from playwright.sync_api import Browser, Playwright

_CHROMIUM: Final = ("chromium", "chromium-browser")
_FIREFOX: Final = ("firefox-esr", "firefox")
_QUIET: Final = ("--no-first-run", "--disable-background-networking", "--disable-component-update")


def open_browser(playwright: Playwright, name: str, *, dark: bool = False) -> Browser | None:
    """Start `chromium` or `firefox`, without a window; None if it is not installed.

    Pages of Firefox see the scheme that is chosen here; Chromium's, that of their context.
    """
    for program in map(shutil.which, _FIREFOX if name == "firefox" else _CHROMIUM):
        if program is None:
            continue
        if name == "firefox":
            # As it is, over WebDriver BiDi, and not Playwright's own build.
            return playwright.firefox.launch(
                channel="moz-firefox",
                executable_path=program,
                firefox_user_prefs={
                    "layout.css.prefers-color-scheme.content-override": int(not dark)
                },
            )
        return playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu", *_QUIET]
        )
    return None
