"""How alike two tokens are."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def unit_vectors(vectors: Tensor) -> Tensor:
    """Scale (M, D) vectors of any float dtype to length 1, in float32; zero vectors stay zero."""
    return functional.normalize(vectors.float(), dim=-1)
