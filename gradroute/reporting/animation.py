"""Animated plots: an animated PNG, which pages and browsers show as they show a PNG."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

COLOURS = 64  # of a frame


@dataclass
class Animation:
    """Frames `(height, width, 4)` uint8 of one size, each shown for some milliseconds, and the last one as a figure."""

    frames: list[npt.NDArray[np.uint8]]
    figure: Figure
    milliseconds: int = 500

    def save(self, path: Path) -> None:
        """Write the frames as one animated PNG, which begins anew at its end."""
        first, *rest = [Image.fromarray(frame).convert("RGB").quantize(COLOURS) for frame in self.frames]
        first.save(path, save_all=True, append_images=rest, duration=self.milliseconds, loop=0)
