"""execution.compile=auto: compiled where it pays, by a clock and a compiler that stand in for those of the machine."""

from __future__ import annotations

import functools
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import tiny_tree

from atose_ray.config import RunConfig, run_config
from atose_ray.encoders import Encoder
from atose_ray.methods import StageConfig
from atose_ray.storage import Store
from atose_ray.training import compiler, compiling
from atose_ray.training.compiler import Record, node_cache
from atose_ray.training.compiling import COMPILE, LOOK, SKIP, updates_left
from atose_ray.training.loop import fit
from atose_ray.training.run import Job, open_run, resolve
from atose_ray.training.sync_norm import ddp

CPU = torch.device("cpu")
EPOCHS = 8
ENCODER = {"kind": "sample_cnn", "block": "res", "channels": 4, "dropout": 0.2}
PLAIN = Encoder.compute
SOUNDLESS = {"kind": "mel_cnn", "channels": 4, "embedding": 4, "mels": 8}  # and without BatchNorm


IN_TRIAL = 3 + LOOK  # two sizes, once more, and those that count


class Machine:
    """Seconds go by only while an encoder computes: plain_s each time; the compiled form takes fast_s, and compile_s
    the first time. It rounds as no machine does, so that one step of it shows. later_s: of a compiled step, when
    training; fails: what the compiler raises."""

    def __init__(self, plain_s: float = 100.0, fast_s: float = 50.0, compile_s: float = 60.0) -> None:
        self.plain_s, self.fast_s, self.compile_s, self.later_s = plain_s, fast_s, compile_s, fast_s
        self.now, self.tried, self.calls, self.fails = 0.0, 0, 0, ""

    def compute(self, encoder: Encoder, inputs: torch.Tensor) -> torch.Tensor:
        self.now += self.plain_s
        return PLAIN(encoder, inputs)

    def compiled(self, plain: Any) -> Any:
        self.tried, self.calls = self.tried + 1, 0

        def form(inputs: torch.Tensor) -> torch.Tensor:
            if self.fails:
                raise RuntimeError(self.fails)
            self.calls += 1
            in_trial = self.calls <= IN_TRIAL
            self.now += (self.fast_s if in_trial else self.later_s) + (self.compile_s if self.calls == 1 else 0)
            return PLAIN(plain.__self__, inputs) * 1.01

        return form

    def install(self, patch: pytest.MonkeyPatch, cache: Path) -> None:
        patch.setenv("ATOSE_CACHE", str(cache))
        for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
            patch.setenv(name, str(cache / "elsewhere"))  # what it sets is taken back
        patch.setattr(compiling, "clock", lambda: self.now)
        patch.setattr(compiler, "compiled", self.compiled)
        patch.setattr(compiler, "ASSUMED", {"cpu": (60.0, 1.1)})
        patch.setattr(compiling, "lacks_compiler", lambda device: "")
        patch.setattr(Encoder, "compute", lambda encoder, inputs: self.compute(encoder, inputs))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    found = Machine()
    found.install(monkeypatch, tmp_path / "cache")
    return found


@pytest.fixture
def trained(tiny_store, tiny_manifest, tmp_path):
    """A function: folder name and execution.compile -> what came of the training, in its folder."""

    def train(name: str, compile_: Any = "auto", stop_at: int | None = None, **execution: Any) -> dict[str, Any]:
        tree = tiny_tree(encoder=ENCODER, execution={"precision": "float32", "compile": compile_, **execution})
        tree["method"]["stages"] = [{"name": "classify", "epochs": EPOCHS}]
        run = resolve(run_config(tree), tiny_store, tiny_manifest)
        opened = open_run(Job(run, tiny_store.uri, str(tmp_path / name), {}))

        def report(record: Any) -> None:
            if record.epoch == stop_at:
                raise KeyboardInterrupt

        stopped = False
        try:
            fit(run, opened.method, opened.batches, opened.folder, report=report, device=CPU)
        except KeyboardInterrupt:
            stopped = True
        notes = [event for event in opened.folder.events() if event.get("cause") == COMPILE]
        weights = opened.method.state_dict()
        scores = [(record.train_loss, record.valid) for record in opened.folder.epochs()]
        return {
            "notes": notes,
            "weights": weights,
            "scores": scores,
            "stopped": stopped,
            "encoder": opened.method.encoder,
        }

    return train


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    weights = zip(one["weights"].values(), other["weights"].values(), strict=True)
    return one["scores"] == other["scores"] and all(torch.equal(a, b) for a, b in weights)


