"""Codes as bitsandbytes and torchao store them: a table of numbers, and a scale for each block of a flattened tensor.

The format is that of arXiv 2110.02861 with blocks of 256, as bitsandbytes 0.50 has it (functional.create_dynamic_map,
optim/optimizer.py), and torchao 0.18 (optim/quant_utils.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256
_EARLIER_BLOCK = 2048  # of optimizers before 256 became the size of all


def dynamic_map(signed: bool) -> Tensor:
    """The 256 numbers, in fp32 and ascending, that codes stand for.

    Each of the seven decades up to 1 has twice the numbers of the one below: the means of neighbours among points that
    divide [0.1, 1] evenly. With them 0, 1 and, if ``signed``, their negatives; so there is no −1.
    """
    decades = []
    for i in range(7):
        points = torch.linspace(0.1, 1, 2 ** (i if signed else i + 1) + 1, dtype=torch.float32)
        decades.append((points[:-1] + points[1:]) / 2 * 10.0 ** (i - 6))
    means = torch.cat([*decades, -torch.cat(decades)] if signed else decades)
    return torch.cat([means, torch.tensor([0.0, 1.0])]).sort().values


def encode(numbers: Tensor, table: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Codes of the shape of ``numbers``, which are finite, and a scale for each block: each code is the nearest.

    A scale is its block's largest magnitude, but where that is negative: a table with a sign has 1 and no −1, and both
    libraries store what is nearest to −1 (−0.993 in 8 bits, −0.8875 in torchao's 4), so that the block would shrink at
    every encoding. There the scale is so much larger, and what was decoded gets the codes that it came from.
    """
    blocks = F.pad(numbers.flatten().float(), (0, -numbers.numel() % block)).view(-1, block)
    scale, depth = blocks.amax(1), -blocks.amin(1)
    if table[0] < 0:
        scale = torch.where(depth >= scale, depth / -table[0], scale)
    parts = blocks / torch.where(scale > 0, scale, 1).unsqueeze(1)
    codes = torch.bucketize(parts, (table[1:] + table[:-1]) / 2, out_int32=True).to(torch.uint8)
    return codes.flatten()[: numbers.numel()].view(numbers.shape), scale


def decode(codes: Tensor, table: Tensor, scale: Tensor) -> Tensor:
    """table[code] · scale of its block, in fp32: the numbers that bitsandbytes computes with.

    Raises RuntimeError where there is no scale for each block of 256 or, as earlier versions had it, of 2,048.
    """
    count = codes.numel()
    block = next((size for size in (BLOCK, _EARLIER_BLOCK) if scale.numel() == -(-count // size)), None)
    if block is None:
        raise RuntimeError(
            f"{scale.numel()} scales fit {count} codes neither in blocks of {BLOCK} nor of {_EARLIER_BLOCK}; if the "
            "state is a shard, gather it before it is saved"
        )
    return (table[codes.flatten().int()] * scale.repeat_interleave(block)[:count]).view(codes.shape)
