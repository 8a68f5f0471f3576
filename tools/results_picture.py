"""Draw queries beside their matches, as the running service answers them.

usage: python tools/results_picture.py OUT.png IMAGE… [--url http://127.0.0.1:8000]
"""

import argparse
import base64
import io
from pathlib import Path

import httpx2
from PIL import Image, ImageDraw

MATCHES = 8
CELL = 96
CAPTION = 16
GAP = 6


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    arguments = parser.parse_args()
    width = (MATCHES + 1) * (CELL + GAP) + 4 * GAP
    picture = Image.new("RGB", (width, len(arguments.images) * (CELL + CAPTION + GAP)), "white")
    pen = ImageDraw.Draw(picture)
    for row, path in enumerate(arguments.images):
        top = row * (CELL + CAPTION + GAP)
        response = httpx2.post(
            f"{arguments.url}/search",
            params={"top_k": MATCHES},
            files={"image": path.read_bytes()},
        )
        cells = [("query", path.read_bytes())]
        for match in response.raise_for_status().json()["matches"]:
            thumbnail = base64.b64decode(match["thumbnail"].partition(",")[2])
            cells.append((f"{match['label']} {match['score']:.2f}", thumbnail))
        for column, (caption, content) in enumerate(cells):
            left = column * (CELL + GAP) + (4 * GAP if column else 0)
            with Image.open(io.BytesIO(content)) as image:
                picture.paste(image.convert("RGB").resize((CELL, CELL)), (left, top))
            pen.text((left + 2, top + CELL + 2), caption, fill="black")
    picture.save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
