"""Variational autoencoders against pythae, on Fashion-MNIST."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path
from typing import Any

from device import is_cpu, selected
from harness import Side, Unavailable, count, evaluation, training_steps

TITLE = "VAE"
SHAPES = {
    "dims": 784, "latent": 16, "hidden": 512, "small latent": 8, "small hidden": 64,
    "batch": 128, "epoch": 12800, "points": 32, "draws": 100,
}  # fmt: skip
LARGE = {"batch": 4096, "points": 1000, "draws": 1000}
NOTES = (
    "Both sides train the same model: Gaussian MLPs with one hidden layer in encoder and decoder, and an observation "
    "model with standard deviation 1 on pixels scaled to [0, 1]. `training step` is one step on a batch in memory. "
    "`epoch` is the call of a user on 12,800 images: `fit(max_epochs=1)` with validation and moving average, against "
    "pythae's own trainer without validation. Ours uses AdamW, pythae Adam, as each library does by default. The "
    "likelihood is the same importance-weighted bound of 32 images with 100 draws each: `log_prob(samples=100)` and "
    "`get_nll(n_samples=100)`. Both must decode every draw, and pythae also encodes each image 100 times: 2.6 and 5.3 "
    "GFLOP with 512 hidden units, whose time at the matrix peak is a lower limit for each side. `small` networks have "
    "few products: pythae spends its time in a loop over images, ours in passes over the decoded pixels. `python "
    "benchmarks/vae.py SIDE SECONDS [RATE [SEED]]` trains one side and prints its nats of validation and test images."
)
RATES = {"ours": 3e-3, "pythae": 1e-3}  # where nats are compared: the better of the two on validation, for each side
FOLDER = Path(os.environ.get("LOGLIK_DATA", "/usr/share/datasets/fashion-mnist"))


def images(part: str) -> Any:
    """Return the images of Fashion-MNIST, (N, 784) in [0, 1]."""
    import torch

    file = FOLDER / f"{part}-images-idx3-ubyte.gz"
    if not file.is_file():
        raise Unavailable(f"{file} is missing: set LOGLIK_DATA to the folder of Fashion-MNIST")
    raw = bytearray(gzip.decompress(file.read_bytes())[16:])
    return torch.frombuffer(raw, dtype=torch.uint8).view(-1, SHAPES["dims"]).float() / 255


def our_vae(size: str = "") -> Any:
    from torch import nn

    from loglik.networks.mlp import MLP
    from loglik.vae import VAE, Gaussian

    dims, latent, hidden = SHAPES["dims"], SHAPES[size + "latent"], (SHAPES[size + "hidden"],)
    return VAE(
        MLP(dims, 2 * latent, hidden, activation=nn.ReLU),
        MLP(latent, dims, hidden, activation=nn.ReLU),
        Gaussian((dims,), 1.0),
        latent=latent,
    )


def our_data(x: Any) -> Any:
    from loglik.data.dataset import Data, Split
    from loglik.data.spec import DataSpec

    held = Split(x[-1000:])
    return Data("fashion-mnist", DataSpec(kind="array", event_shape=(SHAPES["dims"],)), Split(x[:-1000]), held, held)


def ours() -> Side:
    import loglik

    vae, small, x = our_vae(), our_vae("small "), images("train")
    batch, few = (x[: SHAPES[part]].to(selected()) for part in ("batch", "points"))
    data = our_data(x[: SHAPES["epoch"] + 1000])
    options = {"max_epochs": 1, "batch_size": SHAPES["batch"], "progress": False, "device": selected()}
    return Side(
        operations={
            **training_steps(vae.parameters(), lambda: vae.loss(batch)),
            "epoch": lambda: loglik.fit(vae, data, **options),
            "likelihood": evaluation(vae, lambda: vae.log_prob(few, samples=SHAPES["draws"])),
            "likelihood, small": evaluation(small, lambda: small.log_prob(few, samples=SHAPES["draws"])),
        },
        parameters=count(vae),
    )


def their_vae(size: str = "") -> Any:
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from torch import nn

    dims, latent, hidden = SHAPES["dims"], SHAPES[size + "latent"], SHAPES[size + "hidden"]

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(dims, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))

        def forward(self, x):
            mean, log_variance = self.body(x).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, dims))

        def forward(self, z):
            return ModelOutput(reconstruction=self.body(z))

    return VAE(VAEConfig(input_dim=(dims,), latent_dim=latent, reconstruction_loss="mse"), Encoder(), Decoder())


def their_trainer(vae: Any, x: Any, rate: float) -> Any:
    import tempfile

    import torch
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    config = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=SHAPES["batch"], learning_rate=rate, no_cuda=is_cpu()
    )
    trainer = BaseTrainer(vae, BaseDataset(x, torch.zeros(len(x), device="cpu")), training_config=config)
    trainer.prepare_training()
    return trainer


def pythae() -> Side:
    vae, small, x = their_vae(), their_vae("small "), images("train")
    (batch, few), draws = (x[: SHAPES[part]].to(selected()) for part in ("batch", "points")), SHAPES["draws"]
    trainer = their_trainer(vae, x[: SHAPES["epoch"]], 1e-4)
    return Side(
        operations={
            **training_steps(vae.parameters(), lambda: vae({"data": batch}).loss),
            "epoch": lambda: trainer.train_step(epoch=1),
            "likelihood": evaluation(vae, lambda: vae.get_nll(few, n_samples=draws, batch_size=draws)),
            "likelihood, small": evaluation(small, lambda: small.get_nll(few, n_samples=draws, batch_size=draws)),
        },
        parameters=count(vae),
        packages=["pythae"],
    )


def bare_torch() -> Side:
    """Return a training step of the same model in twenty lines of torch, whose cost is that of its kernels."""
    import torch
    from torch import nn

    dims, latent, hidden = SHAPES["dims"], SHAPES["latent"], SHAPES["hidden"]
    encoder = nn.Sequential(nn.Linear(dims, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
    decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, dims))
    batch = images("train")[: SHAPES["batch"]].to(selected())

    def loss() -> torch.Tensor:
        mean, log_variance = encoder(batch).chunk(2, dim=1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        reconstruction = 0.5 * (decoder(z) - batch).square().sum(1)
        kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)
        return (reconstruction + kl).mean()

    both = nn.ModuleList([encoder, decoder])
    return Side(operations=training_steps(both.parameters(), loss), parameters=count(both))


SIDES = {"ours": ours, "pythae": pythae} | ({} if is_cpu() else {"bare torch": bare_torch})


def trained(side: str, seconds: float, rate: float, seed: int = 0, examples: int = 1000) -> tuple[list[float], float]:
    """Nats of validation and of test images after a training of so many seconds, each side's own way, and the seconds
    it took to score those of the test."""
    import torch

    torch.manual_seed(seed)
    x, test, draws = images("train"), images("t10k")[:examples], SHAPES["draws"]
    parts, nats, start = [x[-1000:][:examples], test], [], 0.0  # what `our_data` holds out
    if side == "ours":
        import loglik

        vae = our_vae()
        options = {"batch_size": SHAPES["batch"], "learning_rate": rate, "seed": seed, "patience": 0, "progress": False}
        loglik.fit(vae, our_data(x), max_time=seconds, **options)
        score = lambda part: vae.log_prob(part, samples=draws).mean().item()  # noqa: E731
    else:
        vae = their_vae()
        trainer, begun, epoch = their_trainer(vae, x[:-1000], rate), time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:  # ends with an epoch: up to one more than its share
            epoch += 1
            trainer.train_step(epoch=epoch)
        vae.eval()
        score = lambda part: vae.get_nll(part, n_samples=draws, batch_size=draws).item()  # noqa: E731
    with torch.no_grad():
        for part in parts:
            start = time.perf_counter()
            nats.append(score(part))
    return nats, time.perf_counter() - start


if __name__ == "__main__":
    import sys

    side, seconds, *more = sys.argv[1:]
    rate, seed = float(more[0]) if more else RATES[side], int(more[1]) if len(more) > 1 else 0
    (validation, test), took = trained(side, float(seconds), rate, seed)
    print(
        f"{side}: {validation:.3f} nats of 1,000 validation and {test:.3f} of 1,000 test images, these in {took:.2f} s"
    )
