"""Muon for matrices, in the dtype that the machine multiplies fastest."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# Of the quintic Newton-Schulz iteration, and how often it is done (https://kellerjordan.github.io/posts/muon).
COEFFICIENTS, TIMES = (3.4445, -4.775, 2.0315), 5


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, which computes in bf16 whatever the machine.

    A CPU that emulates bf16 products takes seven seconds a step with that, ten times as long as all else in the step.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, weight_decay: float, dtype: torch.dtype, momentum: float = 0.95
    ) -> None:
        """`dtype` is what the iteration computes in."""
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(param.grad)
                mean = state["momentum_buffer"].lerp_(param.grad, 1 - group["momentum"])
                update = orthogonal(param.grad.lerp(mean, group["momentum"]).to(self._dtype))
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(update, alpha=-group["lr"] * 0.2 * max(param.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """Roughly the nearest matrix whose rows (or columns, if they are fewer) are orthogonal."""
    a, b, c = COEFFICIENTS
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(TIMES):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if wide.shape == matrix.shape else wide.T
