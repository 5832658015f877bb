"""The benchmarks' own code: every workload still runs against loglik, and results are kept and replaced by section."""

from __future__ import annotations

import gzip
import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from loglik.cpu import choices

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import run

    return run


def test_processors_are_counted_on_macos(run, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert runpy.run_path(str(BENCHMARKS / "run.py"))["PROCESSORS"] == os.cpu_count()


@pytest.mark.parametrize(
    "name", ["classifier", "resnet", "autoregressive", "generation", "flow", "flow_table", "vae", "diffusion", "unet"]
)
def test_our_side_of_each_workload_runs(run, name, tmp_path, monkeypatch):
    """The VAE's Fashion-MNIST is what a machine may lack: here it is 1,500 images of noise."""
    images = torch.randint(256, (1500, 28, 28), dtype=torch.uint8).numpy()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes(), 1))
    monkeypatch.setenv("LOGLIK_DATA", str(tmp_path))
    module = run.harness.load_workload(name)
    assert name in run.WORKLOADS and next(iter(module.SIDES)) == "ours" and len(module.SIDES) > 1
    if name == "generation":  # minutes otherwise
        module.SHAPES |= {"batch": 1, "length": 16, "depth": 1, "streams": 2}
    if name == "unet":
        module.SHAPES |= {"batch": 2}
    side = module.SIDES["ours"]()
    assert side.parameters > 0
    for operation in side.operations.values():
        operation()


def test_peers_are_not_imported_before_they_are_asked_for(run, monkeypatch):
    monkeypatch.delenv("NANOGPT", raising=False)
    with pytest.raises(run.harness.Unavailable, match="set NANOGPT"):
        run.harness.load_workload("autoregressive").SIDES["nanoGPT"]()


def test_the_table_gives_medians_ratios_and_reasons(run):
    def worker(**described):
        return SimpleNamespace(described={"parameters": 10, "flops": {}, **described})

    workers = {
        "ours": worker(flops={"step": 8_000_000}),
        "fast": worker(),
        "gone": SimpleNamespace(described={"unavailable": "ImportError: no"}),
    }
    times = {"step": {"ours": [0.002, 0.001, 0.009], "fast": [0.004, 0.004, 0.004], "gone": []}}
    _, _, ours, fast, gone = run.table(workers, times, peak={"float32": 16.0, "bfloat16": 32.0})
    assert ours == "| step | ours | 10 | 2.00 | 1.00 | 9.00 | 2.00 | 4.0 | 25% |"
    assert "| 1.00 |" in fast
    assert "not available: ImportError: no" in gone


def test_a_cpu_without_bfloat16_has_no_peak_in_it(run, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(choices, "_chosen", None)
    monkeypatch.setattr(run.device, "CPU_SIZES", (16,))
    before = torch.get_num_threads()
    peak = run.device.matrix_peak(1)
    torch.set_num_threads(before)
    assert list(peak) == ["float32"] and peak["float32"] > 0
    ours = SimpleNamespace(described={"parameters": 10, "flops": {"step, bf16": 8_000_000}})
    row = run.table({"ours": ours}, {"step, bf16": {"ours": [0.002]}}, peak)[-1]
    assert row.endswith("| 4.0 | not native |")


def test_muons_share_is_measured(run):
    muon = run.harness.load_workload("muon")
    times = muon.measure(*muon.CASES["VAE, 8 × 8"], rounds=1)
    assert len(times) == 3 and min(times) > 0
    row = muon.row("VAE", "AVX2", 60.0, 40.0, 15.0)
    assert row == "| VAE | AVX2 | 60 | 40.0 | 40% | 15.0 | 20% |"


def test_one_section_is_replaced_and_the_others_stay(run, tmp_path):
    path = tmp_path / "RESULTS.md"
    run.write({"flow": "## Flow\n\nold\n"}, path)
    run.write({"vae": "## VAE\n\nnumbers\n"}, path)
    run.write({"flow 1": "## Flow, 1 thread\n\nsingle\n"}, path)
    run.write({"flow": "## Flow\n\nnew\n"}, path)
    text = path.read_text()
    assert text.count("# Speed\n") == 1 and "old" not in text
    assert text.index("new") < text.index("single") < text.index("numbers")