def said(outcome: dict[str, Any]) -> list[tuple[bool, str]]:
    return [(note["on"], note["text"]) for note in outcome["notes"]]


def test_where_it_pays_it_is_compiled(machine: Machine, trained, tmp_path: Path) -> None:
    outcome = trained("auto")
    (on, text), (still, seen) = said(outcome)
    assert on and machine.tried == 1 and "measured 2.00x as fast after 60.0 s" in text and "steps of 100 s" in text
    assert still and seen == "compiled: a compiled step takes 50 s, a plain one took 100 s"
    (line,) = (tmp_path / "cache" / "compile.jsonl").read_text().splitlines()
    assert json.loads(line)["compile_s"] == 60.0 and json.loads(line)["gain"] == 2.0
    plain = trained("plain", False)
    before = outcome["notes"][0]["after"][0]  # epochs that were whole before it
    assert before >= 1 and outcome["scores"][:before] == plain["scores"][:before] and not same(outcome, plain)


def test_only_what_trains_in_an_epochs_batches_is_compiled(machine: Machine, trained) -> None:
    encoder = trained("auto")["encoder"]
    calls = machine.calls
    encoder.train()(torch.zeros(5, 2400)), encoder.eval()(torch.zeros(8, 2400))
    with torch.no_grad():
        encoder.train()(torch.zeros(8, 2400))
    assert machine.calls == calls
    encoder.train()(torch.zeros(8, 2400)), encoder.train()(torch.zeros(7, 2400))  # 36 clips are 8 + 7 + 7 + 7 + 7
    assert machine.calls == calls + 2


def test_where_too_little_is_left_it_is_not_even_tried(machine: Machine, trained) -> None:
    machine.plain_s = 0.01
    outcome = trained("auto")
    ((on, text),) = said(outcome)
    assert not on and machine.tried == 0 and "expected 1.10x as fast after 60 s: would save 0 s" in text
    assert same(outcome, trained("plain", False))


@pytest.mark.parametrize("why", ["slower", "fails"])
def test_an_attempt_in_vain_leaves_no_trace_in_the_numbers(why: str, machine: Machine, trained) -> None:
    machine.fast_s, machine.fails = 120.0, "no Python.h\nand more" if why == "fails" else ""
    outcome = trained("auto")
    ((on, text),) = said(outcome)
    assert not on and machine.tried == 1
    assert ("RuntimeError: no Python.h" if why == "fails" else "measured 0.83x as fast") in text and "\n" not in text
    assert same(outcome, trained("plain", False))


def test_what_is_slower_in_training_is_taken_back(machine: Machine, trained) -> None:
    machine.later_s = 110.0
    outcome = trained("auto")
    (on, _), (back, text) = said(outcome)
    assert on and not back and text == "not compiled: a compiled step takes 110 s, a plain one took 100 s"
    assert machine.calls == IN_TRIAL + SKIP + LOOK and "compute" not in vars(outcome["encoder"])


