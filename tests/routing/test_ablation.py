"""Ablations: each does what it says, they compose, and the model is given back to the bit."""

import pytest
import torch
from torch import nn

from gradroute import ParameterRegion, ParameterRouter, Region, Router, UserError
from gradroute.models.autoencoder import Autoencoder
from gradroute.routing.ablation import Ablation, mean, reinitialise, remove, resample, together, zero

X = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
REGIONS = {"odd": Region("encoder", [1, 3]), "first": Region("encoder", [0]), "act": Region("encoder.act0", "0:2")}


def model_of() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder([4], [5], 4)


def setting() -> tuple[Autoencoder, Router, torch.Tensor]:
    model = model_of()
    return model, Router(model, REGIONS, ["g"], {}, X[:1]), model.encoder(X).detach()


def output(model: nn.Module, ablation: Ablation) -> torch.Tensor:
    """The ablated model's output, after checking that the model itself comes back to the bit."""
    before, kept = model(X), {key: value.clone() for key, value in model.state_dict().items()}
    with ablation.applied(model) as ablated:
        found: torch.Tensor = ablated(X).detach()
    assert torch.equal(model(X), before)
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    return found


def test_zero_mean_and_both_replace_activations() -> None:
    model, router, z = setting()
    seen = {"encoder": z}
    zeroed, averaged, both = z.clone(), z.clone(), z.clone()
    zeroed[:, [1, 3]] = 0
    averaged[:, [1, 3]] = z[:, [1, 3]].mean(0)
    both[:, [0, 1, 3]] = 0
    for ablation, expected in (
        (zero("odd", router), zeroed),
        (mean("odd", router, seen), averaged),
        (together([zero("odd", router), zero("first", router)]), both),
    ):
        torch.testing.assert_close(output(model, ablation), model.decoder(expected))
    assert together([zero("odd", router), zero("first", router)]).name == "odd+first"


def test_resampling_takes_whole_rows_of_other_points_and_repeats_itself() -> None:
    model, router, z = setting()
    bank = {"encoder": torch.arange(40.0).view(10, 4)}
    ablation = resample("odd", router, bank, seed=3)
    seen: list[torch.Tensor] = []
    handle = model.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    first = output(model, ablation)
    handle.remove()
    _, ablated, _ = seen
    assert torch.equal(ablated[:, [0, 2]], z[:, [0, 2]])
    rows = ablated[:, 1] // 4
    assert torch.equal(ablated[:, [1, 3]], bank["encoder"][rows.long()][:, [1, 3]]) and len(rows.unique()) > 2
    assert torch.equal(first, output(model, ablation))
    assert not torch.equal(first, output(model, resample("odd", router, bank, seed=4)))


def test_reinitialising_draws_the_producing_rows_anew_as_the_layer_does() -> None:
    model, router, _ = setting()
    with reinitialise("act", router, seed=5).applied(model):
        layer = model.encoder.get_submodule("linear0")
        changed = {key: value.clone() for key, value in layer.state_dict().items()}
    before = model.encoder.get_submodule("linear0").state_dict()
    torch.manual_seed(5)
    fresh = nn.Linear(4, 5).state_dict()
    for key in ("weight", "bias"):
        assert torch.equal(changed[key][:2], fresh[key][:2]) and torch.equal(changed[key][2:], before[key][2:])
    assert not torch.equal(output(model, reinitialise("act", router, seed=5)), model(X))


def test_removal_gives_a_smaller_model_that_equals_zero_ablation() -> None:
    model, router, _ = setting()
    for name in ("odd", "act"):
        torch.testing.assert_close(output(model, remove(name, router, X)), output(model, zero(name, router)))
    with together([remove("act", router, X), zero("odd", router)]).applied(model) as smaller:
        assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())


def test_parameters_are_zeroed_and_reinitialised() -> None:
    model = model_of()
    router = ParameterRouter(model, {"r": ParameterRegion({"decoder.linear0.weight": "0:2"})}, ["g"], {})
    layer = model.decoder.get_submodule("linear0")
    with zero("r", router).applied(model):
        weight = layer.state_dict()["weight"].clone()
    assert bool((weight[:2] == 0).all()) and bool((weight[2:] != 0).all())
    assert not torch.equal(output(model, reinitialise("r", router, 0)), model(X))


def test_an_exception_inside_gives_the_model_back() -> None:
    model, router, _ = setting()
    before = model(X)
    for ablation in (zero("odd", router), reinitialise("odd", router, 0)):
        with pytest.raises(RuntimeError, match="inside"), ablation.applied(model):
            raise RuntimeError("inside")
        assert torch.equal(model(X), before)


def test_what_cannot_be_ablated_is_refused() -> None:
    model, router, _ = setting()
    other = Router(model, {"r": Region("decoder.act0", [0])}, ["g"], {}, X[:1])
    wrong = {"encoder": torch.zeros(3, 7, 4)}
    with pytest.raises(UserError, match="resample: activations at 'encoder' have shape"):
        output(model, resample("odd", router, wrong, 0))
    lone = nn.Sequential(nn.Identity(), nn.Linear(4, 4))
    nothing = Router(lone, {"r": Region("0", [0])}, ["g"], {}, X[:1])
    with pytest.raises(UserError, match="the layer that makes its units was not found"):
        output(lone, reinitialise("r", nothing, 0))
    assert other.found["decoder.act0"].producer == "decoder.linear0"
