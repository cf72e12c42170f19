"""Tables of one pass: every group's weights at a site, and each data point's row or mix of rows."""

from dataclasses import dataclass, field

import torch

from gradroute.routing.monitor import Monitor, OneGroup, Watched


@dataclass(eq=False)
class Table:
    """Weights and forward factors at a site, `(groups + 1, units)`; the last row, all 1, is the default route."""

    weight: torch.Tensor
    forward: torch.Tensor
    moved: tuple[tuple[int, ...], ...] = ((), ())  # groups whose row of `weight`, and of `forward`, may differ from 1

    @property
    def routed(self) -> bool:
        """Whether any gradient is weighted."""
        return bool(self.moved[0])

    @property
    def forwarded(self) -> bool:
        """Whether any activation is multiplied by a factor."""
        return bool(self.moved[1])


@dataclass
class Pass:
    """State of one `route` block: memberships, the sites' activations, and what measures them."""

    membership: torch.Tensor
    monitor: Monitor | OneGroup | Watched | None
    activations: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: dict[tuple[Table, bool], torch.Tensor] = field(default_factory=dict)  # by table, which most sites share

    def of(self, table: Table, forward: bool = False) -> torch.Tensor:
        """Return each data point's weights, or forward factors, `(…, units)`."""
        key = (table, forward)
        if key not in self.rows:
            values = table.forward if forward else table.weight
            self.rows[key] = rows_of(values, self.membership, table.moved[forward])
        return self.rows[key]


def rows_of(table: torch.Tensor, membership: torch.Tensor, moved: tuple[int, ...]) -> torch.Tensor:
    """Return each data point's row, or mix of rows: `(units,)`, `(batch, units)` or `(batch, tokens, units)`.

    moved: the groups whose rows may differ from 1.
    """
    membership = membership.to(table.device)
    if not membership.is_floating_point():
        return table[membership]
    rows = torch.ones_like(table[-1])
    for group in moved:
        rows = rows + membership[..., group, None].to(table.dtype) * (table[group] - 1)
    return rows