def test_the_next_trial_knows_from_the_record(machine: Machine, trained) -> None:
    """Cheap here and of great gain, so that a run compiles that would not by what is assumed; and the other way."""
    machine.compile_s, machine.later_s = 8.0, 0.4
    trained("first")
    machine.plain_s, machine.fast_s, machine.tried = 1.0, 0.5, 0  # 22 steps: 2 s would be saved by what is assumed
    assert said(trained("second"))[0][0] and machine.tried == 1
    machine.plain_s, machine.fails = 100.0, "broken"
    Record.add(record_of_last(machine), 5.0, 0.0)
    Record.add(record_of_last(machine), 5.0, 0.0)
    Record.add(record_of_last(machine), 5.0, 0.0)
    ((on, text),) = said(trained("third"))
    assert not on and machine.tried == 1 and "the compiler failed here before" in text


def record_of_last(machine: Machine) -> Record:
    record = Record([])
    record.key = json.loads(record.file.read_text().splitlines()[-1])["key"]
    return record


@pytest.mark.parametrize(
    ("stop_at", "takes_back"),
    [(2, False), (3, True), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((2, True), (3, False)))]
    + [pytest.param(5, one, marks=pytest.mark.slow) for one in (False, True)],
)
def test_a_run_that_goes_on_decides_as_it_did(stop_at: int, takes_back: bool, machine: Machine, trained) -> None:
    """Whatever the clock says by then: cut short before its decision's checkpoint, or after."""
    machine.later_s = 110.0 if takes_back else 50.0
    whole = trained("whole")
    machine.__init__()  # type: ignore[misc]
    machine.later_s = 110.0 if takes_back else 50.0
    cut = trained("cut", stop_at=stop_at)
    assert cut["stopped"]
    if stop_at > 2:
        machine.plain_s, machine.fast_s = 1e-3, 1.0  # now it would never pay
    resumed = trained("cut")
    assert [note["on"] for note in resumed["notes"]] == [True, not takes_back]
    assert [note["after"] for note in resumed["notes"][:1]] == [note["after"] for note in whole["notes"][:1]]
    assert same(resumed, whole) or (takes_back and len(cut["notes"]) < 2)


def test_a_run_that_goes_on_without_a_compiler_says_so(
    machine: Machine, trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trained("cut", stop_at=5)["stopped"]
    monkeypatch.setattr(compiling, "lacks_compiler", lambda device: "needs a C++ compiler")
    *_, (on, _), (then, text) = said(trained("cut"))
    assert on and not then and "may now round differently: torch.compile needs a C++ compiler" in text


def test_without_a_compiler_it_stays_plain(machine: Machine, trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "lacks_compiler", compiler.lacks_compiler)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    outcome = trained("auto")
    assert said(outcome) == [
        (False, "not compiled: torch.compile needs a C++ compiler on a CPU, but none is on the PATH")
    ]
    assert machine.tried == 0 and same(outcome, trained("plain", False))


def test_own_kernels_are_left_alone(machine: Machine, trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "takes_kernels", lambda inputs: True)
    ((on, text),) = said(trained("auto"))
    assert not on and "kernels of its own" in text and machine.tried == 0


def test_a_deterministic_run_does_not_follow_a_clock(machine: Machine, trained) -> None:
    ((on, text),) = said(trained("auto", deterministic=True))
    assert not on and "execution.deterministic" in text and machine.tried == 0


def test_it_is_no_part_of_a_run(tiny_run) -> None:
    signatures = {tiny_run(execution={"compile": value}).signature() for value in (False, True, "auto")}
    assert signatures == {tiny_run().signature()}


def test_updates_left_are_those_of_the_encoder() -> None:
    run = RunConfig.model_validate(tiny_tree("joint_embedding"))
    stages = [StageConfig.model_validate({**stage.model_dump(), "epochs": 3}) for stage in run.method.stages]
    method = run.method.model_copy(update={"stages": tuple(stages)})
    trains = [3 * ("encoder" in method.trained_parts(stage)) for stage in stages]
    assert trains[0] == 3
    assert updates_left(method, 0, 0, 10) == 10 * sum(trains)
    assert updates_left(method, 1, 4, 10) == 10 * (2 + sum(trains[1:])) - 4


def test_lines_of_many_writers_stay_whole(machine: Machine) -> None:
    records = [Record([number]) for number in range(4)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: records[number % 4].add(number, 1.5), range(200)))
    assert [len(record.lines()) for record in records] == [50] * 4
    with records[0].file.open("a") as file:
        file.write('{"key": "cut sho')  # by a node that went down
    assert len(records[0].lines()) == 50


