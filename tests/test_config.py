"""Configs: overrides, errors that name the path, identity."""

import pytest
from conftest import resolved

from atose_ray.config import ConfigError, RunConfig, apply_overrides, merge, run_config
from atose_ray.types import DataSpec

SPEC = DataSpec(sample_rate_hz=16000, clip_samples=48000, tags=("a", "b"), exclusive=False)


def test_an_override_below_what_is_not_there() -> None:
    """`data.noise` is null in a whole configuration, and may be filled."""
    whole = RunConfig().model_dump(mode="json")
    assert whole["data"]["noise"] is None
    noise = run_config(apply_overrides(whole, ["data.noise.low_db=-70", "data.noise.high_db=-20"])).data.noise
    assert noise is not None and (noise.low_db, noise.high_db) == (-70, -20)
    with pytest.raises(ConfigError, match="'batch_size' is a value, not a branch"):
        apply_overrides(whole, ["data.batch_size.small=1"])


def test_overrides_are_typed_and_switch_kinds() -> None:
    base = RunConfig().model_dump(mode="json")
    tree = apply_overrides(base, ["encoder.kind=harmonic_cnn", "encoder.channels=64", "optim.lr=1e-3"])
    run = run_config(tree)
    assert run.encoder.kind == "harmonic_cnn" and run.encoder.channels == 64 and run.optim.lr == 1e-3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoder.blok=se", r"encoder\.blok: no such key; did you mean 'block'\?"),
        ("latent=64", r"latent: no such key here; latent belongs to method: did you mean method\.latent\?"),
        ("data.latent=64", r"data\.latent: no such key here; latent belongs to method: did you mean method\.latent\?"),
        ("method.latent=64", r"method\.latent: no such key here; latent belongs to method\.kind=joint_embedding"),
        ("data.latnt=64", r"data\.latnt: no such key; did you mean 'method\.latent'\?"),
        ("data.seed=1", r"data\.seed: no such key; did you mean 'seed'\?"),
        ("batch_size=4", r"batch_size belongs to data: did you mean data\.batch_size\?"),
        ("encoder.block=sse", r"encoder\.block: .*'basic'.*but got 'sse'"),
        ("optim.lr=fast", r"optim\.adam\.lr: .*but got 'fast'"),
        ("optim.lr=0", r"optim\.adam\.lr: .*greater than 0, but got 0"),
        ("encoder.kind=cnn", r"encoder: .*sample_cnn, harmonic_cnn"),
        ("data.batch_size.x=1", r"'batch_size' is a value"),
        ("data.train_share=0", r"data\.train_share: .*greater than 0, but got 0"),
        ("data.train_share=1.1", r"data\.train_share: .*less than or equal to 1, but got 1\.1"),
        ("data.residency=gpu", r"data\.residency: .*'stream', 'host' or 'device', but got 'gpu'"),
        ("nonsense", r"PATH=VALUE.*'nonsense'"),
        ("method.stages=[{name: clasify, epochs: 1}]", r"stages of supervised are classify, but .*'clasify'"),
        ("method.stages=[{name: classify, epochs: 1, trains: [projector]}]", r"can train encoder, classifier"),
    ],
)
def test_bad_overrides_name_the_path(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config(apply_overrides(RunConfig().model_dump(mode="json"), [override]))


def test_signature_is_the_identity() -> None:
    run = resolved(RunConfig(), SPEC)
    faster = run.model_copy(update={"execution": run.execution.model_copy(update={"threads": 7, "device": "cpu"})})
    assert run.signature() == faster.signature()
    elsewhere = run.model_copy(update={"data": run.data.model_copy(update={"residency": "host"})})
    assert run.signature() == elsewhere.signature()
    others = [
        run.model_copy(update={"seed": 1}),
        run.model_copy(update={"metric": "roc_auc_macro"}),
        run.model_copy(update={"optim": run.optim.model_copy(update={"lr": 0.5})}),
        resolved(RunConfig(), SPEC, "other data"),
        run.model_copy(update={"data": run.data.model_copy(update={"train_share": 0.5})}),
    ]
    assert len({run.signature(), *(other.signature() for other in others)}) == 6
    assert run_config(run.model_dump(mode="json")).signature() == run.signature()


def test_data_is_kept_in_memory_or_streamed_not_both() -> None:
    tree = {"data": {"residency": "host"}, "execution": {"ingest": "ray_data"}}
    with pytest.raises(ConfigError, match=r"data\.residency=host.*ray_data streams.*set execution\.ingest=local"):
        run_config(tree)
    for residency in ("auto", "stream"):
        run_config({**tree, "data": {"residency": residency}})


def test_crop_length_is_the_encoders_unless_the_clip_is_shorter() -> None:
    assert resolved(RunConfig(), SPEC).model_spec(SPEC).input.length == 48000
    longer = SPEC.model_copy(update={"input": SPEC.input.of_length(200_000)})
    assert resolved(RunConfig(), longer).model_spec(longer).input.length == 59049
    harmonic = run_config({"encoder": {"kind": "harmonic_cnn"}})
    assert resolved(harmonic, longer).model_spec(longer).input.length == 80000


def test_what_does_not_fit_the_data_is_refused_early() -> None:
    with pytest.raises(ConfigError, match=r"data\.crop_seconds=0\.001.*at least 81"):
        resolved(run_config({"data": {"crop_seconds": 0.001}}), SPEC)
    with pytest.raises(ConfigError, match=r"accuracy.*exclusive"):
        resolved(run_config({"metric": "accuracy"}), SPEC)


def test_merge_replaces_a_branch_whose_kind_changes() -> None:
    base = {"encoder": {"kind": "sample_cnn", "block": "se"}, "seed": 1}
    assert merge(base, {"encoder": {"kind": "harmonic_cnn"}}) == {"encoder": {"kind": "harmonic_cnn"}, "seed": 1}
    assert merge(base, {"encoder": {"channels": 8}})["encoder"] == {"kind": "sample_cnn", "block": "se", "channels": 8}
