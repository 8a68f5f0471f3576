"""Draw the page's icons from its favicon: what systems show if the page is installed.

usage: python -m tools.icons
"""

import io
import re
import sys
from pathlib import Path
from typing import Final

from PIL import Image
from playwright.sync_api import sync_playwright

from tools.browsers import open_browser

WEB: Final = Path(__file__).resolve().parents[1] / "service" / "web"
SIDES: Final = (192, 512)
_COLOURS: Final = 32
# Systems cut icons to their own shapes, and leave at least a circle of four fifths of the width. So
# the favicon, 32 wide, is drawn smaller, on a ground that reaches to the edges.
_VIEW: Final = "-3 -3 38 38"


def main() -> int:
    favicon = (WEB / "favicon.svg").read_text()
    ground = re.sub(
        r'width="32" height="32" rx="8"', 'x="-3" y="-3" width="38" height="38"', favicon
    )
    drawing = ground.replace("0 0 32 32", _VIEW)
    with sync_playwright() as playwright:
        browser = open_browser(playwright, "chromium")
        if browser is None:
            print("error: Chromium is not installed", file=sys.stderr)
            return 1
        for side in SIDES:
            page = browser.new_page(viewport={"width": side, "height": side})
            page.set_content(f"<style>body, svg {{ margin: 0; display: block }}</style>{drawing}")
            with Image.open(io.BytesIO(page.screenshot())) as image:
                few = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
            few.save(WEB / f"icon-{side}.png", optimize=True)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
