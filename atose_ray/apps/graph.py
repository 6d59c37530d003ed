"""A model as one graph, from audio to scores and embedding, for runtimes that know nothing of us: ONNX, torch.export.

The front end is in the graph. All are exported as they are (STFT and DFT are operators of ONNX) but for that of
TagSincNet, whose convolution by FFT is an autograd function of complex numbers: it becomes the plain convolution that
it equals, with a kernel that is computed once. A graph takes crops of the length that the model was trained on, any
number of them at a time, and computes in float32."""

import copy
import importlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from atose_ray.audio.sinc import compose, direct_conv
from atose_ray.encoders.tag_sinc_net import SincStem, TagSincNet
from atose_ray.methods import Method
from atose_ray.training.checkpoint import Model
from atose_ray.types import Array, AudioInput, Batch, TagSet

TOLERANCE = 1e-4  # between a graph and the model, of scores and of embeddings whose largest number is above 1
NEEDS = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUTS = "inputs", ("scores", "embedding")


class Graph(nn.Module):
    """[B, T] audio, or [B, F, M] frames -> scores [B, C] of the model's own tags, embedding [B, E]."""

    def __init__(self, model: Model, method: Method) -> None:
        super().__init__()
        self.method, self.stage, self.tags = method, model.stage, TagSet(model.spec.tags)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        clips = inputs.shape[0]
        unknown_BC, unknown_B = inputs.new_zeros(clips, len(self.tags.names)), inputs.new_zeros(clips, dtype=torch.long)
        embedded = self.method.embed(Batch(inputs, unknown_BC, unknown_B))
        return self.method.score(embedded, self.tags, self.stage), embedded.embed_BE


class PlainSincStem(nn.Module):
    """`SincStem` for one bank: a plain convolution of all its taps. [B, T] -> [B, C, 1, (T + L - 1) // 3]."""

    kernel_CL: torch.Tensor

    def __init__(self, stem: SincStem, bank_SL: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("kernel_CL", compose(bank_SL, stem.conv.weight).detach())
        self.bias, self.bn, self.zeros = stem.conv.bias, stem.bn, bank_SL.shape[1] - 1

    def forward(self, audio_BT: torch.Tensor, bank_SL: torch.Tensor) -> torch.Tensor:
        assert self.bias is not None
        padded_BT = functional.pad(audio_BT, (self.zeros, self.zeros))
        return functional.relu(self.bn(direct_conv(padded_BT, self.kernel_CL, self.bias)[:, :, None]))


def graph_of(model: Model, plain: bool = True) -> Graph:
    """The model as a graph, in float32 on the CPU. plain: in operators that can be exported; else as it computes."""
    method = copy.deepcopy(model.method).cpu().eval()
    encoder = method.encoder
    encoder.autocast_dtype, encoder.replay = None, None
    if plain and isinstance(encoder, TagSincNet):
        stem = encoder.stem
        assert isinstance(stem, SincStem)
        encoder.stem = PlainSincStem(stem, encoder.sinc())
    return Graph(model, method).eval().requires_grad_(False)


def metadata_of(model: Model) -> dict[str, str]:
    """What a caller must know: JSON of the tags, of the input, and of how recordings become crops."""
    spec, run = model.spec, model.run
    audio = isinstance(spec.input, AudioInput)
    facts: dict[str, Any] = {
        "tags": list(spec.tags),
        "exclusive": spec.exclusive,
        "input": spec.input.model_dump(),
        "peak_normalize": spec.peak_normalize,  # of the whole recording, before it is cut
        "eval_crops": run.data.eval_crops,
        "encoder": run.encoder.kind,
        "method": run.method.kind,
        "stage": model.stage,
        "thresholds": model.metrics.get("thresholds", {}),
        **({"sample_rate": spec.audio.sample_rate_hz, "samples": spec.input.length} if audio else {}),
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in facts.items()
    }


@torch.no_grad()
def program_of(model: Model) -> torch.export.ExportedProgram:
    """The graph as torch.export has it, with any number of crops."""
    example = 0.1 * torch.randn(2, *model.spec.input.shape, generator=torch.Generator().manual_seed(0))
    shapes = {INPUT: {0: torch.export.Dim("batch")}}
    with quiet():
        return torch.export.export(graph_of(model), (example,), dynamic_shapes=shapes)


def torch_export(model: Model) -> bytes:
    """A .pt2 file: torch.export.load(FILE).module()(inputs); the metadata lie in it as metadata.json."""
    content = io.BytesIO()
    torch.export.save(program_of(model), content, extra_files={"metadata.json": json.dumps(metadata_of(model))})
    return content.getvalue()


def onnx_export(model: Model) -> bytes:
    """An .onnx file with the metadata as its properties. Raises ValueError without the packages for it."""
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise ValueError(f"export to onnx needs {', '.join(missing)}; install them: pip install 'atose_ray[onnx]'")
    program = program_of(model)
    with quiet():
        made = torch.onnx.export(program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[*OUTPUTS])
    assert made is not None
    proto = made.model_proto
    for key, value in metadata_of(model).items():
        proto.metadata_props.add(key=key, value=value)
    return bytes(proto.SerializeToString())


@torch.no_grad()
def difference(model: Model, content: bytes, kind: str, inputs: Array) -> float:
    """How far an exported file is from the model on some crops: of the scores, and of the embedding in units of its
    largest number where that is above 1, whichever is farther."""
    wanted = [one.numpy() for one in graph_of(model, plain=False)(torch.from_numpy(inputs))]
    found = run(content, kind, inputs)
    scales = (1.0, max(1.0, float(np.abs(wanted[1]).max())))
    return max(float(np.abs(a - b).max()) / scale for a, b, scale in zip(found, wanted, scales, strict=True))


def run(content: bytes, kind: str, inputs: Array) -> list[Array]:
    """Scores and embedding of some crops by an exported file."""
    if kind == "torch_export":
        program = torch.export.load(io.BytesIO(content))
        return [one.numpy() for one in program.module()(torch.from_numpy(inputs))]
    return [np.asarray(one) for one in session_of(content).run(list(OUTPUTS), {INPUT: inputs})]


def session_of(content: bytes, threads: int = 1) -> Any:
    """onnxruntime on the CPU."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporter says of packages that are not needed here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


EXPORTS = {"onnx": ("model.onnx", onnx_export), "torch_export": ("model.pt2", torch_export)}
