"""Parquet shards: written once by `prepare`, read by every training."""
