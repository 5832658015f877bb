"""What makes torch fast on CUDA GPUs: kernels in Triton. Every caller works without them."""

__all__: list[str] = []
