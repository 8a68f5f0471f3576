"""The ingestion worker: reads images, embeds them in batches, upserts them into the index."""
