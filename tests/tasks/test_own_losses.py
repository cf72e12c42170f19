"""A user's own errors and penalties against losses written by hand; their own measures, and mistakes in them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch

from gradroute import load
from gradroute.config.compose import configuration
from gradroute.config.limits import Between
from gradroute.config.schema import Config
from gradroute.data.images.dataset import Images
from gradroute.data.text.packing import IGNORED
from gradroute.errors import UserError
from gradroute.records.tables import read_metrics
from gradroute.reporting import plots_classification, plots_language
from gradroute.reporting.run_data import RunData
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of
from gradroute.tasks.language import LanguageModelling
from gradroute.tasks.reconstruction import Reconstruction
from gradroute.training.measures import Measure
from gradroute.training.objectives import Objective, Terms
from gradroute.training.penalties import Penalty, Weight


class Huber(Measure):
    """Squares below an edge, absolute values above it, of the first pixels of each row of an image."""

    name, unit = "huber", "pixel, squared below the edge"

    def __init__(self, shape: Sequence[int], edge: Annotated[float, Between(0.01, 10)] = 1.0, columns: int = 2) -> None:
        self.shape, self.edge, self.columns = list(shape), edge, columns

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen = (outputs - targets).unflatten(1, self.shape)[..., : self.columns].flatten(1)
        return torch.nn.functional.huber_loss(seen, torch.zeros_like(seen), reduction="none", delta=self.edge).mean(1)


class Doubt(Measure):
    """1 minus the probability of the right token."""

    name, unit = "doubt", "probability"

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 1 - outputs.softmax(1).gather(1, targets[:, None])[:, 0]


class Squares(Penalty):
    """Mean over points of a region's squared L2 norm."""

    name, unit = "squares", "mean squared L2 norm of the region's activations"

    def __init__(self, region: str, weight: Weight = 1.0) -> None:
        self.region, self.weight = region, weight

    def __call__(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return activations[self.region].square().sum(1).mean()


class Apart(Penalty):
    """The product of the mean activations of all regions."""

    name, unit, whole_batch = "apart", "product of mean activations", True

    def __init__(self, weight: Weight = 1.0) -> None:
        self.weight = weight

    def __call__(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([own.mean() for own in activations.values()]).prod()


class Mean(Measure):
    """A measure that gives one number, not one for each point."""

    name, unit = "mean_error", "pixel"

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).abs().mean()


HUBER = "losses.error={_target_: test_own_losses.Huber, edge: 0.2}"
DOUBT = "losses.error={_target_: test_own_losses.Doubt}"
SMALL = ["trainer=smoke", "trainer.device=cpu", "trainer.train_limit=192", "trainer.test_limit=64",
         "trainer.batch_size=64", "model.hidden=[16]"]  # fmt: skip
ERA = [
    "experiment=stories_era", "trainer=smoke", "trainer.device=cpu", "model.layers=2", "model.width=16",
    "model.heads=2", "model.hidden=24", "model.expand=[0,1]", "model.added=8", "dataset.stories=120",
    "dataset.test_stories=40", "dataset.length=48", "trainer.batch_size=8", "steps=[train,ablate,evaluate]",
    "routing.regions.original.units='0:24'", "routing.regions.added.units='24:32'", "finetune=null", "relearn=null",
    "completions=null", "losses.l1.original=0", "losses.l1.added=0",
]  # fmt: skip


def penalties(*own: str) -> str:
    return f"losses.penalties=[{','.join(own)}]"


def squares(region: str, weight: float) -> str:
    return f"{{_target_: test_own_losses.Squares, region: {region}, weight: {weight}}}"


def l1(region: str, weight: float) -> str:
    return f"{{_target_: gradroute.training.penalties.L1, region: {region}, weight: {weight}}}"


def images() -> Images:
    """Forty images of 3 x 4 pixels, of four labels."""
    torch.manual_seed(5)
    pixels, labels = torch.rand(40, 12) * 2 - 1, torch.arange(40) % 10
    return Images(pixels, labels, pixels[:10], labels[:10], "digit", (3, 4), 10, "toy")


def toy(folder: Path, *changes: str) -> Reconstruction:
    """An autoencoder of eight units, split into two halves, in float64."""
    regions = ["routing.regions.top.units='0:4'", "routing.regions.bottom.units='4:8'", "model.encoding=8"]
    given = [*SMALL, *regions, "losses.correlation=0", "losses.l1.top=0", "losses.l1.bottom=0", *changes]
    task = Reconstruction(configuration([*given, f"output_dir={folder}"]), images())
    for module in (task.model, task.certificates):
        module.double()
    return task


def loss(terms: Terms) -> torch.Tensor:
    return torch.stack([value * weight for value, weight in terms.values()]).sum()


def gradients(objective: Objective, of: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(of, list(objective.parameters()), retain_graph=True))


def huber(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over points of `Huber` with the edge 0.2: of pixels 0, 1, 4, 5, 8 and 9 of twelve."""
    off = (outputs - targets)[:, [0, 1, 4, 5, 8, 9]].abs()
    return torch.where(off < 0.2, off * off / 2, 0.2 * (off - 0.1)).mean()


def test_an_autoencoder_is_trained_on_the_error_and_penalties_that_are_named(tmp_path: Path) -> None:
    own = penalties(squares("top", 0.3), "{_target_: test_own_losses.Apart, weight: 0.7}", l1("bottom", 0.2))
    task = toy(tmp_path, HUBER, own)
    objective, model, x = task.objective(), task.model, task.data.train_images[:30].double()
    low = task.routed[:30] == 0
    terms = objective(x, task.routed[:30])
    weights = {(t.head, t.group, t.region, t.metric): float(w) for t, (_, w) in terms.items()}
    assert weights == {
        ("decoder", "digits_0_4", "all", "huber"): 1.0, ("decoder", "digits_5_9", "all", "huber"): 1.0,
        ("certificate", "all", "top", "huber"): 1.0, ("certificate", "all", "bottom", "huber"): 1.0,
        ("penalty", "all", "top", "squares"): 0.3, ("penalty", "all", "all", "apart"): 0.7,
        ("penalty", "all", "bottom", "l1"): 0.2,
    }  # fmt: skip
    encoder: Any = model.get_submodule("encoder")
    decoder: Any = model.get_submodule("decoder")
    z = encoder(x)
    top, bottom = z[:, :4], z[:, 4:]
    theirs = huber(decoder(torch.cat([top, bottom.detach()], 1)[low]), x[low])
    theirs = theirs + huber(decoder(torch.cat([top.detach(), bottom], 1)[~low]), x[~low])
    theirs = theirs + huber(task.certificates["top"](top.detach()), x)
    theirs = theirs + huber(task.certificates["bottom"](bottom.detach()), x)
    theirs = theirs + 0.3 * (top**2).sum() / 30 + 0.7 * (top.sum() / 120) * (bottom.sum() / 120)
    theirs = theirs + 0.2 * bottom.abs().sum() / 30
    ours = loss(terms)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for mine, other in zip(gradients(objective, ours), gradients(objective, theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-15)


def test_a_penalty_that_is_named_is_its_shorthand(tmp_path: Path) -> None:
    short = ["losses.l1.top=0.02", "losses.l1.bottom=0.05", "losses.correlation=0.3"]
    correlation = "{_target_: gradroute.training.penalties.Correlation, weight: 0.3}"
    found = []
    for changes in (short, [penalties(l1("top", 0.02), l1("bottom", 0.05), correlation)]):
        objective, data = (task := toy(tmp_path, *changes)).objective(), task.data.train_images[:30].double()
        terms = objective(data, task.routed[:30])
        found.append(({t: (v.item(), float(w)) for t, (v, w) in terms.items()}, gradients(objective, loss(terms))))
    assert found[0][0] == found[1][0] and len(found[0][0]) == 7
    assert all(torch.equal(one, other) for one, other in zip(found[0][1], found[1][1], strict=True))


def test_parts_of_a_batch_add_up_for_an_error_and_penalties_of_ones_own(tmp_path: Path) -> None:
    task = toy(tmp_path, HUBER, penalties(squares("top", 0.3), l1("bottom", 0.2)), "routing.labelled_fraction=0.5")
    objective, batch = task.objective(), (task.data.train_images[:31].double(), task.routed[:31])
    whole = objective(*batch)
    wanted, values = gradients(objective, loss(whole)), {term: value.item() for term, (value, _) in whole.items()}
    parts = [objective(*part) for part in objective.parts(batch, 3)]
    assert {term: sum(part[term][0].item() for part in parts) for term in values} == pytest.approx(values, rel=1e-9)
    found = gradients(objective, torch.stack([loss(part) for part in parts]).sum())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def language(folder: Path, *changes: str) -> LanguageModelling:
    """A small transformer in float64."""
    task = LanguageModelling(configuration([*ERA, f"output_dir={folder}", *changes]))
    task.model.double()
    return task


def most_routed(task: LanguageModelling, rows: int) -> tuple[torch.Tensor, ...]:
    """A batch of the rows with the most routed tokens."""
    every = task.batch(torch.arange(task.points))[4]
    return task.batch(every[..., 0].amax(1).argsort(descending=True)[:rows])


def test_a_transformer_is_trained_on_the_error_and_penalties_that_are_named(tmp_path: Path) -> None:
    """Token by token, routed by `detach`; penalties read every token's activations before the mask."""
    own = penalties(squares("added", 0.3), "{_target_: test_own_losses.Apart, weight: 0.7}", l1("original", 0.01))
    task = language(tmp_path, DOUBT, own, "losses.groups.forget=0.5")
    tokens, targets, documents, groups, shares = batch = most_routed(task, 4)
    objective, seen = task.objective(), list[torch.Tensor]()
    terms = objective(*batch)
    assert {(t.region, t.metric) for t in terms} == {
        ("all", "doubt"), ("added", "squares"), ("all", "apart"), ("original", "l1")
    }  # fmt: skip
    mask = torch.ones(*tokens.shape, 32, dtype=torch.float64)
    mask[..., :24] = 1 - 1.75 * shares[..., :1]  # the experiment's weight is -0.75

    def masked(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output)
        return output * mask + (output * (1 - mask)).detach()

    hooks = [task.model.get_submodule(f"blocks.{i}.mlp.act").register_forward_hook(masked) for i in range(2)]
    chances = task.model(tokens, documents).softmax(-1)
    for hook in hooks:
        hook.remove()
    doubts = [
        (0.5 if task.names[int(groups[i, j])] == "forget" else 1.0) * (1 - chances[i, j, targets[i, j]])
        for i in range(len(tokens))
        for j in range(tokens.shape[1])
        if targets[i, j] != IGNORED
    ]
    theirs = torch.stack(doubts).mean()
    added, original = (torch.cat([layer[..., units] for layer in seen], -1) for units in (slice(24, 32), slice(24)))
    points = tokens.numel()
    theirs = theirs + 0.3 * (added**2).sum() / points + 0.7 * added.mean() * original.mean()
    theirs = theirs + 0.01 * original.abs().sum() / points
    ours = loss(terms)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=0)  # weights of groups are in float32
    for mine, other in zip(gradients(objective, ours), gradients(objective, theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-10)
    assert float(shares.max()) > 0.5 and set(groups.unique().tolist()) == {0, 1}


def test_a_penalty_of_a_language_model_is_its_shorthand_and_its_parts_add_up(tmp_path: Path) -> None:
    found = []
    for changes in (["losses.l1.original=0.02", "losses.l1.added=0.05"],
                    [penalties(l1("original", 0.02), l1("added", 0.05))]):  # fmt: skip
        task = language(tmp_path, DOUBT, *changes)
        objective, batch = task.objective(), most_routed(task, 5)
        for number in (1, 3):
            parts = [objective(*part) for part in objective.parts(batch, number)]
            values = {term: sum(part[term][0].item() for part in parts) for term in parts[0]}
            found.append((values, gradients(objective, torch.stack([loss(part) for part in parts]).sum())))
    for values, own in found[1:]:
        assert values == pytest.approx(found[0][0], rel=1e-9)
        for one, other in zip(own, found[0][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-12)


MEASURES = "measures=[{_target_: test_own_losses.Huber, edge: 0.5, columns: 28}]"


def test_a_measure_that_is_named_is_measured_everywhere(tmp_path: Path) -> None:
    """Its values match the saved model's, with its unit, in a run that trains on its own error and penalty."""
    changes = [MEASURES, HUBER.replace("Huber,", "Huber, columns: 14,"), penalties(squares("top", 0.001))]
    steps = "steps=[train,certify,ablate,evaluate,report]"
    config = configuration([*SMALL, *changes, steps, f"output_dir={tmp_path}"])
    (run,) = execute([config])
    assert isinstance(run, Path), run
    assert [claim for claim in claims_of(run, run_code=True) if not claim.holds] == []
    rows = read_metrics(run)
    units = {row["metric"]: row["unit"] for row in rows}
    assert units["huber"] == Huber.unit and units["squares"] == Squares.unit
    trained = {(row["head"], row["group"]) for row in rows if (row["split"], row["metric"]) == ("train", "huber")}
    assert trained == {("decoder", "digits_0_4"), ("decoder", "digits_5_9"), ("certificate", "all")}
    final = {(row["head"], row["region"], row["group"]): row["value"] for row in rows
             if (row["split"], row["metric"]) == ("test", "huber")}  # fmt: skip
    assert {key[0] for key in final} == {"decoder", "certificate", "fresh_certificate", "decoder_ablated"}
    task, loaded = Reconstruction(config), load(run, run_code=True)
    with torch.no_grad():
        z = loaded.model.get_submodule("encoder")(task.test_images)
        made = {"all": loaded.model(task.test_images), "top": loaded.certificates["top"](z[:, :16])}
    for number, group in enumerate(task.names):
        for head, region in (("decoder", "all"), ("certificate", "top")):
            off = (made[region] - task.test_images)[task.test_groups == number].abs()
            each = torch.where(off < 0.5, off**2 / 2, 0.5 * (off - 0.25)).mean(1)
            assert final[head, region, group] == pytest.approx(float(each.mean()), rel=1e-4)
    assert "huber" in (run / "report.html").read_text()


def test_a_measure_of_a_language_model_is_a_mean_over_the_tokens_of_documents(tmp_path: Path) -> None:
    given = [*ERA, "dataset.length=160", "measures=[{_target_: test_own_losses.Doubt}]", DOUBT]
    config = configuration([*given, f"output_dir={tmp_path}"])
    (run,) = execute([config])
    assert isinstance(run, Path), run
    assert [claim for claim in claims_of(run, run_code=True) if not claim.holds] == []
    rows = [row for row in read_metrics(run) if (row["split"], row["metric"]) == ("test", "doubt")]
    assert {(row["head"], row["group"]) for row in rows} == {
        (head, group) for head in ("model", "model_ablated") for group in ("forget", "retain")
    }  # fmt: skip
    assert {row["unit"] for row in rows} == {Doubt.unit}
    task, model = LanguageModelling(config), load(run, run_code=True).model
    for number, group in enumerate(task.names):
        doubts = []
        with torch.no_grad():
            for document in torch.nonzero(task.test_groups == number).flatten().tolist():
                tokens = task.data.test.corpus.document(document)[None]
                chances = model(tokens)[0].softmax(-1)
                doubts += [1 - float(chances[at, tokens[0, at + 1]]) for at in range(tokens.shape[1] - 1)]
        value = next(row["value"] for row in rows[::-1] if (row["head"], row["group"]) == ("model", group))
        assert value == pytest.approx(sum(doubts) / len(doubts), rel=1e-4)


def test_training_curves_show_the_error_that_was_trained_on(tmp_path: Path) -> None:
    """Beside the usual error on the test data, which has another unit."""
    steps = "steps=[train,evaluate]"
    classes = ["experiment=class_split", "trainer=smoke", "trainer.device=cpu", "trainer.train_limit=64",
               "trainer.test_limit=32", steps]  # fmt: skip
    configs = [configuration([*given, DOUBT, f"output_dir={tmp_path}"]) for given in ([*ERA, steps], classes)]
    runs = execute(configs)
    for run, curves, usual in zip(runs, (plots_language, plots_classification), ("cross-ent", "test acc"), strict=True):
        assert isinstance(run, Path), run
        train, test = curves.training_curves(RunData(run)).axes
        assert train.get_ylabel().endswith("doubt (probability)") and test.get_ylabel().startswith(usual)
        values = [r["value"] for r in read_metrics(run) if (r["split"], r["metric"]) == ("train", "doubt")]
        drawn = [float(y) for line in train.lines for y in np.asarray(line.get_ydata())]
        assert sorted(drawn) == pytest.approx(sorted(values)) and len(test.lines) >= 2


MISTAKES = [
    (["losses.error={_target_: test_own_losses.Huber, egde: 1}"], "unknown key 'losses.error.egde'; did you mean"),
    (["losses.error={_target_: test_own_losses.Huber, edge: 0}"], "losses.error.edge=0.0: must be from 0.01 to 10"),
    (["losses.error={_target_: test_own_losses.Squares}"], "losses.error._target_=test_own_losses.Squares: is not an"),
    ([penalties("{_target_: test_own_losses.Squares}")], "losses.penalties.0.region: Squares needs it; give"),
    ([penalties(squares("tpo", 1))], "did you mean top"),
    ([penalties(squares("top", -1))], "losses.penalties.0.weight=-1.0: must be from 0 to"),
    ([penalties(squares("top", 1), squares("top", 2))], "'squares' of region 'top' occurs twice"),
    ([penalties(l1("top", 1))], "'l1' of region 'top' occurs twice"),
    ([penalties("{_target_: test_own_losses.Apart}"), "losses.correlation=0", "trainer.accumulate=2"],
     "trainer.accumulate=2: must be 1: losses.penalties needs the whole batch at once"),
    (["measures=[{_target_: test_own_losses.Hubert}]"], "did you mean Huber"),
    (["measures=[{_target_: test_own_losses.Mean}]"],
     "measures: 'mean_error' gives a tensor of shape (); return one of shape (16,), one value for each point"),
    (["losses.error={_target_: test_own_losses.Mean}"], "losses.error: 'mean_error' gives a tensor of shape ()"),
    (["measures=[{_target_: test_own_losses.Doubt}]"], "measures: 'doubt' fails (RuntimeError: gather(): Expected"),
    (["measures=[3]"], "measures.0=3: must be a mapping with _target_"),
    ([MEASURES.replace("]", ",{_target_: test_own_losses.Huber}]")], "measures: 'huber' appears twice"),
    (["measures=[{_target_: gradroute.training.measures.SquaredError}]"], "measures: 'mse' appears twice"),
]  # fmt: skip
OF_LANGUAGE = [
    ([*ERA, penalties("{_target_: test_own_losses.Apart}"), "trainer.accumulate=2"],
     "trainer.accumulate=2: must be 1: losses.penalties needs the whole batch at once"),
    ([*ERA, penalties(l1("added", 1)), "losses.l1.added=0.1"], "'l1' of region 'added' occurs twice"),
    ([*ERA, "measures=[{_target_: gradroute.training.measures.CrossEntropy}]"], "'cross_entropy' appears twice"),
    (["experiment=stories_era/sgtm", "trainer=smoke", "model.added=8", penalties(squares("rest", 1))],
     "unknown value of losses.penalties (region): 'rest'"),
    ([*ERA, "measures=[{_target_: test_own_losses.Mean}]"], "measures: 'mean_error' fails (RuntimeError: The size of"),
]  # fmt: skip


def own(folder: Path, changes: Sequence[str]) -> Config:
    return configuration([*changes, f"output_dir={folder}"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [*(([*SMALL, *given], message) for given, message in MISTAKES), *OF_LANGUAGE],
    ids=[message for _, message in [*MISTAKES, *OF_LANGUAGE]],
)
def test_mistakes_are_said_in_one_line(tmp_path: Path, changes: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        (end,) = execute([own(tmp_path, changes)])
        raise end if isinstance(end, Exception) else AssertionError("nothing was refused")
    assert message in str(error.value) and "\n" not in str(error.value) and not list(tmp_path.iterdir())
