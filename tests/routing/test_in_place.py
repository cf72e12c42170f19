"""Sites whose output the next module changes in place, and sites in a mapping of outputs."""

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from gradroute import Monitor, Region, Router, UserError

SITES = ["bn1", "layer1.0.bn1", "layer1.0.bn2", "layer2.0.conv1"]


def resnet() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.resnet18(num_classes=5).eval()
    return model


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("watched", [False, True])
def test_torchvisions_resnet_is_routed_as_it_is(site: str, watched: bool) -> None:
    """Against the textbook form on a copy of the model in which nothing happens in place."""
    images, group = torch.randn(4, 3, 32, 32), torch.tensor([0, -1, 0, -1])
    model, other = resnet(), copy.deepcopy(resnet())
    for module in other.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    half = Region(site, "0:32", axis=1)
    router = Router(model, {"half": half}, ["a"], {"a": {"half": 0.25}}, images[:1])
    monitor = Monitor(router.regions, router.groups) if watched else None
    plain = model(images)
    with router.route(group, monitor) as activations:
        routed = model(images)
    assert torch.equal(plain, routed)
    penalty = activations[f"{site}@1"].abs().mean()  # what the site made, before the next module changed it
    (routed.square().sum() + penalty).backward()

    seen: list[torch.Tensor] = []

    def masked(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output)
        mask = torch.ones_like(output)
        mask[group == 0, :32] = 0.25
        return mask * output + ((1 - mask) * output).detach()

    other.get_submodule(site).register_forward_hook(masked)
    loss = other(images.clone()).square().sum()
    (loss + seen[0].abs().mean()).backward()
    if site != "layer1.0.bn2":  # there the block itself adds in place, to the copy's mask as well
        assert torch.allclose(penalty, seen[0].abs().mean())
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-5)


def test_a_site_that_nothing_routes_stays_as_it_was_too() -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True)), torch.randn(3, 4)
    router = Router(model, {"r": Region("0")}, ["g"], {}, x[:1])
    with router.route("g") as activations:
        model(x).sum().backward()
    assert float(activations["0"].detach().min()) < 0  # the ReLU did not reach it


class Named(nn.Module):
    """Returns a mapping, as transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.layer(x)
        return {"hidden": hidden, "twice": 2 * hidden}


class Model(nn.Module):
    """Uses one output of a module with several."""

    def __init__(self) -> None:
        super().__init__()
        self.named, self.head = Named(), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.named(x)["hidden"])
        return result


def test_an_output_in_a_mapping_is_named_by_its_key() -> None:
    torch.manual_seed(0)
    model, x = Model(), torch.randn(5, 4)
    router = Router(model, {"r": Region("named", "0:2", output="hidden")}, ["g"], {"g": {"r": 0.0}}, x[:1])
    assert list(router.masks) == ["named[hidden]"]
    with router.route("g"):
        model(x).square().sum().backward()
    rows = model.named.layer.weight.grad
    assert rows is not None and bool((rows[:2] == 0).all()) and bool((rows[2:] != 0).all())


@pytest.mark.parametrize("output", [None, "hiden", 0])
def test_a_key_that_is_not_there_is_refused_with_those_that_are(output: Any) -> None:
    with pytest.raises(UserError, match=r"returns a dict; give output=hidden or output=twice"):
        Router(Model(), {"r": Region("named", output=output)}, ["g"], {}, torch.zeros(1, 4))


class Alone(nn.Linear):
    """Returns a tuple of one, as some layers of transformers 4 do."""

    def forward(self, x: torch.Tensor) -> Any:
        return (super().forward(x),)


class Unpacks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = Alone(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (hidden,) = self.layer(x)
        result: torch.Tensor = self.head(hidden)
        return result


@pytest.mark.parametrize("output", [None, 0])
def test_the_only_output_of_a_tuple_needs_no_name(output: int | None) -> None:
    torch.manual_seed(0)
    model, x = Unpacks(), torch.randn(5, 4)
    router = Router(model, {"r": Region("layer", "0:2", output=output)}, ["g"], {"g": {"r": 0.0}}, x[:1])
    with router.route("g"):
        model(x).square().sum().backward()
    rows = model.layer.weight.grad
    assert rows is not None and bool((rows[:2] == 0).all()) and bool((rows[2:] != 0).any())
