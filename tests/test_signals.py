"""SIGINT and SIGTERM: the step is finished, a checkpoint is written, and the run resumes to the same weights."""

import os
import shlex
import signal
import threading

import pytest
import torch

import loglik
from helpers.commands import run, well
from helpers.training import REAL, flow, numbers, same, settings, weights
from loglik.training import Interrupted, fit
from loglik.training.batches import Batches
from loglik.training.signals import stop_request

HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


def send(monkeypatch, number: int, step: int, times: int = 1) -> None:
    """Send this process a signal while it reads the batch of a step."""
    real = Batches.batch

    def batch(self, at, *rest):
        if at == step:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return real(self, at, *rest)

    monkeypatch.setattr(Batches, "batch", batch)


def restored() -> bool:
    return all(signal.getsignal(number) is handler for number, handler in HANDLERS.items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 8, 11, 22])
def test_a_stopped_training_resumes_to_the_same_weights(number, step, tmp_path, monkeypatch) -> None:
    torch.manual_seed(0)
    whole = fit(flow(dropout=0.3), REAL, settings=settings())
    with monkeypatch.context() as patch:
        send(patch, number, step)
        torch.manual_seed(0)
        with pytest.raises(Interrupted) as stopped:
            fit(flow(dropout=0.3), REAL, out=tmp_path / "run", settings=settings())
    assert (stopped.value.number, stopped.value.step, stopped.value.path) == (number, step + 1, tmp_path / "run")
    assert isinstance(stopped.value, KeyboardInterrupt) and restored()
    assert (tmp_path / "run" / "checkpoints" / f"step-{step + 1:09d}.safetensors").exists()
    lines = []
    resumed = fit(flow(dropout=0.3), REAL, out=tmp_path / "run", resume=True, settings=settings(), report=lines.append)
    assert lines == [f"{tmp_path / 'run'}: training continues at step {step + 1}"]
    assert same(weights(resumed.density), weights(whole.density)) and numbers(resumed.history) == numbers(whole.history)
    assert same(weights(loglik.load(tmp_path / "run", density=flow()).density), weights(whole.density))


def test_a_second_interrupt_ends_at_once(tmp_path, monkeypatch) -> None:
    send(monkeypatch, signal.SIGINT, 8, times=2)
    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(flow(), REAL, out=tmp_path / "run", settings=settings())
    assert not isinstance(stopped.value, Interrupted) and restored()
    assert not (tmp_path / "run" / "checkpoints" / "step-000000009.safetensors").exists()


def test_without_a_folder_it_says_that_nothing_is_kept(monkeypatch) -> None:
    send(monkeypatch, signal.SIGTERM, 3)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 4: without out, nothing was kept"):
        fit(flow(), REAL, settings=settings())


def test_another_thread_trains_without_handlers() -> None:
    results = []
    worker = threading.Thread(target=lambda: results.append(fit(flow(), REAL, settings=settings(max_steps=2)).steps))
    worker.start()
    worker.join()
    assert results == [2] and restored()


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_request() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.number == 0 and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_prints_the_command_that_resumes(number, status, tmp_path, monkeypatch) -> None:
    (tmp_path / "a table.csv").write_text("a,b\n" + "1.5,2\n2.5,3\n3,1\n" * 30)
    words = ["fit", tmp_path / "a table.csv", "--model", "flow", "--max-steps", 6, "--set", "width=8"]
    with monkeypatch.context() as patch:
        send(patch, number, 3)
        done = run(*words, "--out", tmp_path / "run")
    assert done.status == status and "Traceback" not in done.err and done.err.count("\n") == 1
    assert f"stopped by {signal.Signals(number).name} after step 4: its checkpoint is in" in done.err
    command = shlex.split(done.err.partition("continue with: loglik ")[2])
    assert f"{tmp_path / 'run'}: training continues at step 4\n" in well(*command)
    well(*words, "--out", tmp_path / "whole")
    ends = [weights(loglik.load(tmp_path / name).density) for name in ("run", "whole")]
    assert same(*ends)


def test_a_stopped_comparison_says_so(tmp_path, monkeypatch) -> None:
    (tmp_path / "t.csv").write_text("a,b\n" + "1.5,2\n2.5,3\n3,1\n" * 30)
    send(monkeypatch, signal.SIGINT, 3)
    done = run("compare", tmp_path / "t.csv", "--models", "flow", "--budget", "60s", "--out", tmp_path / "all")
    assert done.status == 130 and done.err.count("\n") == 1 and "a comparison starts anew" in done.err


def test_a_run_begun_in_python_resumes_from_the_command_line(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n" + "1.5,2\n2.5,3\n3,1\n" * 30)
    options = {"width": 8, "learning_rate": 3e-3}
    fit("flow", tmp_path / "t.csv", out=tmp_path / "run", max_steps=2, **options)
    words = ["fit", tmp_path / "t.csv", "--model", "flow", "--out", tmp_path / "run", "--resume"]
    assert "training continues at step 2" in well(*words, "--max-steps", 4, "--size", "small")
    whole = fit("flow", tmp_path / "t.csv", max_steps=4, **options)
    resumed = loglik.load(tmp_path / "run")
    assert resumed.steps == 4 and resumed.config["training"]["learning_rate"] == 3e-3
    assert resumed.density.state_dict().keys() == whole.density.state_dict().keys()


def test_the_files_of_a_run_have_one_mode(tmp_path) -> None:
    before = os.umask(0o027)
    try:
        fit(flow(), REAL, out=tmp_path / "run", settings=settings(max_steps=6))
    finally:
        os.umask(before)
    modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert modes == {0o640}
