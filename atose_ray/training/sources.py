"""What a run depends on beside its data: a trained encoder, the weights it begins with, tag vectors. `resolve`
(training/run.py) looks them up, each with a hash; a training loads what was found then, or says that it is gone."""

import dataclasses
import fnmatch
import hashlib
import io
import pickle
import zipfile
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn

from atose_ray.config import ConfigError, InitFrom, RunConfig, explain
from atose_ray.data.shards import Manifest
from atose_ray.data.views import View
from atose_ray.methods import Method
from atose_ray.objectives import TaggingLoss
from atose_ray.storage import Store, StoreError, folder_of, read_uri
from atose_ray.tags.vectors import TagVectorsConfig
from atose_ray.training.checkpoint import WEIGHTS, Model
from atose_ray.types import DataSpec, TagSet

VECTORS = "tag_vectors"  # folder of a store: what was resolved, by hash
TENSOR_FILES = (".safetensors", ".pt", ".pth", ".npz")


def from_model(run: RunConfig, uri: str, spec: DataSpec) -> RunConfig:
    """The run with the encoder of a model folder: its config, its crop, and its weights to begin with."""
    try:
        model = RunConfig.model_validate_json(read_uri(f"{uri}/config.json"))
        trained = DataSpec.model_validate_json(read_uri(f"{uri}/data_spec.json"))
    except FileNotFoundError as error:
        raise ConfigError(f"encoder.model {uri} is not a model folder: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"encoder.model {uri} was written by another version: {explain(error, uri)}") from error
    if trained.input.kind != spec.input.kind or trained.input.rate_hz != spec.input.rate_hz:
        raise ConfigError(
            f"the encoder of {uri} was trained on {trained.input.kind} at {trained.input.rate_hz:g} Hz, but the data "
            f"set holds {spec.input.kind} at {spec.input.rate_hz:g} Hz; prepare it at that rate"
        )
    seconds = run.data.crop_seconds
    if seconds not in (None, "published", model.data.crop_seconds):
        raise ConfigError(
            f"the encoder of {uri} was trained on crops of {model.data.crop_seconds} s, but data.crop_seconds is "
            f"{seconds}; leave it out"
        )
    init = run.init_from or InitFrom(uri=uri)
    data = run.data.model_copy(update={"crop_seconds": model.data.crop_seconds})
    return run.model_copy(update={"encoder": model.encoder, "data": data, "init_from": init})


def weigh_tags(method: Method, manifest: Manifest) -> None:
    """Tell the method's tagging loss, where it has one, how many clips of the train split carry every tag."""
    loss, spec = getattr(method, "tagging_loss", None), manifest.data_spec
    if isinstance(loss, TaggingLoss):
        loss.weigh([manifest.tag_counts[tag].get("train", 0) for tag in spec.tags], spec.counts.get("train", 0))


def with_hash(init: InitFrom) -> InitFrom:
    """`init` with the hash of its file. Raises ConfigError when it has another one than it was resolved with."""
    return init.model_copy(update={"sha256": _weights(init)[1]})


def _weights(init: InitFrom) -> tuple[list[bytes], str]:
    """The files and their hash, which is held against the one that `init` was resolved with."""
    uri = init.uri if init.uri.partition("?")[0].endswith(TENSOR_FILES) else f"{init.uri}/{WEIGHTS}"
    try:
        contents = [read_uri(one) for one in files_of(uri)]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"init_from.uri is a model folder or a file of tensors ({', '.join(TENSOR_FILES)}), but got "
            f"{init.uri}: {error}"
        ) from error
    digest = hashlib.sha256(b"".join(contents)).hexdigest()[:16]
    if init.sha256 not in (None, digest):
        raise ConfigError(
            f"init_from {init.uri} holds other weights than this run was resolved with ({digest}, not {init.sha256}); "
            "bring the file back, or leave init_from.sha256 out to train from the new ones"
        )
    return contents, digest


def files_of(uri: str) -> list[str]:
    """A file, or those of a folder that a name with `*` fits, as checkpoints are published in parts; sorted. Raises
    FileNotFoundError where none does."""
    folder, name = folder_of(uri)
    if "*" not in name:
        return [uri]
    folder = folder or "."
    found = fnmatch.filter(Store(folder).names(), name)
    if not found:
        raise FileNotFoundError(f"no file fits {uri}")
    return [Store(folder).uri_of(one) for one in found]


