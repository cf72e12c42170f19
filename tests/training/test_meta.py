"""Every step that trains, of every experiment, makes updates on torch's meta device, where nothing can be read.

`.item()`, `bool(tensor)`, a copy to the CPU and a selection by values raise there. So an update that passes does not
wait for a graphics card, and can be captured in a CUDA graph.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from on_meta import META, on_meta

from gradroute.config.compose import configuration
from gradroute.data.images.dataset import ImageData
from gradroute.errors import UserError
from gradroute.routing.memberships import checked_later
from gradroute.running.run import Run
from gradroute.training.fit import Fit, Training

CONF = Path(__file__).parents[2] / "conf" / "experiment"
NEEDS = {"cifar100_split", "planted_behaviour", "secrets/dpsgd"}  # data, adapters, and hooks of other packages
