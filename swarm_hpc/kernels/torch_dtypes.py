"""The torch dtype of each tensor that can be merged: `arena.DTYPES` for torch, which only programs import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F32": torch.float32,
    "I32": torch.int32,
    "U32": torch.uint32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "U16": torch.uint16,
    "BOOL": torch.bool,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""The torch dtype of each safetensors code of `plan.WIDTHS`."""
