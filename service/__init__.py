"""The REST service: upload a picture, get the most similar images of the index."""
