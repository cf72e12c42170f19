"""Read IDX, the format of MNIST's files: sizes of four bytes, the most significant first, then a byte for each value.

torchvision reads it, too, but its import takes longer than the rest of reading MNIST.
"""

import math
import struct
from pathlib import Path

import torch

from gradroute.records.safe_reading import open_plain

BYTES = 8  # the format's code for values of one byte, from 0 to 255


def read_idx(path: Path, dimensions: int) -> torch.Tensor:
    """Return the values of a file as uint8, of the shape in its header.

    Raises: UserError if it cannot be read; ValueError if it is of another format or number of dimensions, or has more
        or fewer values than its header says.
    """
    with open_plain(path) as file:
        content = bytearray(file.read())  # a tensor shares its memory, and may be written to
    start = 4 * (1 + dimensions)
    if len(content) < start or content[:4] != bytes([0, 0, BYTES, dimensions]):
        raise ValueError(f"{path.name} is not an IDX file of bytes in {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if math.prod(shape) != len(content) - start:
        raise ValueError(f"{path.name} has {len(content) - start} values, and its header says {math.prod(shape)}")
    if not math.prod(shape):
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(content, dtype=torch.uint8, offset=start).reshape(shape)
