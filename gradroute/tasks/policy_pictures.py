"""What the report of a policy on the grid shows: walks at points of the training, and maps of experts and gate."""

from typing import Any

import torch

from gradroute.data.environments.grid import AGENT, DIAMOND, GHOST, GridWorld
from gradroute.models.policy import Policy
from gradroute.tasks.rollouts import Act, Rollouts

WORLDS, FRAMES, POINTS, SEED = 3, 16, 5, 31  # of a walk; the seed is that of the worlds and of the moves
Arrays = dict[str, torch.Tensor]


def walk(environment: GridWorld, act: Act, device: torch.device) -> torch.Tensor:
    """Return what happens in a few worlds, which are always the same at first, `(frames, worlds, 5)` int.

    The columns: squares of agent, Ghost and Diamond, flags of Ghost and Diamond.
    """
    rollouts, frames = Rollouts(environment, WORLDS, 1, SEED, device), list[torch.Tensor]()
    for _ in range(FRAMES):
        places = environment.places
        flags = environment.flags.gather(1, places[GHOST:].T)
        frames.append(torch.cat([places.T, flags.long()], 1).clone())
        rollouts.collect(act)
    return torch.stack(frames).to(torch.int16)


def scene(size: int, ghost: int, diamond: int) -> torch.Tensor:
    """Return observations of an agent on every square, without flags, `(squares, 4, size, size)`."""
    squares = size * size
    planes = torch.zeros(squares, 4, squares)
    planes[:, AGENT] = torch.eye(squares)
    planes[:, GHOST, ghost] = planes[:, DIAMOND, diamond] = 1
    return planes.view(squares, 4, size, size)


@torch.no_grad()
def maps(model: Policy, environment: GridWorld, device: torch.device) -> Arrays:
    """Return, on one fixed scene, the probability of each move by square: mixed, and by each expert; and the gate's.

    Arrays: `moves/NAME` `(squares, 4)`; `gate` `(squares,)`, the share of the first expert; `scene`, Ghost and Diamond.
    """
    size = environment.size
    ghost, diamond = (size // 2) * size + size // 2, size + size - 1  # the middle, and the right end of row two
    seen = scene(size, ghost, diamond).to(device)
    found = {"moves/mixed": model.logits(seen).softmax(-1)}
    if len(model.experts) > 1:
        found |= {f"moves/{name}": model.logits(seen, name).softmax(-1) for name in model.experts}
    if model.gate is not None:
        found["gate"] = model.gate(seen).sigmoid().squeeze(-1)
    return found | {"scene": torch.tensor([ghost, diamond])}


class Walks:
    """Walks at a few points of a training, each with its number of updates; part of a checkpoint."""

    def __init__(self, epochs: int) -> None:
        self.every = max(1, epochs // POINTS)
        self.walks: list[tuple[int, torch.Tensor]] = []

    def due(self, epoch: int) -> bool:
        """Return whether a walk is to be kept after an epoch."""
        return epoch % self.every == 0 and len(self.walks) < POINTS

    def arrays(self) -> Arrays:
        """Return `walks` `(points, frames, worlds, 5)` and `walk_steps` `(points,)`; nothing without a walk."""
        if not self.walks:
            return {}
        steps, walks = zip(*self.walks, strict=True)
        return {"walks": torch.stack(walks), "walk_steps": torch.tensor(steps)}

    def state(self) -> list[Any]:
        """Return the walks for a checkpoint."""
        return [[step, walk] for step, walk in self.walks]

    def load(self, state: list[Any]) -> None:
        """Restore what `state` returned."""
        self.walks = [(int(step), walk.cpu()) for step, walk in state]
