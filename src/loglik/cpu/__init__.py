"""What makes torch fast on CPUs, and the only file that touches torch's private names (`private`).

Every operation here also runs without its fast path: on other devices, in other dtypes, without the C kernel. Callers
test nothing. The room imports nothing else of loglik.
"""

__all__: list[str] = []
