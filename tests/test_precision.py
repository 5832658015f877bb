"""precision=auto: bfloat16 where the device multiplies in it, float32 where it would be emulated."""

import pytest
import torch

import loglik
from loglik.cpu import choices as room
from loglik.training.precision import multiplies_bfloat16


@pytest.mark.parametrize(
    ("used", "has", "native"),
    [
        ("AVX512", {"avx512_bf16": True}, True),
        ("AVX512", {"avx512_bf16": False}, False),
        ("AVX512", {}, False),
        ("SVE256", {"bf16": True}, True),
        ("AVX2", {"avx512_bf16": True}, False),  # ATEN_CPU_CAPABILITY=avx2
        ("DEFAULT", {"avx512_bf16": False}, False),
    ],
)
def test_a_cpu_trains_in_bfloat16_only_where_it_is_native(monkeypatch, used, has, native):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: used)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    monkeypatch.setattr(room, "_chosen", None)
    assert multiplies_bfloat16(torch.device("cpu")) is native
    dtypes = []

    class Watched(loglik.StandardNormal):
        def __init__(self):
            super().__init__((2,))
            self.scale = torch.nn.Linear(2, 2)

        def loss(self, x, context=None):
            z = self.scale(x)
            dtypes.append(z.dtype)
            return z.float().square().mean()

    options = {"precision": "auto", "accelerator": "cpu", "max_steps": 1, "progress": False}
    loglik.fit(Watched(), torch.randn(30, 2), **options)
    assert dtypes[0] == (torch.bfloat16 if native else torch.float32)
