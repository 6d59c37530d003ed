"""The file system behind a store's URI, patient with a network that has its moments.

pyarrow's clients are the fast ones and the default. What only Python's can do (single sign-on profiles, requester-pays
buckets, Azure, SFTP) goes through fsspec: `fsspec+s3://bucket/prefix` is s3fs, whose options come from the environment
(`FSSPEC_S3_REQUESTER_PAYS=true`).
"""

import os
import urllib.parse
from collections.abc import Mapping
from typing import Any

import fsspec
import pyarrow.fs as pafs

S3_ATTEMPTS, S3_CONNECT_S, S3_REQUEST_S = 5, 10.0, 30.0
FSSPEC = "fsspec+"


def open_file_system(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI or an absolute path, and the path there.

    Raises ValueError, OSError or pyarrow's own errors where there is none.
    """
    if uri.startswith(FSSPEC):
        return open_fsspec(uri)
    uri = with_endpoint(uri)
    fs, path = pafs.FileSystem.from_uri(uri)
    return patient(fs, uri), path


def with_endpoint(uri: str) -> str:
    """An s3:// URI with the endpoint of AWS_ENDPOINT_URL_S3, which pyarrow does not read (it does AWS_ENDPOINT_URL)."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3")
    if not endpoint or not uri.startswith("s3://") or "endpoint_override=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}endpoint_override={urllib.parse.quote(endpoint, safe='')}"


def patient(fs: pafs.FileSystem, uri: str) -> pafs.FileSystem:
    """S3 with more tries (exponential back-off between them) and a limit on how long one may take; others unchanged.

    A URI with options beside region, endpoint and scheme is left to pyarrow's own three tries.
    """
    parts = urllib.parse.urlsplit(uri)
    query = dict(urllib.parse.parse_qsl(parts.query))
    known = {"region", "endpoint_override", "scheme"}
    if not isinstance(fs, pafs.S3FileSystem) or parts.username or set(query) - known:
        return fs
    endpoint = query.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL")  # the latter read by from_uri only
    scheme, mark, address = (endpoint or "").rpartition("://")
    return pafs.S3FileSystem(
        region=fs.region,
        endpoint_override=address or None,
        scheme=scheme if mark else query.get("scheme"),
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
        connect_timeout=S3_CONNECT_S,
        request_timeout=S3_REQUEST_S,
    )


class FsspecHandler(pafs.FSSpecHandler):  # type: ignore[misc]
    """pyarrow's view of an fsspec client, with the time of a file by the names that the clients give it."""

    @staticmethod
    def _create_file_info(path: str, info: Mapping[str, Any]) -> pafs.FileInfo:
        times = (info.get(name) for name in ("mtime", "LastModified", "last_modified", "updated", "modified"))
        return pafs.FSSpecHandler._create_file_info(path, {**info, "mtime": next(filter(None, times), None)})


def open_fsspec(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system and the path of `fsspec+<protocol>://...`, without a cache of listings: others write there too.

    Raises ValueError when the client is not installed, or for options in the URI.
    """
    if "?" in uri:
        raise ValueError("options do not stand in the URI here; set FSSPEC_<PROTOCOL>_<OPTION> in the environment")
    try:
        client, path = fsspec.url_to_fs(urllib.parse.unquote(uri.removeprefix(FSSPEC)), use_listings_cache=False)
    except ImportError as error:
        raise ValueError(str(error)) from error
    return pafs.PyFileSystem(FsspecHandler(client)), path
