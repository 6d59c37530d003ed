"""Where things live: one resolver for paths, s3://, gs:// and fsspec, and one lease for a folder."""

from atose_ray.storage.store import (
    SPOOL_BYTES,
    FileStamp,
    Store,
    StoreError,
    default_store_uri,
    folder_of,
    is_uri,
    read_uri,
)

__all__ = ["SPOOL_BYTES", "FileStamp", "Store", "StoreError", "default_store_uri", "folder_of", "is_uri", "read_uri"]