def begin_with(method: Method, init: InitFrom) -> None:
    """Load the weights into the method's parts, in place. Raises ConfigError where they do not fit."""
    contents, _ = _weights(init)
    if init.uri.partition("?")[0].endswith(TENSOR_FILES):
        found = {key: value for content in contents for key, value in read_tensors(init, content).items()}
        tensors = method.from_published(found)
        wanted = tuple(dict.fromkeys(key.partition(".")[0] for key in tensors)) or ("encoder",)
    else:
        tensors, wanted = load_tensors(contents[0]), init.parts
    children: dict[str, nn.Module] = dict(method.named_children())
    for part in wanted:
        own = {key.removeprefix(f"{part}."): value for key, value in tensors.items() if key.startswith(f"{part}.")}
        if part not in children or not own:
            raise ConfigError(f"init_from {init.uri} has no part {part!r} for the {', '.join(children)} of this method")
        try:
            children[part].load_state_dict(own)
        except RuntimeError as error:
            raise ConfigError(f"init_from {init.uri} does not fit the {part} of this run: {error}") from error


def read_tensors(init: InitFrom, content: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a file by name, without `init.prefix`. Nothing is unpickled but tensors. Raises ConfigError."""
    try:
        found: dict[str, Any]
        if init.uri.endswith(".safetensors"):
            found = load_tensors(content)
        elif init.uri.endswith(".npz"):
            arrays = np.load(io.BytesIO(content), allow_pickle=False)
            found = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        else:
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (ValueError, RuntimeError, OSError, zipfile.BadZipFile, pickle.UnpicklingError, SafetensorError) as error:
        raise ConfigError(f"init_from {init.uri} is not a file of tensors: {error}") from error
    return {key.removeprefix(init.prefix): value for key, value in found.items() if key.startswith(init.prefix)}


def with_vectors(config: TagVectorsConfig, store: Store, view: View) -> TagVectorsConfig:
    """Tag vectors looked up, kept in the store under their hash. Raises ConfigError where a tag has none."""
    names = view.manifest.data_spec.tags
    tags_NC = view.tags(store, "train") if config.CLOSED else None
    try:
        vectors_CV = config.vectors(names, tags_NC)
    except (ValueError, OSError) as error:
        raise ConfigError(f"tag_vectors: {error}") from error
    resolved = config.resolved(names, vectors_CV)
    if config.content_hash not in (None, resolved.content_hash):
        raise ConfigError(
            f"tag_vectors {config.kind} gives other vectors than this run was resolved with; bring its source back, or "
            "leave tag_vectors.content_hash out"
        )
    folder, name = store.child(VECTORS), f"{resolved.content_hash}.npy"
    if not folder.exists(name):
        buffer = io.BytesIO()
        np.save(buffer, vectors_CV)
        folder.write(name, buffer.getvalue())
        if found := config.report(names):
            folder.write_json(f"{resolved.content_hash}.json", [dataclasses.asdict(one) for one in found])
    return resolved


def tag_set(tags: tuple[str, ...], vectors: TagVectorsConfig | None, store: Store) -> TagSet:
    """The tags of a resolved run with their vectors, where it has some. Raises StoreError where these are lost."""
    if vectors is None:
        return TagSet(tags)
    folder, name = store.child(VECTORS), f"{vectors.content_hash}.npy"
    if not folder.exists(name):
        raise StoreError(f"the tag vectors of this run are not in {folder.uri} any more ({name}); resolve it again")
    return TagSet(tags, torch.from_numpy(np.load(io.BytesIO(folder.read(name)), allow_pickle=False)))


def tags_with_vectors(model: Model, names: tuple[str, ...]) -> TagSet:
    """Any tags for a model to score, with vectors from its own source where it does not know them all. Raises
    ValueError for a model that scores none but its own, a name that the source lacks, or a source that changed."""
    run, own = model.run, model.spec.tags
    unknown = [name for name in names if name not in own]
    if not unknown:
        return TagSet(names)
    if not run.method.scores_unseen or run.tag_vectors is None:
        raise ValueError(
            f"a {run.method.kind} model scores the {len(own)} tags that it was trained on, not {', '.join(unknown)}; "
            "train method zero_shot, or joint_embedding with tag_side=vectors"
        )
    try:
        both_CV = run.tag_vectors.vectors((*own, *names))
    except OSError as error:
        raise ValueError(f"the tag vectors that this model was trained with cannot be read: {error}") from error
    if run.tag_vectors.resolved(own, both_CV[: len(own)]).content_hash != run.tag_vectors.content_hash:
        raise ValueError(
            f"tag_vectors {run.tag_vectors.kind} gives other vectors than this model was trained with; bring its "
            "source back to score other tags"
        )
    return TagSet(names, torch.from_numpy(both_CV[len(own) :]))
