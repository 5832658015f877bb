"""Checkpoints: what is written comes back, what is damaged is passed over, and no pickle is read."""

import torch
from torch import nn

from loglik.training import checkpoint


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
    state = {"step": 7, "best_nats": float("-inf"), "history": [{"step": 1, "train_nats": float("nan")}]}
    checkpoint.save(tmp_path / "new", 7, tensors, state)
    read, described = checkpoint.load_newest(tmp_path / "new")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) and read[name].dtype == tensors[name].dtype for name in tensors)
    assert repr(described) == repr(state)


def test_two_are_kept_and_nothing_half_written(tmp_path) -> None:
    assert checkpoint.load_newest(tmp_path / "absent") is None
    for step in (1, 2, 10, 1_000_000_000):
        checkpoint.save(tmp_path, step, {"w": torch.full((2,), float(step))}, {"step": step})
        assert checkpoint.load_newest(tmp_path)[1] == {"step": step}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000010.safetensors",
        "step-000000010.sha256",
        "step-1000000000.safetensors",
        "step-1000000000.sha256",
    ]


def test_no_good_checkpoint_is_given_up_for_damaged_later_ones(tmp_path) -> None:
    for step in (10, 20):
        checkpoint.save(tmp_path, step, {"w": torch.ones(2)}, {"step": step})
        (tmp_path / f"step-{step:09d}.safetensors").write_bytes(b"damaged")
    assert checkpoint.load_newest(tmp_path) is None
    checkpoint.save(tmp_path, 5, {"w": torch.zeros(2)}, {"step": 5})
    tensors, state = checkpoint.load_newest(tmp_path)
    assert state == {"step": 5} and torch.equal(tensors["w"], torch.zeros(2))


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
