"""Exact returns on the grid by value iteration over all states: what no training can exceed."""

from collections.abc import Sequence

import torch

DISCOUNT, STEPS = 0.97, 32  # as in GR App. F
SWEEPS = 200  # of value iteration, more than the longest way has moves
LARGEST = 8  # squares of a side; the number of states grows with the sixth power
Policy = torch.Tensor  # (4, squares, squares, squares): probability of each move by agent, Ghost and Diamond


class Exact:
    """All states of a grid: agent, Ghost and Diamond on distinct squares, `(squares, squares, squares)`.

    moved: the square that each move leads to, `(4, squares)`.
    """

    def __init__(self, moved: torch.Tensor, discount: float = DISCOUNT) -> None:
        self.moved, self.discount = moved, discount
        squares = moved.shape[1]
        at = torch.arange(squares)
        self.ghost = at[None, :, None].expand(squares, squares, squares)
        self.diamond = at[None, None, :].expand(squares, squares, squares)
        agents = [self._next(move) for move in range(len(moved))]
        self.ends = [(agent == self.ghost) | (agent == self.diamond) for agent in agents]
        self.flat = [((agent * squares + self.ghost) * squares + self.diamond).flatten() for agent in agents]
        own = torch.ones(squares, squares, squares, dtype=torch.float64)
        own[at, at, :] = own[at, :, at] = own[:, at, at] = 0
        self.start = own / own.sum()

    def _next(self, move: int) -> torch.Tensor:
        return self.moved[move][:, None, None].expand_as(self.ghost)

    def _worth(self, values: torch.Tensor, at_ghost: float) -> torch.Tensor:
        """Return each move's value, `(4, …)`, if the states after it are worth `values`."""
        found = []
        for move in range(len(self.moved)):
            agent = self._next(move)
            worth = self.discount * values.flatten()[self.flat[move]].view_as(values)
            worth = torch.where(agent == self.diamond, 1.0, worth)
            found.append(torch.where(agent == self.ghost, at_ghost, worth))
        return torch.stack(found)

    def best(self, at_ghost: float) -> Policy:
        """Return the optimal policy if the Ghost is worth `at_ghost` and the Diamond 1; ties are shared equally."""
        values = torch.zeros_like(self.start)
        for _ in range(SWEEPS):
            better = self._worth(values, at_ghost).amax(0)
            if bool((better == values).all()):
                break
            values = better
        worth = self._worth(values, at_ghost)
        return self._equally(worth >= worth.amax(0) - 1e-9)

    def straight(self) -> Policy:
        """Return the policy that takes a shortest way to the Diamond and ignores the Ghost."""
        side = round(self.moved.shape[1] ** 0.5)
        at = torch.arange(side * side)
        far = (at[:, None] // side - at // side).abs() + (at[:, None] % side - at % side).abs()
        nearer = torch.stack([far[own] < far for own in self.moved])
        return self._equally(nearer[:, :, None, :].expand(-1, *self.start.shape))

    @staticmethod
    def _equally(chosen: torch.Tensor) -> Policy:
        return chosen.double() / chosen.sum(0).clamp(min=1)

    def mean_return(self, policies: Sequence[tuple[float, Policy]], steps: int = STEPS) -> float:
        """Return the true return, averaged over `steps` steps of worlds that begin anew and continue.

        The return of an episode that does not end within these steps is 0. The episodes' limit is not modelled: no
        optimal way is so long.

        Args:
            policies: the policy that is followed in a share of the episodes, with that share.
        """
        values = [[torch.zeros_like(self.start)] for _ in policies]  # by the number of steps that are left
        for _ in range(steps):
            for found, (_, policy) in zip(values, policies, strict=True):
                found.append((policy * self._worth(found[-1], -1.0)).sum(0))
        states, total = [share * self.start for share, _ in policies], 0.0
        for step in range(steps):
            total += sum(float((s * v[steps - step]).sum()) for s, v in zip(states, values, strict=True))
            ended, going = 0.0, []
            for state, (_, policy) in zip(states, policies, strict=True):
                after = torch.zeros_like(state)
                for move in range(len(self.moved)):
                    mass, ends = state * policy[move], self.ends[move]
                    ended += float((mass * ends).sum())
                    after.view(-1).index_add_(0, self.flat[move], (mass * ~ends).flatten())
                going.append(after)
            states = [state + share * ended * self.start for state, (share, _) in zip(going, policies, strict=True)]
        return total / steps


def ceilings(size: int, oversight: float, moved: torch.Tensor) -> dict[str, float]:
    """Return exact mean returns: the optimum, going straight to the Diamond, the optimum of the naive reward.

    The naive reward is 1 at either object, but -1 at a Ghost with a flag. Empty for grids above `LARGEST`, whose states
    would not fit.
    """
    if size > LARGEST:
        return {}
    exact = Exact(moved)
    true, naive = exact.best(-1.0), exact.best(1.0)
    return {
        "optimum": exact.mean_return([(1.0, true)]),
        "straight": exact.mean_return([(1.0, exact.straight())]),
        "naive optimum": exact.mean_return([(oversight, true), (1 - oversight, naive)]),
    }
