"""The obvious way: FastAPI around the engine and FAISS, all in memory, and nothing besides.

Images are embedded one by one, behind a lock. Nothing is durable, nothing is filtered, and nothing
has a limit. `benchmarks.searches` serves it beside the service, from the same index.
"""

import base64
import threading
from typing import Any

import faiss
import numpy as np
from fastapi import FastAPI, UploadFile
from PIL import Image

from benchmarks.measure import normalised
from image_search.embedding import Embedder
from image_search.settings import load_settings
from image_search.stores import open_index

NEIGHBOURS = 32
EF_SEARCH = 64

with open_index(load_settings()) as index:
    model, maxima = index.manifest.model, index.manifest.activation_maxima
    embedder = Embedder.load(model.weights, model.input_size, maxima, index.load_recipe())
    records = list(index.fetch(list(index.ids())).values())
rows = [(each.id, each.label, base64.b64encode(each.thumbnail).decode()) for each in records]
graph = faiss.IndexHNSWFlat(records[0].embedding.size, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
graph.add(normalised(np.stack([each.embedding for each in records])))
graph.hnsw.efSearch = EF_SEARCH
lock = threading.Lock()
app = FastAPI()


@app.post("/search")
def search(image: UploadFile, top_k: int = 10) -> dict[str, Any]:
    """The most similar images, best first."""
    pixels = embedder.pixels(Image.open(image.file).convert("RGB"))
    with lock:
        embedding = embedder.embed(pixels[np.newaxis])
    [scores], [found] = graph.search(normalised(embedding), top_k)
    return {
        "matches": [
            {"id": id_, "label": label, "score": score, "thumbnail": thumbnail}
            for score, (id_, label, thumbnail) in zip(
                scores.tolist(), (rows[number] for number in found), strict=True
            )
        ]
    }
