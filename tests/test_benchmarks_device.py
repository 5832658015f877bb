"""The benchmarks on a device: what a GPU must have is recorded by a fake, and shapes are checked on the device meta."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


class FakeGPU:
    """Stands for torch.cuda: it notes what is called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def empty_cache(self) -> None:
        self.calls.append("empty_cache")

    def current_stream(self):
        return SimpleNamespace(wait_stream=lambda other: None)

    Stream = current_stream

    def stream(self, stream):
        return self.noted("stream")

    def graph(self, graph):
        return self.noted("record")

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: self.calls.append("replay"))

    @contextmanager
    def noted(self, name):
        self.calls.append(name)
        yield

    def get_device_properties(self, name):
        return SimpleNamespace(name="Card 9000", total_memory=80 * 2**30)


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import run

    return run


@pytest.fixture
def gpu(run, monkeypatch):
    """The device meta stands for the card's tensors, the fake for torch.cuda."""
    fake = FakeGPU()
    monkeypatch.setenv("BENCH_DEVICE", "meta")
    monkeypatch.setattr(torch, "get_device_module", lambda name: fake)
    monkeypatch.setattr(torch, "compile", lambda call: call)
    return fake


def test_a_timed_run_waits_for_the_device_before_each_look_at_the_clock(run, gpu):
    run.harness.seconds_per_call(lambda: gpu.calls.append("work"), 2)
    assert gpu.calls == ["synchronize", "work", "work", "synchronize"]


def test_a_step_is_recorded_once_and_then_replayed(run, gpu):
    step = run.device.record(lambda: gpu.calls.append("step"))
    step()
    step()
    assert gpu.calls == ["stream", *["step"] * 3, "record", "step", "replay", "replay"]


@pytest.mark.parametrize("name", ["resnet", "unet"])
def test_our_side_of_a_workload_stays_on_the_device(run, gpu, name):
    """A tensor on the CPU among those on meta raises; so does a look at a value."""
    module = run.harness.load_workload(name)
    module.SHAPES |= {"batch": 2}
    with torch.device("meta"):
        side = module.SIDES["ours"]()
    for operation in side.operations.values():
        operation()
    assert [name for name in side.operations if name.startswith("training step")] == [
        "training step",
        "training step, bf16",
        "training step, bf16, compiled",
        "training step, bf16, CUDA graph",
        "training step, bf16, compiled, CUDA graph",
    ]


def test_large_shapes_replace_the_others_of_a_workload(run):
    assert run.harness.load_workload("unet large").SHAPES["batch"] == 256
    assert run.harness.load_workload("unet").SHAPES["batch"] == 32
    for name in run.GPU_WORKLOADS:
        shapes = run.harness.load_workload(name).SHAPES
        assert shapes.keys() == run.harness.load_workload(name.removesuffix(" large")).SHAPES.keys()
    assert {name.removesuffix(" large") for name in run.GPU_WORKLOADS} == set(run.WORKLOADS)


def test_bytes_are_those_of_the_tensors_that_kernels_read_and_write(run):
    x = torch.ones(1000)
    assert run.harness.bytes_moved(lambda: x.view(10, 100).add(1)) == 2 * 4000


def test_variants_are_compared_with_the_fastest_of_the_peers(run):
    def worker(**more):
        return SimpleNamespace(described={"parameters": 1, "flops": {"step": 4e6}, "bytes": {"step": 1e6}} | more)

    workers = {
        "ours": worker(failed={"step, CUDA graph": "RuntimeError: no"}),
        "peer": worker(),
        "gone": SimpleNamespace(described={"unavailable": "zuko is not installed"}),
    }
    times = {
        "step": {"ours": [0.004], "peer": [0.004]},
        "step, compiled": {"ours": [0.001], "peer": [0.002]},
        "step, CUDA graph": {"peer": [0.003]},
    }
    rows = run.table(workers, times, peak={"float32": 10.0, "bfloat16": 20.0, "bandwidth": 1.0})[2:]
    assert rows[0] == "| step | ours | 1 | 4.00 | 4.00 | 4.00 | 0.50 | 1.0 | 10% | 25% |"
    assert "| step, compiled | ours | 1 | 1.00 | 1.00 | 1.00 | 2.00 |" in rows[3]
    assert rows[2] == "| step | gone | | not installed: zuko |"
    assert rows[6] == "| step, CUDA graph | ours | | not available: RuntimeError: no |"


def test_a_card_has_a_chapter_of_its_own(run, gpu, tmp_path):
    path = tmp_path / "RESULTS.md"
    assert run.device.describe() == "Card 9000, 80 GiB"
    run.write({"unet large": "## U-Net, large\n\nfirst\n"}, path, "Card 9000")
    run.write({"flow": "## Flow\n\ncpu\n"}, path)
    run.write({"unet": "## U-Net\n\nsmall\n"}, path, "Card 9000")
    run.write({"unet large": "## U-Net, large\n\nsecond\n"}, path, "Card 9000")
    text = path.read_text()
    assert text.count("# Card 9000\n") == 1 and "first" not in text
    assert text.index("cpu") < text.index("# Card 9000") < text.index("small") < text.index("\nsecond")


