"""Environments of gymnasium with discrete actions, of which several worlds are stepped one after the other."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch

from gradroute.config.limits import Between, Text
from gradroute.data.environments.base import CONTINUES, Environment
from gradroute.errors import UserError, first_line, unknown

INSTALL = "environment: gymnasium is not installed; pip install 'gradroute[rl]'"


class GymEnvironment(Environment):
    """Worlds of an environment that is registered with gymnasium. Each batch begins with new worlds.

    An episode's ending is `info[key]` if it is there; else `won` for a positive last reward, `lost` for another, and
    `timeout` if the episode was truncated. Subclass it and override `ending`, and `endings`, for another rule.

    Args:
        id: its name, such as `MiniGrid-Empty-5x5-v0`.
        package: the module that registers it, if it is not part of gymnasium.
        options: arguments of its constructor.
        scale: what observations in bytes are divided by.
        key: the key of `info` that names an ending.
        names: the endings, if they are not won, lost and timeout.
    """

    continues = False
    endings: tuple[str, ...] = ("won", "lost", "timeout")
    packages: ClassVar[tuple[str, ...]] = ("minigrid", "gradroute.data.environments.single")

    def __init__(
        self, id: Annotated[str, Text("the name of an environment of gymnasium")], package: str | None = None,
        options: dict[str, Any] | None = None, scale: Annotated[float, Between(1e-3, 1e6)] = 255.0,
        key: str = "ending", names: list[str] | None = None,
    ) -> None:  # fmt: skip
        self.id, self.options, self.scale, self.key = id, options or {}, scale, key
        self.endings = tuple(names) if names else self.endings
        self._register(package)
        self.worlds = [self._made()]
        actions = self.worlds[0].action_space
        if type(actions).__name__ != "Discrete":
            raise UserError(f"environment.id={id}: its actions are {actions}; they must be Discrete")
        self.actions, self.first = int(actions.n), int(actions.start)
        self.parts = self._parts()
        self.shape = self._shape()

    def _register(self, package: str | None) -> None:
        """Import gymnasium and the package that registers the environment. Raises: UserError."""
        import importlib

        try:
            importlib.import_module("gymnasium")
        except ImportError:
            raise UserError(INSTALL) from None
        if ":" in self.id:
            raise UserError(f"environment.id={self.id}: must not name a module; give it as environment.package")
        if package is None:
            return
        if package not in self.packages:
            right = (
                f"one of {', '.join(self.packages)}; or subclass GymEnvironment in code of your own, which imports it"
            )
            raise UserError(f"environment.package={package}: must be {right}")
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(f"environment.package={package}: is not installed; pip install {package}") from None

    def _made(self) -> Any:
        """Return one world. Raises: UserError if gymnasium cannot make it."""
        import gymnasium

        try:
            return gymnasium.make(self.id, **self.options)
        except Exception as error:  # whatever the environment's constructor raises
            raise UserError(f"environment.id={self.id}: cannot be made ({first_line(error)})") from None

    def _parts(self) -> list[tuple[str, Any]]:
        """Return the numeric parts of an observation, by key: one part, or those of a Dict. Raises: UserError."""
        space = self.worlds[0].observation_space
        spaces = dict(space.spaces) if hasattr(space, "spaces") and isinstance(space.spaces, Mapping) else {"": space}
        kinds = ("Box", "Discrete", "MultiBinary", "MultiDiscrete")
        parts = [(name, part) for name, part in spaces.items() if type(part).__name__ in kinds]
        if not parts:
            raise UserError(f"environment.id={self.id}: its observations are {space}; none of them is a number")
        return parts

    def _shape(self) -> tuple[int, ...]:
        """Return the shape of an observation: of images, planes first; several parts are joined in one row."""
        if len(self.parts) > 1 or type(self.parts[0][1]).__name__ == "Discrete":
            return (sum(self._width(part) for _, part in self.parts),)
        shape = tuple(int(side) for side in self.parts[0][1].shape)
        return (shape[-1], *shape[:-1]) if self._pictures() else shape

    def _pictures(self) -> bool:
        """Return whether observations are pictures in bytes, whose colours come last."""
        part = self.parts[0][1]
        return len(self.parts) == 1 and part.dtype == np.uint8 and len(part.shape) == 3

    @staticmethod
    def _width(part: Any) -> int:
        return int(part.n) if type(part).__name__ == "Discrete" else int(np.prod(part.shape))

    def _number(self, observation: Any) -> torch.Tensor:
        """Return an observation as one tensor of the environment's shape. Raises: UserError if it has another."""
        found = []
        for name, part in self.parts:
            value = np.asarray(observation[name] if name else observation)
            if type(part).__name__ == "Discrete":
                value = np.eye(int(part.n), dtype=np.float32)[int(value) - int(part.start)]
            elif value.shape != part.shape:
                fault = f"an observation has the shape {list(value.shape)}; its space says {list(part.shape)}"
                raise UserError(f"environment.id={self.id}: {fault}")
            scale = self.scale if value.dtype == np.uint8 else 1.0
            found.append(torch.as_tensor(value.astype(np.float32) / scale))
        if len(found) == 1:
            return found[0].movedim(-1, 0) if self._pictures() else found[0]
        return torch.cat([part.flatten() for part in found])

    def begin(self, count: int, seed: int, device: torch.device) -> None:
        """Begin `count` new worlds."""
        self.device = device
        while len(self.worlds) < count:
            self.worlds.append(self._made())
        self.now = [self._number(world.reset(seed=seed + i)[0]) for i, world in enumerate(self.worlds[:count])]

    def observe(self) -> torch.Tensor:
        """Return what is seen of every world now."""
        return torch.stack(self.now).to(self.device)

    def step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Act in every world; one that has ended is reset."""
        endings, rewards = [], []
        for place, action in enumerate(actions.tolist()):
            seen, reward, terminated, truncated, info = self.worlds[place].step(action + self.first)
            ending = CONTINUES
            if terminated or truncated:
                name = self.ending(info, float(reward), bool(truncated and not terminated))
                if name not in self.endings:
                    raise unknown("environment: ending", name, self.endings)
                ending, (seen, _) = list(self.endings).index(name), self.worlds[place].reset()
            self.now[place] = self._number(seen)
            endings.append(ending)
            rewards.append(float(reward))
        return torch.tensor(endings, device=self.device), torch.tensor(rewards, device=self.device)

    def ending(self, info: Mapping[str, Any], reward: float, truncated: bool) -> str:
        """Return the name of an episode's ending, from its last step."""
        if self.key in info:
            return str(info[self.key])
        return "timeout" if truncated else "won" if reward > 0 else "lost"
