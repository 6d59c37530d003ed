"""What a service allows, how it is spread, and how it refuses. One place for every limit."""

from pydantic import Field

from atose_ray.types import Config

TOKEN_VARIABLE = "ATOSE_SERVE_TOKEN"


class Wrong(Exception):
    """A request that cannot be answered, with its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ServiceConfig(Config):
    """Limits of a request:
    max_mib: of an upload, and of a stored sound. max_seconds: of a sound. upload_s: that an upload may take.
    request_s: that an answer may take. per_minute: requests of a client (by its address; of each process that serves
    HTTP). max_open: requests at a time, uploads included; more are told to come again. In memory are at most
    max_open * 2 * max_mib of uploads, and of each thread 16 bytes a sample that is decoded.

    How it computes:
    threads: requests at a time of a replica. batch: crops of several requests that are computed together; 0 is each for
    itself. batch_wait_ms: that crops wait for others. device: cpu or cuda. replicas, cpus, gpus: of Ray Serve; cpus and
    gpus are of a replica, and may be fractions.

    What else there is: sounds: a folder (path, s3://, gs://) whose sounds a request may name instead of sending one.
    index: what `find index` made with one of the models; its sounds are searched by words and by sound, and played.
    In memory are 4 bytes a number of its embeddings. None is none."""

    max_mib: float = Field(default=32.0, gt=0)
    max_seconds: float = Field(default=900.0, gt=0)
    upload_s: float = Field(default=60.0, gt=0)
    request_s: float = Field(default=120.0, gt=0)
    per_minute: int = Field(default=600, ge=1)
    max_open: int = Field(default=32, ge=1)
    threads: int = Field(default=8, ge=1)
    batch: int = Field(default=32, ge=0)
    batch_wait_ms: float = Field(default=5.0, ge=0)
    device: str = "cpu"
    replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    sounds: str | None = None
    index: str | None = None

    @property
    def max_bytes(self) -> int:
        """Of a sound as it is stored."""
        return int(self.max_mib * (1 << 20))
