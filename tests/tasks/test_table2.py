"""Every row of GR table 2: loss and gradients on one batch against a direct transcription of the published protocol."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from gradroute.config.compose import configuration
from gradroute.config.identity import to_mapping
from gradroute.models.base import plan_of
from gradroute.reporting.published import PUBLISHED, setting
from gradroute.tasks.image_objectives import ReconstructionObjective
from gradroute.tasks.parts import assemble

L1 = {1: (3e-3, 3e-3), 2: (3e-3, 3e-3), 3: (3e-3, 3e-3), 6: (3e-3, 2e-2), 7: (1e-3, 1e-3), 9: (3e-3, 3e-3)}
CORRELATION = {1, 2, 6, 9}


def mae(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).abs().mean()


def task_loss(row: int, model: Any, x: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """The reconstruction losses as published: one decoder pass for each group, `detach` for the mask."""
    z = model.encoder(x)
    top, bottom = z[:, :16], z[:, 16:]
    only_top, only_bottom = torch.cat([top, bottom.detach()], 1), torch.cat([top.detach(), bottom], 1)
    second = model.more_decoders[0] if row in (2, 5) else model.decoder
    if row in (7, 8):
        return mae(model.decoder(z[~low]), x[~low])
    if row in (9, 10):
        return mae(model.decoder(z[low]), x[low]) + mae(model.decoder(z[~low]), x[~low])
    loss = mae(model.decoder(only_top[low]), x[low]) + mae(second(only_bottom[~low]), x[~low])
    return loss + mae(model.decoder(only_bottom[low]), x[low]) if row == 6 else loss


def transcription(
    row: int, model: Any, certificates: nn.ModuleDict, x: torch.Tensor, low: torch.Tensor
) -> torch.Tensor:
    loss, z = task_loss(row, model, x, low), model.encoder(x)
    for name, part, weight in zip(("top", "bottom"), (z[:, :16], z[:, 16:]), L1.get(row, (0, 0)), strict=True):
        loss = loss + mae(certificates[name](part.detach()), x) + weight * part.norm(p=1, dim=1).mean()
    if row in CORRELATION:
        s = (z - z.mean(0)) / z.std(0)
        pairs = [((s[:, i] * s[:, j]).sum() / len(x)).abs() for i, j in product(range(16), range(16, 32))]
        loss = loss + 0.1 * torch.stack(pairs).mean()
    return loss


@pytest.mark.parametrize("row", range(1, 11))
def test_a_row_has_the_published_loss_and_gradients(row: int) -> None:
    config = configuration([f"experiment=mnist_table2/row{row}", "model.hidden=[10]"])
    assert config.name == f"mnist_table2_row{row}"
    config.model["hidden"] = [2048, 512]
    assert list(PUBLISHED)[row - 1] == setting(to_mapping(config))  # what the published values stand beside
    config.model["hidden"] = [10]
    torch.manual_seed(row)
    built, groups = plan_of(config.model).build(shape=[12]), list(config.routing.groups)
    parts = assemble(built, config.routing, config.losses, groups, torch.zeros(1, 12), 12)
    model, certificates = parts.model.double(), parts.certificates.double()
    x, low = torch.rand(20, 12, dtype=torch.float64) * 2 - 1, torch.arange(20) % 3 > 0
    several = config.model["decoders"] > 1
    objective = ReconstructionObjective(model, certificates, parts.router, config.losses, several_decoders=several)
    terms = objective(x, (~low).long())
    ours = torch.stack([value * weight for value, weight in terms.values()]).sum()
    theirs = transcription(row, model, certificates, x, low)
    if row == 6:  # counted once with weight 2 here, twice there
        assert [w for t, (_, w) in terms.items() if t.group == "digits_0_4"] == [2.0]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    parameters = [*model.parameters(), *certificates.parameters()]
    found = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (ours, theirs)]
    for (name, _), a, b in zip([*model.named_parameters(), *certificates.named_parameters()], *found, strict=True):
        assert (a is None) == (b is None), name
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-15)
