"""Act in an environment, and say of every step what its episode came to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gradroute.data.environments.base import CONTINUES, Environment
from gradroute.errors import UserError

Act = Callable[[torch.Tensor], torch.Tensor]  # from observations `(n, *shape)` to logits `(n, actions)`


@dataclass(frozen=True)
class Rollout:
    """Steps of many worlds: observations `(worlds, steps, *shape)`; all else is `(worlds, steps)`.

    endings: number of the ending of an episode at its last step, else `CONTINUES`. rewards: the environment's own.
    """

    observations: torch.Tensor
    actions: torch.Tensor
    endings: torch.Tensor
    rewards: torch.Tensor


def returns(rewards: torch.Tensor, endings: torch.Tensor, discount: float) -> torch.Tensor:
    """Return the discounted sum of rewards from each step to its episode's end, `(worlds, steps)`.

    What comes after the last step is not estimated: it counts as 0.
    """
    found, after = [], torch.zeros_like(rewards[:, 0])
    for reward, ending in zip(reversed(rewards.unbind(1)), reversed(endings.unbind(1)), strict=True):
        after = reward + discount * torch.where(ending == CONTINUES, after, 0.0)
        found.append(after)
    return torch.stack(found[::-1], 1)


def propagated(endings: torch.Tensor, unfinished: int) -> torch.Tensor:
    """Return the number of the ending of each step's episode, `(worlds, steps)`; `unfinished` if it is not there."""
    found, after = [], torch.full_like(endings[:, 0], unfinished)
    for ending in reversed(endings.unbind(1)):
        after = torch.where(ending == CONTINUES, after, ending)
        found.append(after)
    return torch.stack(found[::-1], 1)


class Rollouts:
    """Worlds of an environment that a policy acts in, batch by batch. Their state belongs in a checkpoint.

    Args:
        count: number of worlds. steps: of each in a batch. seed: determines the worlds and the choice of actions.
    """

    def __init__(self, environment: Environment, count: int, steps: int, seed: int, device: torch.device) -> None:
        self.environment, self.count, self.steps, self.device = environment, count, steps, device
        self.random = torch.Generator(device).manual_seed(seed)
        environment.begin(count, seed + 1, device)

    @torch.no_grad()
    def collect(self, act: Act, greedy: bool = False) -> Rollout:
        """Take `steps` steps in every world, with actions drawn from the policy, or the most likely ones if `greedy`.

        Raises: UserError for a reward that is not finite.
        """
        world, size = self.environment, (self.steps, self.count, self.environment.actions)
        if not world.continues:
            seed = torch.randint(2**31, (), generator=self.random, device=self.device)
            world.begin(self.count, int(seed), self.device)
        # the largest of logits + Gumbel noise is drawn from their softmax
        noise = torch.zeros(size, device=self.device)
        if not greedy:
            noise.exponential_(generator=self.random).log_()
        found: list[tuple[torch.Tensor, ...]] = []
        for own in noise:
            observations = world.observe()
            actions = (act(observations).float() - own).argmax(-1)
            endings, rewards = world.step(actions)
            found.append((observations, actions, endings, rewards))
        rollout = Rollout(*(torch.stack(values, 1) for values in zip(*found, strict=True)))
        if not bool(rollout.rewards.isfinite().all()):
            what = rollout.rewards[~rollout.rewards.isfinite()][0].item()
            raise UserError(f"environment: it gave the reward {what}; a reward must be finite")
        return rollout

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the worlds and of the random numbers."""
        return {"random": self.random.get_state(), "environment": self.environment.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.random.set_state(state["random"].cpu())
        self.environment.load_state_dict(state["environment"])