@pytest.mark.slow
def test_sides_are_built_together_and_measured_when_the_file_exists(tmp_path):
    """The small workload without peers installed: every absent one is a row."""
    hold, results = tmp_path / "go", tmp_path / "results.md"
    command = [sys.executable, "run.py", "--only", "diffusion,flow", "--rounds", "1", "--jobs", "4", "--threads", "1"]
    command += ["--peers", sys.executable, "--hold", str(hold), "--results", str(results), "--build-limit", "120"]
    environment = {"PYTHONPATH": str(BENCHMARKS.parent / "src"), "BENCH_RUN_SECONDS": "0.001", "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(command, cwd=BENCHMARKS, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "all sides are built\n"
    assert not results.exists()
    hold.touch()
    assert process.wait(120) == 0
    process.stdout.close()
    text = results.read_text()
    assert "not installed: zuko" in text and "not installed: diffusers" in text
    assert text.count("| training step | ours |") == 2


def test_an_unknown_workload_is_refused():
    command = [sys.executable, "run.py", "--only", "flows"]
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True)
    assert done.returncode == 2 and "unknown workload flows: choose from classifier" in done.stderr


def test_a_side_that_is_not_ready_in_time_is_a_reason(run):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert run._answer(process, 0.1) == {"unavailable": "not ready in 0 s"}


def test_an_operation_that_fails_leaves_the_others(run, monkeypatch):
    """So a step that cannot be recorded is a row, and the side is measured."""

    def fail() -> None:
        raise RuntimeError("cannot be captured\nlong story")

    side = run.harness.Side(operations={"good": lambda: torch.ones(2) + 1, "bad": fail}, parameters=3)
    monkeypatch.setattr(run.harness, "load_workload", lambda name: SimpleNamespace(SIDES={"peer": lambda: side}))
    monkeypatch.setattr(run.harness, "RUN_SECONDS", 1e-4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    _, described = run.harness._build("any", "peer")
    assert list(described["calls"]) == ["good"]
    assert described["failed"] == {"bad": "RuntimeError: cannot be captured"}
    json.dumps(described)


def test_the_busy_share_counts_steps_between_validations(run):
    """A validation is outside of both windows: its operations and its time are not counted."""
    training = run.harness.load_workload("training")
    busy = training.Busy(torch.device("cpu"), warm_up=2, window=3)
    phases = []
    for step in range(14):
        busy.before_step()
        phases.append(busy.phase)
        torch.ones(4).exp()  # four operations, since torch makes `ones` by `empty` and `fill_`
        if step % 2:
            busy.before_validation()
            torch.ones(4).log()
    assert phases[:2] == ["warm-up", "timed"] and phases[-1] == "done"
    assert busy.share is not None and busy.wall > 0
    assert busy.kernels == 3 * 4


def test_a_training_is_measured_and_judged(run, tmp_path):
    training, report = run.harness.load_workload("training"), run.harness.load_workload("gpu_report")
    found = training.measure("digits", "classifier", None, "cpu", max_steps=135, validate_every=60)
    assert found["steps"] == 135 and found["busy_share"] > 0 and found["kernels_per_step"] > 10
    (tmp_path / "train-classifier.json").write_text(json.dumps(found | {"data": "fashion-mnist", "accuracy": 0.9}))
    (tmp_path / "tests.part").write_text('{"part": "tests", "code": 124, "seconds": 9}')
    (tmp_path / "tests.log").write_text("first\n\nlast line\n")
    report.collect(tmp_path, tmp_path)
    lines = (tmp_path / "summary.txt").read_text().splitlines()
    assert lines[:3] == ["tests: stopped at its limit after 9 s", "    first", "    last line"]
    assert lines[3] == "train-classifier: accuracy 0.9, at least 0.945: missed"
    assert lines[4].startswith("train-classifier: busy ")


@pytest.mark.slow
def test_the_script_for_a_card_runs_through_without_one(tmp_path):
    environment = {
        "PATH": "/usr/bin:/bin",
        "DEVICE": "cpu",
        "QUICK": "1",
        "OUT": str(tmp_path),
        "PYTHON": sys.executable,
    }
    subprocess.run(["bash", "-n", BENCHMARKS / "gpu.sh"], check=True)
    script = [BENCHMARKS / "gpu.sh"]
    subprocess.run(script, env=environment | {"PARTS": "seeds bench trainings"}, check=True, timeout=500)
    parts = json.loads((tmp_path / "results.json").read_text())
    assert {part["part"]: part["code"] for part in parts["parts"]} == {
        "machine": 0, "seeds": 0, "bench": 0, "train-diffusion": 0, "train-vae": 0, "train-glow": 0,
        "train-classifier": 0, "train-text": 0,
    }  # fmt: skip
    assert parts["trainings"].keys() == {f"train-{name}" for name in ("diffusion", "vae", "glow", "classifier", "text")}
    assert "first and killed: the same weights, bit for bit" in (tmp_path / "log.txt").read_text()
