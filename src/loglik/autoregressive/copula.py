"""A Gaussian distribution with any of its variables observed: fitted with gaps, and conditioned row by row."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["GaussianCopula"]

ITERATIONS = 30
CHUNK = 512  # rows whose matrices are decomposed together
MAX_FITTED_ROWS = 4096
FEW_ROWS = 2048  # up to which the shrinkage is chosen on half of the rows
SHARES = (1.0, 0.3, 0.1, 0.03, 0.01)  # of the shrinkage's intensity
TOLERANCE = 1e-3


class GaussianCopula(nn.Module):
    r"""$\mathcal N(\mu, \Sigma)$ over D scores, and its conditionals given any observed ones.

    With S the observed variables, $m_d = \mu_d + \Sigma_{dS} \Sigma_{SS}^{-1} (z_S - \mu_S)$ and
    $v_d = \Sigma_{dd} - \Sigma_{dS} \Sigma_{SS}^{-1} \Sigma_{Sd}$.

    `initialise` fits by expectation maximisation (Dempster, Laird and Rubin 1977), with the covariance shrunk towards
    its diagonal. The intensity of the shrinkage is a share of that of Schäfer and Strimmer 2005: of `SHARES` the one
    that gives every other row the highest likelihood under a fit to the rest; the smallest with many rows.
    """

    mean: Tensor
    covariance: Tensor

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dims, dtype=torch.float64))
        self.register_buffer("covariance", torch.eye(dims, dtype=torch.float64))

    def forward(self, z: Float[Tensor, "B D"], observed: Bool[Tensor, "B D"]) -> tuple[Tensor, Tensor]:
        """Return the conditional mean and variance (B, D) of each variable given the observed ones.

        They are meaningful for variables that are not observed; z is ignored there.
        """
        z = torch.where(observed, z.double() - self.mean, 0.0)
        if torch.compiler.is_exporting():  # of any number of rows
            mean, variance = self._chunk(z, observed)
            return mean + self.mean, variance
        parts = [self._chunk(*rows) for rows in zip(z.split(CHUNK), observed.split(CHUNK), strict=True)]
        mean, variance = (torch.cat(part) for part in zip(*parts, strict=True))
        return mean + self.mean, variance

    def _chunk(self, z: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the conditional mean less the mean, and the variance."""
        if z.device.type == "cpu" and not torch.compiler.is_compiling():  # where a look at the masks costs nothing
            sets, which = observed.unique(dim=0, return_inverse=True)
            if 4 * len(sets) < len(z):
                rows, factor, variance = self._given(sets)
                regression = torch.linalg.solve_triangular(factor.mT, rows, upper=True)
                mean = z @ regression[0] if len(sets) == 1 else (z[:, None] @ regression[which])[:, 0]
                return mean, variance[which]
        rows, factor, variance = self._given(observed)
        whitened = torch.linalg.solve_triangular(factor, z[:, :, None], upper=False)
        return (rows * whitened).sum(1), variance

    def _given(self, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return L^-1 Σ_S, L with Σ_SS = L L', and the conditional variance, of each set S."""
        on = observed.to(self.mean.dtype)
        chosen = on[:, :, None] * self.covariance
        factor, _ = torch.linalg.cholesky_ex(chosen * on[:, None, :] + torch.diag_embed(1 - on))
        rows = torch.linalg.solve_triangular(factor, chosen, upper=False)
        return rows, factor, (self.covariance.diagonal() - rows.square().sum(1)).clamp_min(1e-10)

    @torch.no_grad()
    def initialise(self, z: Float[Tensor, "N D"], observed: Bool[Tensor, "N D"]) -> None:
        """Fit to rows with gaps; rows beyond 4,096 are skipped evenly."""
        step = -(-len(z) // MAX_FITTED_ROWS)
        z, observed = z[:: max(step, 1)].double(), observed[:: max(step, 1)]
        share = SHARES[-1]
        if 8 <= len(z) <= FEW_ROWS:
            fits = []
            for share in SHARES:
                self._fit(z[::2], observed[::2], share)
                fits.append(self._log_prob(z[1::2], observed[1::2]).clamp_min(-10 * z.shape[1]).mean())
            share = SHARES[int(torch.stack(fits).argmax())]
        self._fit(z, observed, share)

    def _fit(self, z: Tensor, observed: Tensor, share: float) -> None:
        count = observed.sum(0).clamp_min(1)
        mean = torch.where(observed, z, 0.0).sum(0) / count
        residual = torch.where(observed, z - mean, 0.0)
        variance = (residual.square().sum(0) + 1e-2) / (count + 1e-2)
        self.mean.copy_(mean)
        self.covariance.copy_(torch.diag(variance))
        if not len(z):
            return
        for _ in range(1 if bool(observed.all()) else ITERATIONS):
            before = self.covariance.clone()
            self._maximise(z, observed, share)
            if (self.covariance - before).abs().max() < TOLERANCE:
                break

    def _log_prob(self, z: Tensor, observed: Tensor) -> Tensor:
        """Return log p of the observed variables of each row, less a constant of each."""
        _, factor, _ = self._given(observed)
        centred = torch.where(observed, z - self.mean, 0.0)
        whitened = torch.linalg.solve_triangular(factor, centred[:, :, None], upper=False)[:, :, 0]
        return -(0.5 * whitened.square() + factor.diagonal(dim1=1, dim2=2).log()).sum(1)

    def _maximise(self, z: Tensor, observed: Tensor, share: float) -> None:
        """One iteration: the moments of the completed rows, shrunk."""
        n, dims = z.shape
        total, left = torch.zeros_like(self.mean), torch.zeros_like(self.covariance)
        completed = []
        for rows, seen in zip(z.split(CHUNK), observed.split(CHUNK), strict=True):
            y, factor, _ = self._given(seen)
            centred = torch.where(seen, rows - self.mean, 0.0)
            mean = (y * torch.linalg.solve_triangular(factor, centred[:, :, None], upper=False)).sum(1)
            missing = (~seen).to(z.dtype)
            completed.append(torch.where(seen, rows, mean + self.mean))
            y = y * missing[:, None, :]
            left += self.covariance * (missing.T @ missing) - torch.einsum("nki,nkj->ij", y, y)
            total += completed[-1].sum(0)
        rows = torch.cat(completed)
        mean = total / n
        centred = rows - mean
        covariance = (centred.T @ centred + left) / n
        std = covariance.diagonal().clamp_min(1e-10).sqrt()
        correlation = covariance / (std[:, None] * std)
        shrinkage = share * _intensity(centred / std, correlation, observed)
        off = 1 - torch.eye(dims, dtype=z.dtype, device=z.device)
        self.mean.copy_(mean)
        self.covariance.copy_(std[:, None] * std * (correlation * (1 - shrinkage * off) + 1e-4 * (1 - off)))


def _intensity(u: Float[Tensor, "N D"], correlation: Float[Tensor, "D D"], observed: Tensor) -> Tensor:
    """Return how far to shrink correlations to 0: the sum of their variances, over the sum of their squares."""
    n = max(len(u), 2)
    seen = observed.to(u.dtype).mean(0)
    seen = (seen[:, None] * seen).clamp_min(1 / n)
    products_variance = (u.square().T @ u.square() / n - (u.T @ u / n).square()).clamp_min(0) / n / seen
    off = 1 - torch.eye(len(correlation), dtype=u.dtype, device=u.device)
    variances, squares = (products_variance * off).sum(), (correlation.square() * off).sum()
    return (variances / squares.clamp_min(1e-12)).clamp(0, 1)