def test_the_cache_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATOSE_CACHE", str(tmp_path / "mine"))
    folder = node_cache()
    assert folder == tmp_path / "mine" and folder.stat().st_mode & 0o077 == 0
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder / "inductor")
    assert os.environ["TRITON_CACHE_DIR"] == str(folder / "triton")
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    with pytest.raises(PermissionError, match="another user; name a folder of your own in ATOSE_CACHE"):
        node_cache()


@pytest.mark.skipif(not any(shutil.which(name) for name in ("g++", "clang++")), reason="needs a C++ compiler")
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_real_compiler_trains(backend: str, trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Taken, whatever it gains: it trains as the plain form does, up to rounding and what dropout draws."""
    monkeypatch.setenv("ATOSE_CACHE", str(tmp_path / "cache"))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "cache" / name))
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    monkeypatch.setattr(compiling, "MARGIN", 0.0)
    monkeypatch.setattr(compiling, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(compiling.Compiling, "_look_back", lambda self, step_s: (True, ""))
    outcome, plain = trained("auto"), trained("plain", False)
    assert [on for on, _ in said(outcome)] == [True, True], said(outcome)
    assert "compute" in vars(outcome["encoder"])
    for one, other in zip(outcome["scores"], plain["scores"], strict=True):
        assert one[0] == pytest.approx(other[0], abs=0.2)


CASES = [  # encoder, seconds of a compiled step on both ranks, attempts, whether it is taken, what is said
    (SOUNDLESS, (50.0, 20.0), 1, True, "measured"),
    (SOUNDLESS, (50.0, 45.0), 1, False, "measured"),
    (ENCODER, (50.0, 20.0), 0, False, "BatchNorm waits for the other ranks"),
]


def one_rank(rank: int, jobs: list[Job], folder: str) -> None:
    """Train every case on one of two ranks, whose clocks and compilers differ."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = []
    for job, (_, fast_s, *_) in zip(jobs, CASES, strict=True):
        machine = Machine(plain_s=100.0 if rank == 0 else 40.0, fast_s=fast_s[rank])
        with pytest.MonkeyPatch.context() as patch:
            machine.install(patch, Path(f"{job.folder_uri}-cache"))
            opened = open_run(job, rank=rank, world=2)
            fit(opened.run, opened.method, opened.batches, opened.folder, wrap=ddp(CPU, 2), device=CPU)
            found.append([machine.tried, "compute" in vars(opened.method.encoder)])
            dist.barrier()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_decide_alike(tiny_store, tiny_manifest, tmp_path: Path) -> None:
    """Rank 1, for which alone it would not pay, goes with rank 0; and no rank takes what is slower on another."""
    jobs = []
    for number, (kind, *_) in enumerate(CASES):
        tree = tiny_tree(encoder=kind, execution={"precision": "float32", "compile": "auto"})
        tree["method"]["stages"] = [{"name": "classify", "epochs": EPOCHS}]
        tree["data"]["crop_seconds"] = 1.5
        run = resolve(run_config(tree), tiny_store, tiny_manifest)
        jobs.append(Job(run, tiny_store.uri, str(tmp_path / str(number)), {}))
    torch.multiprocessing.spawn(one_rank, (jobs, str(tmp_path)), nprocs=2)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert found == [[[tried, on] for *_, tried, on, _ in CASES]] * 2
    for job, (*_, on, text) in zip(jobs, CASES, strict=True):
        notes = [event for event in Store(job.folder_uri).read_lines("log.jsonl") if COMPILE in event]
        assert len(notes) == 1 + on and text in notes[0], notes
