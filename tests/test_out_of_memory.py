"""Memory that runs out: evaluation and drawing halve their batches, training says which batch fits, in one line."""

import re
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import loglik
from helpers.commands import refused, well
from helpers.training import REAL, flow, settings
from loglik.data.dataset import Split
from loglik.density import Density
from loglik.evaluation.scores import log_prob_terms, log_probs
from loglik.memory import OutOfMemory, Pieces, is_out_of_memory
from loglik.tasks import Samples
from loglik.training import fit


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The garbage of a whole test session takes seconds to collect."""
    monkeypatch.setattr("gc.collect", lambda: 0)


CPU = torch.device("cpu")
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: not enough memory: you tried to"),
    MemoryError("Unable to allocate 7.45 GiB for an array"),
]


class Narrow(Density):
    """A density whose calls run out of memory beyond so many rows."""

    def __init__(self, most: int, error: Exception = ERRORS[0]) -> None:
        super().__init__()
        self.event_shape = (2,)
        self.most, self.error = most, error
        self.calls: list[int] = []
        self.scale = nn.Parameter(torch.ones(()))

    def count(self, n: int) -> None:
        self.calls.append(n)
        if n > self.most:
            raise self.error

    def log_prob(self, x, context=None, *, samples=1):
        self.count(len(x))
        return -(x * self.scale).square().sum(1)

    def sample(self, n, context=None):
        self.count(n)
        return torch.randn(n, 2)


@pytest.mark.parametrize("error", ERRORS)
def test_what_says_that_memory_ran_out(error):
    assert is_out_of_memory(error)
    assert not any(map(is_out_of_memory, [RuntimeError("shape mismatch"), ValueError("out of memory"), KeyError("x")]))


@pytest.mark.parametrize("error", ERRORS)
def test_evaluation_halves_its_batch_goes_on_and_keeps_the_size(error):
    x = torch.randn(1000, 2)
    wide, narrow = Narrow(1000), Narrow(100, error)
    assert torch.equal(log_probs(narrow, Split(x)), log_probs(wide, Split(x)))
    assert narrow.calls == [256, 128, *[64] * 15, 40]  # 1000 rows: three batches of 256, and 232
    assert torch.equal(log_prob_terms(narrow, Split(x)).get("", torch.zeros(0)), torch.zeros(0))


def test_a_bound_s_noise_depends_on_the_size_of_the_pieces_alone():
    """So an evaluation that halves twice gives the numbers of one that begins with a quarter."""
    seen = []

    class Noisy(Narrow):
        def log_prob(self, x, context=None, *, samples=1):
            self.count(len(x))
            seen.append(torch.rand(()).item())
            return torch.rand(len(x))

    x = Split(torch.zeros(600, 2))
    first = log_probs(Noisy(64), x)
    assert torch.equal(first, log_probs(Noisy(70), x))
    assert len(set(seen)) == len(seen) // 2  # each piece has noise of its own, and both runs the same


def test_a_row_that_does_not_fit_is_one_line():
    with pytest.raises(OutOfMemory, match="one row does not fit in the memory of cpu"):
        log_probs(Narrow(0), Split(torch.zeros(10, 2)))


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shape"):
        log_probs(Narrow(1, RuntimeError("shape")), Split(torch.zeros(10, 2)))


def test_pieces_cover_each_slice_in_order():
    def compute(rows: slice) -> list[int]:
        if rows.stop - rows.start > 3:
            raise MemoryError
        return list(range(rows.start, rows.stop))

    pieces = Pieces(compute, CPU)
    assert [row for part in pieces(slice(5, 25)) for row in part] == list(range(5, 25))
    assert pieces.rows == 3
    assert pieces(slice(0, 7)) == [[0, 1, 2], [3, 4, 5], [6]]


# ---- samples


@pytest.fixture(scope="module")
def array_run(tmp_path_factory):
    torch.manual_seed(0)
    return fit(flow(), REAL, out=tmp_path_factory.mktemp("runs") / "flow", settings=settings(max_steps=6))


def samples(density, n, seed=0):
    spec = loglik.data.spec.DataSpec(kind="array", event_shape=(2,))
    return Samples(density, spec, n, seed=seed)


def test_full_blocks_of_samples_do_not_depend_on_their_number():
    density = Narrow(10**6)
    many, few = samples(density, 10_000), samples(density, 5000)
    assert [len(block) for block in many] == [4096, 4096, 1808]
    assert torch.equal(many.tensor()[:4096], few.tensor()[:4096])
    assert torch.equal(many.tensor(), many.tensor())
    blocks = list(many)
    assert not torch.equal(blocks[0], blocks[1])
    assert not torch.equal(many.tensor(), samples(density, 10_000, seed=1).tensor())
    assert max(density.calls) == 4096


def test_samples_that_do_not_fit_are_drawn_in_halves():
    x = samples(Narrow(1500), 5000).tensor()
    assert x.shape == (5000, 2) and len(x.unique(dim=0)) == 5000
    assert torch.equal(x, samples(Narrow(1024), 5000).tensor())


def test_a_seed_s_first_block_is_one_call_of_the_density():
    density = Narrow(10**6)
    x = samples(density, 64, seed=5).tensor()
    torch.manual_seed(5)
    assert torch.equal(x, torch.randn(64, 2))


@pytest.mark.parametrize("name", ["x.npy", "deep/er/x.npy"])
def test_a_stream_of_samples_is_a_whole_file(array_run, tmp_path, name):
    x = loglik.tasks.samples_of(array_run, 9000, seed=3)
    loglik.report.write_samples(x, array_run.spec, tmp_path / name)
    found = np.load(tmp_path / name)
    assert found.shape == (9000, 2) and np.array_equal(found, x.tensor().numpy())
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == ["x.npy"]


def test_a_drawing_that_fails_leaves_the_file_as_it_was(array_run, tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    path.write_bytes(b"before")
    draw, calls = array_run.density.sample, []

    def fail(n, context=None):
        calls.append(n)
        if len(calls) > 1:
            raise ValueError("no more")
        return draw(n, context)

    monkeypatch.setattr(array_run.density, "sample", fail)
    with pytest.raises(ValueError, match="no more"):
        loglik.report.write_samples(loglik.tasks.samples_of(array_run, 9000), array_run.spec, path)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_images_are_written_as_a_folder_that_can_be_read_again(tmp_path):
    out = tmp_path / "run"
    fit("independent", "digits", out=out)
    well("sample", out, "-n", "150", "--out", tmp_path / "pictures", "--seed", "1")
    assert len(list((tmp_path / "pictures").iterdir())) == 150
    again = loglik.data.load(str(tmp_path / "pictures"))
    assert again.spec.event_shape == (1, 8, 8)
    assert "exist" in refused("sample", out, "-n", "3", "--out", tmp_path / "pictures")
    assert "write a .npy file, or a folder of pictures" in refused("sample", out, "-n", "100000")


# ---- training


class Hungry(Narrow):
    """Its training runs out of memory beyond so many rows."""

    def loss(self, x, context=None):
        self.count(len(x))
        return (x.double() * self.scale.double()).square().mean() - self.scale.log()


@pytest.mark.parametrize(("most", "says"), [(20, range(15, 21)), (1, [1]), (31, range(24, 32))])
def test_a_training_says_which_batch_fits(most, says):
    with pytest.raises(OutOfMemory, match="step 0 does not fit in the memory of cpu with batch_size=32") as error:
        fit(Hungry(most), REAL, settings=settings(), progress=False)
    fits = int(str(error.value).split("pass batch_size=")[1].split(",")[0])
    assert fits in says


def test_a_model_that_does_not_fit_at_all_is_said():
    with pytest.raises(OutOfMemory, match="nor with batch_size=1: choose a smaller model"):
        fit(Hungry(0), REAL, settings=settings(), progress=False)


def test_memory_that_ran_out_elsewhere_is_not_blamed_on_the_batch(monkeypatch):
    def fail(self, *_):
        raise MemoryError("lists")

    monkeypatch.setattr(loglik.training.loop.Trainer, "_validate", fail)
    with pytest.raises(OutOfMemory, match="ran out of memory at step 6, though its batch fits: lists"):
        fit(flow(), REAL, settings=settings(), progress=False)


def test_the_command_line_says_it_in_one_line(tmp_path, monkeypatch):
    loss = loglik.Flow.loss

    def narrow(self, x, context=None):
        if len(x) > 40:
            raise ERRORS[0]
        return loss(self, x, context)

    np.save(tmp_path / "x.npy", REAL)
    monkeypatch.setattr(loglik.Flow, "loss", narrow)
    words = ["fit", tmp_path / "x.npy", "--model", "flow", "--max-steps", "3"]
    line = refused(*words, "--set", "batch_size=64", "--out", tmp_path / "run")
    fits = re.search(r"step 0 does not fit in the memory of cpu with .*batch_size=64; pass (.*), which fits", line)
    assert fits is not None and fits[1].startswith("batch_size=")
    well(*words, "--set", fits[1], "--out", tmp_path / "other")


LIMITED = """
import resource, sys
from loglik.cli import main
import torch, loglik.tasks, loglik.report, loglik.training, loglik.comparison, loglik.evaluation
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20,) * 2)
sys.argv = ["loglik", *sys.argv[2:]]
main()
"""


def limited(mebibytes, *words):
    """The command line in a process that can take so much memory beyond its start."""
    command = [sys.executable, "-c", LIMITED, str(mebibytes), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
def test_a_limit_of_memory_ends_a_training_with_one_line(tmp_path):
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(10_000, 64)).astype("float32"))
    words = ["fit", tmp_path / "x.npy", "--model", "vae", "--max-steps", "2", "--set", "width=512"]
    done = limited(200, *words, "--set", "batch_size=8000", "--out", tmp_path / "large")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "batch_size=" in done.stderr.split("pass")[1]
