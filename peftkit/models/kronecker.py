"""Linear layers whose weight is a sum of Kronecker products."""

from typing import Any

import torch
from torch import Tensor, nn

SPREAD = 0.02
"""Standard deviation of the initial weight, as for a plain bottleneck."""


class Rule(nn.Module):
    """The n matrices A_i, (n, n) each, shared by all layers of a model."""

    def __init__(self, n: int, **placed: Any) -> None:
        super().__init__()
        self.matrices = nn.Parameter(torch.empty(n, n, n, **placed))
        nn.init.normal_(self.matrices, std=n**-0.5)


class KroneckerLinear(nn.Module):
    """x W + b, with W the sum over i of A_i (x) (s_i t_i) (Mahabadi et al. 2021, equation 6).

    `s` is (n, size_in / n, rank), `t` (n, rank, size_out / n); with `zero`, W is initialized to 0.
    """

    def __init__(
        self, rule: Rule, size_in: int, size_out: int, rank: int, zero: bool, **placed: Any
    ) -> None:
        super().__init__()
        n = len(rule.matrices)
        self.rule = [rule]  # in a list, so that it is not registered, and counted, again
        self.s = nn.Parameter(torch.empty(n, size_in // n, rank, **placed))
        self.t = nn.Parameter(torch.empty(n, rank, size_out // n, **placed))
        self.bias = nn.Parameter(torch.zeros(size_out, **placed))
        spread = (SPREAD / rank**0.5) ** 0.5
        nn.init.normal_(self.s, std=spread)
        nn.init.normal_(self.t, std=0.0 if zero else spread)

    def matrix(self) -> Tensor:
        """W, (size_in, size_out)."""
        products = torch.einsum("iab,icr,ird->acbd", self.rule[0].matrices, self.s, self.t)
        return products.reshape(-1, len(self.bias))

    def forward(self, states: Tensor) -> Tensor:
        """(..., size_in) to (..., size_out)."""
        return states @ self.matrix() + self.bias
