"""Checkpoints: what is written comes back, what is damaged is passed over, and no pickle is read."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from loglik import files
from loglik.runs import METRICS
from loglik.training import checkpoint
from loglik.training.state import TrainerState


def test_round_trip_with_shared_memory_and_any_type(tmp_path, monkeypatch) -> None:
    monkeypatch.delattr(torch, "load")
    shared = torch.randn(3, 4)
    tensors = {
        "a": shared,
        "b": shared.T,
        "step": torch.tensor(3.0),
        "half": shared.bfloat16(),
        "codes": torch.arange(5),
        "none": torch.empty(0),
    }
    row = {**dict.fromkeys(METRICS, 0.5), "step": 1, "train_nats": float("nan")}
    state = TrainerState(step=7, elapsed=0.25, best_nats=float("-inf"), history=(row,))
    checkpoint.save(tmp_path / "new", tensors, state)
    read, described = checkpoint.load_newest(tmp_path / "new")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) and read[name].dtype == tensors[name].dtype for name in tensors)
    assert repr(described) == repr(state)


def test_two_are_kept_and_nothing_half_written(tmp_path) -> None:
    assert checkpoint.load_newest(tmp_path / "absent") is None
    for step in (1, 2, 10, 1_000_000_000):
        checkpoint.save(tmp_path, {"w": torch.full((2,), float(step))}, TrainerState(step=step))
        assert checkpoint.load_newest(tmp_path)[1] == TrainerState(step=step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000010.safetensors",
        "step-000000010.sha256",
        "step-1000000000.safetensors",
        "step-1000000000.sha256",
    ]


def test_as_many_are_kept_as_the_setting_says(tmp_path) -> None:
    for step in range(1, 6):
        checkpoint.save(tmp_path, {"w": torch.ones(2)}, TrainerState(step=step), keep=3)
    assert sorted(tmp_path.glob("*.safetensors")) == [tmp_path / f"step-{step:09d}.safetensors" for step in (3, 4, 5)]


def test_the_checkpoint_before_stays_where_the_disk_returns_something_else(tmp_path, monkeypatch) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, {"w": torch.ones(2)}, TrainerState(step=step))
    digest = files.digest
    monkeypatch.setattr(files, "digest", lambda path: "0" if path.suffix == ".safetensors" else digest(path))
    with pytest.raises(OSError, match=r"step-000000003.safetensors is not as it was written"):
        checkpoint.save(tmp_path, {"w": torch.ones(2)}, TrainerState(step=3))
    assert (tmp_path / "step-000000001.safetensors").is_file() and (tmp_path / "step-000000002.safetensors").is_file()


def test_no_good_checkpoint_is_given_up_for_damaged_later_ones(tmp_path) -> None:
    for step in (10, 20):
        checkpoint.save(tmp_path, {"w": torch.ones(2)}, TrainerState(step=step))
        (tmp_path / f"step-{step:09d}.safetensors").write_bytes(b"damaged")
    assert checkpoint.load_newest(tmp_path) is None
    checkpoint.save(tmp_path, {"w": torch.zeros(2)}, TrainerState(step=5))
    tensors, state = checkpoint.load_newest(tmp_path)
    assert state == TrainerState(step=5) and torch.equal(tensors["w"], torch.zeros(2))


ROW = dict.fromkeys(METRICS, 0.5)
STATE = {
    "step": 3, "elapsed": 1.5, "best_nats": -2.0, "best_train": -1.5, "best_step": 2, "worse": 1, "history": [ROW],
}  # fmt: skip


def write_state(folder, state: str) -> None:
    """Write a checkpoint with a right checksum and any text as its state."""
    path = folder / "step-000000003.safetensors"
    save_file({"w": torch.ones(2)}, path, {"state": state})
    path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())


def test_the_state_on_disk_keeps_its_names(tmp_path) -> None:
    """So that a checkpoint of an earlier version can be resumed."""
    write_state(tmp_path, json.dumps(STATE))
    _, state = checkpoint.load_newest(tmp_path)
    assert state == TrainerState(
        step=3, elapsed=1.5, best_nats=-2.0, best_train=-1.5, best_step=2, worse=1, history=(ROW,)
    )
    assert json.loads(json.dumps(state.to_dict())) == STATE and list(state.to_dict()) == list(STATE)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("{", "damaged"),
        ("[]", "expected an object with the fields of a training's state, got list"),
        (json.dumps({k: v for k, v in STATE.items() if k != "worse"}), "worse is missing"),
        (json.dumps({**STATE, "__class__": 1}), "unknown field '__class__': expected step, elapsed"),
        (json.dumps({**STATE, "step": True}), "step must be an integer, got True"),
        (json.dumps({**STATE, "best_step": 2.0}), r"best_step must be an integer, got 2\.0"),
        (json.dumps({**STATE, "elapsed": "1"}), "elapsed must be a number, got '1'"),
        (json.dumps({**STATE, "history": 1}), "history must be a list of rows, got int"),
        (json.dumps({**STATE, "history": [ROW, {"step": 1}]}), "row 1 of history must hold the numbers step, time"),
        (json.dumps({**STATE, "history": [{**ROW, "time": None}]}), "row 0 of history must hold the numbers"),
    ],
)
def test_a_damaged_state_is_one_clear_line(state, words, tmp_path) -> None:
    write_state(tmp_path, state)
    with pytest.raises(ValueError, match=words) as error:
        checkpoint.load_newest(tmp_path)
    assert "step-000000003.safetensors" in str(error.value) and "\n" not in str(error.value)
    assert "delete this file to resume from the checkpoint before it" in str(error.value)


def test_the_optimizer_comes_back_whole() -> None:
    def begun() -> tuple[nn.Linear, torch.optim.AdamW]:
        model = nn.Linear(3, 2)
        groups = [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias], "weight_decay": 0.0}]
        return model, torch.optim.AdamW(groups, lr=0.1, fused=True)

    def step(model: nn.Linear, optimizer: torch.optim.AdamW) -> None:
        model(torch.arange(6.0).view(2, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = begun()
    for _ in range(3):
        step(model, optimizer)
    other, restored = begun()
    other.load_state_dict(model.state_dict())
    tensors = {k: v.clone() for k, v in checkpoint.flatten_optimizers([optimizer]).items()}
    assert tensors["optimizer.0.0.step"] == 3
    checkpoint.restore_optimizers([restored], {**tensors, "model.weight": torch.zeros(1)})
    step(model, optimizer)
    step(other, restored)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)
