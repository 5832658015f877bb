"""What is faster on this machine: measured with a fake clock, kept in a file, fixed by the environment, resumed."""

import json
import os
from dataclasses import asdict

import pytest
import torch

import loglik
from loglik.cpu import choices as room
from loglik.cpu import measure, private
from loglik.cpu.choices import NEVER, Choices, cache_file, choices, use_choices
from loglik.runs import read_config

FAST = Choices(forward=2**23, grad_weight=2**25, single_thread=2**20, bfloat16=True)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No choice is known yet, and nothing fixes one; returns how many measurements were made."""
    monkeypatch.setattr(room, "_chosen", None)
    monkeypatch.delenv("LOGLIK_CPU")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []
    monkeypatch.setattr(measure, "measure", lambda: made.append(1) or FAST)
    return made


def restart():
    room._chosen = None


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        self.time += 1e-7
        return self.time


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measure, "now", clock)
    monkeypatch.setattr(private, "HAS_ONEDNN", True)
    return clock


def test_a_machine_is_measured_once(fresh, tmp_path):
    assert choices() == FAST == choices()
    restart()
    assert choices() == FAST and len(fresh) == 1
    assert os.listdir(tmp_path / "loglik") == [cache_file().name]


@pytest.mark.parametrize("change", ["threads", "instructions", "torch", "OMP_WAIT_POLICY"])
def test_another_machine_is_measured_itself(fresh, monkeypatch, change):
    choices()
    machine = room._machine()
    assert change in machine
    monkeypatch.setattr(room, "_machine", lambda: machine | {change: "other"})
    restart()
    choices()
    assert len(fresh) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: "",
        lambda saved: json.dumps(saved)[:-9],
        lambda saved: "[1]",
        lambda saved: json.dumps(saved | {"machine": {}}),
        lambda saved: json.dumps(saved | {"choices": saved["choices"] | {"forward": "2"}}),
        lambda saved: json.dumps(saved | {"choices": saved["choices"] | {"forward": True}}),
        lambda saved: json.dumps(saved | {"choices": {"forward": 1}}),
    ],
)
def test_a_damaged_or_foreign_file_is_replaced(fresh, damage):
    choices()
    file = cache_file()
    file.write_text(damage(json.loads(file.read_text())))
    restart()
    assert choices() == FAST and len(fresh) == 2
    restart()
    assert choices() == FAST and len(fresh) == 2


def test_the_first_of_two_processes_decides(fresh, monkeypatch):
    first = Choices(forward=2**21)

    def measured_while_another_wrote():
        file = cache_file()
        file.write_text(json.dumps({"machine": room._machine(), "choices": asdict(first)}))
        return FAST

    monkeypatch.setattr(measure, "measure", measured_while_another_wrote)
    assert choices() == first


def test_where_the_file_cannot_be_written_torch_computes(fresh, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert choices() == Choices(bfloat16=choices().bfloat16) and not fresh


def test_the_environment_fixes_all(fresh, monkeypatch):
    monkeypatch.setenv("LOGLIK_CPU", "torch")
    assert (choices().forward, choices().single_thread, choices().attention) == (NEVER, 0, False)
    restart()
    monkeypatch.setenv("LOGLIK_CPU", "loglik")
    assert (choices().forward, choices().grad_weight, choices().attention) == (2**21, 2**21, True)
    restart()
    monkeypatch.setenv("LOGLIK_CPU", "fast")
    with pytest.raises(ValueError, match=r"LOGLIK_CPU must be torch or loglik, or unset .*; got 'fast'"):
        choices()
    assert not fresh


@pytest.mark.parametrize(("seconds", "chosen"), [(0.5, True), (0.8, True), (0.95, False), (1.5, False)])
def test_ours_is_chosen_where_it_is_clearly_faster(clock, seconds, chosen):
    """Also where another process slows every run of a side but one."""
    runs = iter([9.0, 9.0, 1.0, seconds, 7.0, 9.0, 9.0, 9.0])

    def side():
        clock.time += next(runs)

    assert (measure.speedup(side, side, rounds=3) >= measure.MARGIN) is chosen


def test_onednn_computes_from_the_size_where_it_is_faster(clock, monkeypatch):
    """And each gradient apart."""

    def takes(seconds):
        def product(x, weight, bias=None):
            clock.time += seconds(2 * x.numel() * len(weight), transposed=not x.is_contiguous())
            return x

        return product

    monkeypatch.setattr(measure.F, "linear", takes(lambda flops, transposed: flops * 1e-6))
    monkeypatch.setattr(
        private, "onednn_linear", lambda x, w, b: takes(lambda flops, transposed: 3 + flops * (3e-7 + transposed))(x, w)
    )
    found = {role: measure._onednn_from(operands) for role, operands in measure.ROLES.items()}
    assert found == {"forward": 2**23, "grad_x": 2**23, "grad_weight": NEVER}


@pytest.mark.parametrize(("wake", "found"), [(0.0, 0), (0.006, 2**21), (1.0, 2**24), (99.0, 2**24)])
def test_one_thread_computes_what_is_done_before_another_wakes(clock, monkeypatch, wake, found):
    monkeypatch.setattr(measure, "MAX_SECONDS", 1e3)
    threads = torch.get_num_threads()

    def product(x, weight):
        count = torch.get_num_threads()
        clock.time += x.numel() * len(weight) * 1e-8 / count + (count > 1) * wake

    monkeypatch.setattr(measure.F, "linear", product)
    assert measure._single_thread(2) == found
    assert measure._single_thread(64) <= measure.MAX_SERIAL // 64
    assert torch.get_num_threads() == threads


def test_this_machine_can_be_measured():
    """Nothing else changes: threads, gradients, random numbers."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.no_grad():
        found = measure.measure()
        assert not torch.is_grad_enabled()
    assert Choices.from_dict(found.to_dict()) == found
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


def test_a_resumed_run_keeps_its_choices(tmp_path):
    x = torch.randn(60, 3)
    options = {"out": tmp_path / "run", "progress": False, "device": "cpu", "precision": "32-true"}
    with use_choices(FAST):
        loglik.fit("vae", x, max_steps=2, **options)
    assert read_config(tmp_path / "run")["cpu"] == FAST.to_dict()
    lines, seen = [], []
    with use_choices(Choices(bfloat16=True)):
        loglik.fit("vae", x, max_steps=4, resume=True, report=lines.append, **options)
        seen = choices()
    assert seen == Choices(bfloat16=True)
    assert read_config(tmp_path / "run")["cpu"] == FAST.to_dict()
    assert f"the CPU's operations stay those that the run started with: forward={2**23} (here never)" in lines[0]
