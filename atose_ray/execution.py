"""How a run is executed: device, precision, memory, graphs, and how often it is saved."""

from typing import Literal

from pydantic import Field

from atose_ray.types import Config, Duration


class ExecutionConfig(Config):
    """How a run is executed: changes its speed, and no part of its identity but a precision that is named.

    ingest: `local` reads shards in the training process, `ray_data` streams them through Ray Data.
    precision: what encoders compute in (weights, heads, losses and optimizers are float32 in any case). `auto` is
        bfloat16 on GPUs that have it and on CPUs with AMX or AVX512-BF16, else float32; about.json says which.
    channels_last: the memory layout of 2-D convolutions; only speed depends on it.
    compile: torch.compile the encoder while it trains: a minute or more at the start, less time per step. `auto`
        does where that pays, as measured in the run (training/compiling.py); a clock decides, so of two runs of one
        configuration one may round differently, but a run that goes on does as it did.
    checkpoint_every: a time such as `10min` or `30s`: within an epoch, a run that is cut short loses no more.
    cuda_graphs: replay whole steps, and inference, as CUDA graphs (training/graphs.py). `auto` is where it can: on a
        GPU, in a run of one process. Where a step cannot be recorded, the run says why and goes on without.
    deterministic: on a GPU take only kernels that give the same bits every time, where PyTorch has one (it warns where
        it has none). Slower. On a CPU that is so in any case.
    keep_epochs: the weights of so many last epochs stay in the run folder and in the model folder, for `evaluate
        --average`, which averages their probabilities as the systems on AudioSet do: Kong et al. those of iterations
        10,000 to 50,000, every 5,000th, Yu et al. of 1,000 to 55,000, every 1,000th (batches of 500: an epoch has some
        4,100 of them). The training is the same."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1, le=1024)
    eval_batch_size: int = Field(default=64, ge=1, le=65_536)
    ingest: Literal["local", "ray_data"] = "local"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: bool = True
    compile: Literal["auto"] | bool = False
    cuda_graphs: Literal["auto"] | bool = "auto"
    deterministic: bool = False
    checkpoint_every: Duration = "10min"
    keep_epochs: int = Field(default=0, ge=0, le=100)
