"""Methods that find a mask without trials: as `gradroute-search` makes them, and as `routing=auto` does."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from interrupted import interrupted
from PIL import Image

from gradroute import UserError
from gradroute.commands.search import main
from gradroute.config.auto import AutoConfig, cluster_groups, region_names
from gradroute.config.compose import configuration
from gradroute.config.identity import config_hash, to_mapping
from gradroute.config.overrides import merged
from gradroute.config.schema import Config
from gradroute.records.run_reader import read_config, read_manifest
from gradroute.routing import parse_units
from gradroute.running.runner import execute
from gradroute.search import found as masks
from gradroute.search.automatic import settled
from gradroute.search.learned import Learned, Learning
from gradroute.search.pilot import Pilot
from gradroute.search.schema import LearnedConfig, search_from
from gradroute.search.signals import narrowest, only_way
from gradroute.search.space import Given, check_start, space
from gradroute.search.unlabelled import unlabelled
from gradroute.tasks.base import create
from gradroute.tasks.language import LanguageModelling

TINY = ["trainer=smoke", "trainer.train_limit=512", "trainer.test_limit=64", "trainer.batch_size=16",
        "trainer.epochs=5", "model.hidden=[12]", "model.encoding=6", "trainer.device=cpu",
        "steps=[train,evaluate]"]  # fmt: skip
DESIGN = Path(__file__).parents[2] / "scripts" / "mask_design"
PROBLEMS = sorted(path.stem for path in (DESIGN / "search").glob("*.yaml") if not path.stem.startswith("fashion"))
SPLIT = "split.groups=[[0,1,2,3,4],[5,6,7,8,9]]"
AUTO = ["routing=auto", "routing.auto.points=32", "routing.auto.checked=2"]
FILE = """
name: tiny
overrides: []
space: {split.outside: {low: -1.0, high: 0.5}}
objectives:
  localization: {metric: localization, head: score, group: all, goal: higher}
budget: 170
pilot: {points: 32, checked: 2}
final: {best: 1, seeds: 2, control: true, overrides: []}
"""


def auto(folder: Path, *more: str) -> Config:
    return configuration([*TINY, SPLIT, *AUTO, f"output_dir={folder}", *more])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, data_cache: Path) -> tuple[Config, Path]:
    """A configuration whose mask a pilot found, and the folder of the mask."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADROUTE_DATA", str(data_cache))
        config = settled(auto(tmp_path_factory.mktemp("auto")), lambda text: None)
    assert config.routing.auto is not None and config.routing.auto.found is not None
    return config, Path(config.routing.auto.found)


def test_a_pilot_costs_a_tenth_of_a_run_and_divides_all_units(made: tuple[Config, Path]) -> None:
    config, folder = made
    found = masks.read(folder)
    assert found is not None and found.updates <= 0.1 * 5 * 32
    assert sorted(one.name for one in found.evidence) == ["decoder.linear0", "encoder", "encoder.linear0"]
    assert sum(one.score is not None for one in found.evidence) == 2 and found.site.score is not None
    assert found.site.score == max(one.score for one in found.evidence if one.score is not None)
    width = len(found.site.owner)
    units = [parse_units(region.units, width, name) for name, region in config.routing.regions.items()]
    assert sorted(unit for own in units for unit in own) == list(range(width))


def test_a_site_in_a_branch_is_passed_by(made: tuple[Config, Path], tmp_path: Path) -> None:
    found = masks.read(made[1])
    assert found is not None and all(one.only_way for one in found.evidence)  # layers in a row
    given = ["experiment=class_split", "trainer=smoke", SPLIT, *AUTO, "trainer.train_limit=160", "trainer.batch_size=2",
             "trainer.device=cpu", f"output_dir={tmp_path}"]  # fmt: skip
    config = configuration(given)
    assert config.routing.auto is not None
    pilot = Pilot(config, config.routing.auto)
    stages = ["encoder", "encoder.conv1", "encoder.layer1", "encoder.layer2", "encoder.layer3"]
    assert sorted(one.sites[0].module for one in pilot.candidates if only_way(pilot.task, one)) == stages
    assert narrowest(pilot.task, pilot.candidates).name == "encoder@1"  # the first convolution has fewer channels


def test_the_routing_that_a_pilot_wrote_gives_the_same_run(made: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = made
    (tmp_path / "routing").mkdir()
    (tmp_path / "routing" / "found.yaml").write_text((folder / masks.ROUTING).read_text())
    names = list(config.routing.regions)
    losses = [f"losses.certificates=[{','.join(names)}]", "losses.l1={top: null, bottom: null}"]
    again = configuration(
        [*TINY, "routing=found", f"output_dir={config.output_dir}", *losses, *(f"losses.l1.{n}=0.003" for n in names)],
        tmp_path,
    )
    assert to_mapping(again)["routing"] == to_mapping(config)["routing"]
    assert config_hash(again) == config_hash(config)


def test_a_mask_is_found_once_and_the_evidence_is_complete(
    made: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = made
    monkeypatch.setattr(Pilot, "__init__", lambda *arguments: pytest.fail("a second pilot"))
    again = settled(auto(Path(config.output_dir)), lambda text: None)
    assert to_mapping(again) == to_mapping(config)
    with (folder / masks.EVIDENCE).open() as file:
        assert [row["chosen"] for row in csv.DictReader(file)].count("yes") == 1
    with (folder / masks.UNITS).open() as file:
        rows = list(csv.DictReader(file))
    assert {row["group"] for row in rows} == {"digits_0_4", "digits_5_9"}
    assert all(float(r["share digits_0_4"]) + float(r["share digits_5_9"]) == pytest.approx(1, abs=1e-5) for r in rows)
    assert (folder / masks.PICTURE).stat().st_size > 0
    text = (folder / masks.ROUTING).read_text()
    assert text.startswith("# A pilot of") and yaml.safe_load(text)["routes"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["split.groups=[[0,1,2,3,4,5,6,7,8,9]]"], r"routing.groups=\['digits_0_9'\]: must be two or more"),
        (["trainer.train_limit=40"], r"routing.groups.digits_0_4: has \d+ labelled examples; must be 32 or more"),
        (["routing.auto.sites=[encoder.linear9]"], "unknown site of routing.auto.sites: 'encoder.linear9'"),
        (["routing.auto.sites=[decoder]"], "or is the model's output"),
        (["trainer.epochs=1"], "a run of 32 updates is too short for a pilot; give one of"),
        (["routing.auto.share=0.5"], "routing.auto.share=0.5: must be from 1e-06 to 0.1"),
        (["routing.auto.axis=0"], "routing.auto.axis=0: must be an axis of units"),
        (["routing.auto.ablate=other"], "unknown group of routing.auto.ablate: 'other'"),
        (["split.groups=[[0],[1],[2],[3],[4],[5],[6,7,8,9]]", "model.encoding=6", "model.hidden=[6]"], "has no site"),
    ],
)
def test_what_a_pilot_cannot_be_made_of_is_refused_before_any_training(
    given: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pilot, "find", lambda self: pytest.fail("it trained"))
    with pytest.raises(UserError, match=says) as error:
        settled(auto(tmp_path, *given), lambda text: None)
    assert len(str(error.value).splitlines()) == 1 and not list(tmp_path.iterdir())


def test_a_site_that_no_loss_reaches_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pilot = Pilot(auto(tmp_path, "routing.auto.sites=[encoder]"), AutoConfig(points=32, sites=["encoder"]))
    monkeypatch.setattr(pilot, "train", lambda updates, number, after: after(1))
    monkeypatch.setattr("gradroute.search.signals.torch.autograd.grad", lambda value, seen, allow_unused: [None])
    monkeypatch.setattr(pilot, "updates", 3)
    with pytest.raises(UserError, match="site 'encoder' is in the forward path of no loss"):
        pilot.find(tmp_path / "pilot")


@pytest.mark.parametrize("groups", ["[[0],[1,2,3,4,5,6,7,8,9]]", "[[0,1,2,3,4],[5,6,7],[8,9]]"])
def test_overrides_make_the_mask_that_was_found_also_of_groups_with_other_names(groups: str, tmp_path: Path) -> None:
    config = configuration([*TINY, f"split.groups={groups}", "split.outside=0.2", f"output_dir={tmp_path}"])
    names = list(config.routing.groups)
    count = len(names)
    outside = [[1.0 if a == b else -0.5 + a for b in range(count)] for a in range(count)]
    owner, shares = [unit % count for unit in range(12)], [[1 / count] * 12] * count
    site = masks.Evidence("encoder.linear0", ["encoder.linear0"], -1, None, 0.1, 0.2, 0.3, owner, shares, outside)
    wanted = masks.Found("pilot", names, [site], 0, 1, "why").applied(config)
    base = configuration([*TINY, f"output_dir={tmp_path}"])
    given = masks.overrides_to(base, wanted)
    assert to_mapping(configuration([*TINY, *given, f"output_dir={tmp_path}"])) == to_mapping(wanted)


def test_regions_are_named_after_the_groups_that_were_found() -> None:
    config = configuration([*TINY, SPLIT])
    assert region_names(config) == ["for_digits_0_4", "for_digits_5_9"]
    config.routing.groups = cluster_groups(["cluster_0", "cluster_1"])
    assert region_names(config) == ["for_cluster_0", "for_cluster_1"]  # no longer after digits
    config.losses.certificates = ["top", "bottom"]
    assert region_names(config) == ["top", "bottom"]  # as the experiment has them


def test_the_problems_of_mask_design_start_from_their_hand_made_masks() -> None:
    files = sorted((DESIGN / "search").glob("*.yaml"))
    assert len(files) == 10
    for path in files:
        search = search_from(yaml.safe_load(path.read_text()))
        check_start(search.start, space(search.space))
        assert search.start and search.budget and search.final.seeds == 5 and search.final.control
    search = search_from(yaml.safe_load((DESIGN / "search" / "mnist_ten.yaml").read_text()))
    start = Given(search.start)
    overrides = [override for one in space(search.space) for override in one.suggest(start)]
    made = [configuration(merged(search.overrides, more)) for more in ([], overrides)]
    assert to_mapping(made[0]) == to_mapping(made[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_of_mask_design_can_be_made_a_mask_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DESIGN)
    search = search_from(yaml.safe_load((DESIGN / "search" / f"{name}.yaml").read_text()))
    assert search.budget is not None
    config = configuration(search.overrides)
    pilot = Pilot(config, search.pilot)  # the half that follows clustering has as many steps or fewer
    learned = Learned(config, search.learned, search.budget)
    assert pilot.cost <= pilot.whole / 10 and pilot.checked > 1 and pilot.probes > 1
    assert 10 * pilot.whole == search.budget and learned.cost <= pilot.whole and learned.iterations >= 50


@pytest.mark.parametrize(
    ("sites", "says"),
    [
        (["encoder.act0", "encoder"], r"search.learned.sites: must have one width, not \[12, 6\] units"),
        (["encoder.linear9"], "unknown site of search.learned.sites: 'encoder.linear9'"),
    ],
)
def test_masks_are_learned_at_sites_of_one_width(sites: list[str], says: str) -> None:
    config = configuration([*TINY, SPLIT])
    both = Learned(config, LearnedConfig(sites=["encoder.act0", "decoder.act0"]), None).candidate
    assert [site.module for site in both.sites] == ["encoder.act0", "decoder.act0"] and both.units == 12
    with pytest.raises(UserError, match=says):
        Learned(config, LearnedConfig(sites=sites), None)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of images of three classes, by the brightness of their halves."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(("boats", "cars", "trees")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for picture in range(60):
            pixels = generator.integers(0, 60, (12, 12), dtype=np.uint8)
            pixels[4 * number : 4 * number + 4] += 150
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{picture}.png")
    return tmp_path / "photos"


def status(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gradroute-search", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.fixture
def command(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "conf" / "search").mkdir(parents=True)
    (tmp_path / "conf" / "search" / "tiny.yaml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    sizes = [one for one in TINY if "limit" not in one]
    own = ["dataset=images", f"dataset.root={photos}", "split.groups=[[0],[1,2]]", "trainer.epochs=18"]  # 162 updates
    return ["--config-dir", str(tmp_path / "conf"), "search=tiny", *sizes, *own]


@pytest.mark.slow
def test_methods_share_a_folder_and_its_finals_and_count_their_updates(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = "search.final.best=0"
    assert status(monkeypatch, *command, "method=pilot", alone) == 0
    assert status(monkeypatch, *command, "method=learned", "search.learned.share=0.3", alone) == 0
    assert status(monkeypatch, *command, "method=random") == 0
    assert "pilot minus the hand-made mask, on fresh seeds" in capsys.readouterr().out
    folder = tmp_path / "outputs" / "searches" / "tiny"
    with (folder / "methods.csv").open() as file:
        costs = {row["method"]: int(row["updates"]) for row in csv.DictReader(file)}
    found = {name: json.loads((folder / name / masks.RECORD).read_text())["updates"] for name in ("pilot", "learned")}
    assert costs == {"random": 162, **found} and found["pilot"] <= 16 and 0 < found["learned"] <= 0.3 * 162
    with (folder / "finals.csv").open() as file:
        names = [row["finalist"].split()[0] for row in csv.DictReader(file)]
    assert {name: names.count(name) for name in names} == dict.fromkeys(
        ("handmade", "control", "pilot", "learned", "random"), 2
    )
    pilot = yaml.safe_load((folder / "pilot" / masks.ROUTING).read_text())
    finals = [yaml.safe_load(path.read_text()) for path in (folder / "finals").rglob("config.yaml")]
    places = [{name: (r["site"], r["units"]) for name, r in final["routing"]["regions"].items()} for final in finals]
    own = {name: (region["site"], region["units"]) for name, region in pilot["regions"].items()}
    routed = [final["routing"]["routes"] == pilot["routes"] for final in finals]
    assert sum(place == own and same for place, same in zip(places, routed, strict=True)) == 2
    assert sum(not any(final["routing"]["routes"].values()) for final in finals) == 2
    assert status(monkeypatch, *command, "method=learned") == 2
    assert "has a mask of another search.learned; set another search.name=" in capsys.readouterr().err
    assert status(monkeypatch, *command, "method=pilot", "trainer.lr=0.01") == 2
    assert "has a search of another override; set another search.name=" in capsys.readouterr().err


def test_a_mask_that_was_being_learned_goes_on_to_the_bit(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [one for one in TINY if "limit" not in one]
    own = ["dataset=images", f"dataset.root={photos}", "split.groups=[[0],[1,2]]", "trainer.epochs=18"]
    config = configuration([*sizes, *own, "checkpoint.minutes=0", f"output_dir={tmp_path}"])
    step, begun = Learning.step, list[int]()

    def until_the_fourth(self: Learning) -> None:
        if self.done == 3:
            raise KeyboardInterrupt
        step(self)

    def noted(self: Learning) -> None:
        begun.append(self.done)
        step(self)

    def find(name: str, mask_rate: float = 0.1) -> masks.Found:
        return Learned(config, LearnedConfig(share=0.3, mask_rate=mask_rate), None).find(tmp_path / name)

    whole = find("whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Learning, "step", until_the_fourth)
        find("cut")
    assert {path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()} == {"000002", "000003"}
    with pytest.raises(UserError, match=r"another search.learned or search.budget; set another search.name="):
        find("cut", mask_rate=0.2)
    monkeypatch.setattr(Learning, "step", noted)
    assert find("cut") == whole and begun[0] == 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["method=pilot", "search.budget=5"], "search.budget=5: must be 16 or more, which the pilot costs"),
        (["method=learned", "search.budget=5"], "search.budget=5: must be 7 updates or more"),
        (["method=learned", "search.learned.lowest=-2"], "search.learned.lowest=-2.0: must be from -1 to 0"),
        (["method=learned", "search.learned.steps=0"], "search.learned.steps=0: must be from 1 to 20"),
        (["method=annealing"], "unknown value of method: 'annealing'"),
        (["search.sampler=cmaes"], "unknown value of search.sampler: 'cmaes'"),
        (["method=pilot", "search.pilot.sites=[encoder9]"], "unknown site of search.pilot.sites: 'encoder9'"),
        (["method=pilot", "search.pilot.axis=7"], "search.pilot.axis=7: must be an axis of units"),
        (["method=pilot", "search.pilot.points=4096"], "or a smaller search.pilot.points"),
        (["method=pilot", "search.pilot.share=0.2"], "search.pilot.share=0.2: must be from"),
    ],
)
def test_a_method_that_cannot_be_is_refused_with_status_2(
    command: list[str], given: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(monkeypatch, *command, *given) == 2
    said = capsys.readouterr().err
    assert says in said and len(said.splitlines()) == 1


@pytest.mark.slow
def test_an_interrupted_pilot_goes_on_and_finds_the_same_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, trained = auto(tmp_path, "checkpoint.minutes=0"), list[int]()
    train = Pilot.train

    def find(name: str, checked: int = 2, last: int = 9) -> masks.Found:
        def noted(self: Pilot, updates: int, number: int, *after: Any) -> None:
            if number > last:
                raise KeyboardInterrupt
            trained.append(number)
            train(self, updates, number, *after)

        trained.clear()
        monkeypatch.setattr(Pilot, "train", noted)
        return Pilot(config, AutoConfig(points=32, checked=checked)).find(tmp_path / name)

    whole = find("whole", checked=3)
    assert trained == [0, 1, 2, 3]
    for last, first in ((0, 0), (2, 1)):  # killed after the training, and after the second candidate
        with pytest.raises(KeyboardInterrupt):
            find("cut", checked=3, last=last)
        assert trained == list(range(first, last + 1))
    with pytest.raises(UserError, match=r"has a pilot of other settings that was interrupted; set another search.name"):
        find("cut", checked=2)
    assert find("cut", checked=3) == whole and trained == [3]


def test_a_mask_for_an_own_image_folder_stays_that_of_the_run_when_it_is_resumed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [one for one in TINY if "limit" not in one]
    groups = ["routing.groups.water={labels: [0]}", "routing.groups.land={rest: true}"]
    given = [*sizes, *AUTO, *groups, "dataset=images", f"dataset.root={photos}", "trainer.epochs=20"]
    config = settled(configuration([*given, f"output_dir={tmp_path / 'whole'}"]), lambda text: None)
    assert set(config.routing.routes) == {"water", "land"} and config.losses.certificates == ["top", "bottom"]
    (whole,) = execute([config])
    cut_config = replace(config, output_dir=str(tmp_path / "cut"), checkpoint=replace(config.checkpoint, minutes=0))
    (cut,) = interrupted(monkeypatch, [cut_config], 3)
    assert isinstance(whole, Path) and (cut / masks.ROUTING).read_bytes() == (whole / masks.ROUTING).read_bytes()
    read = read_config(cut)
    assert read.routing.auto is None and to_mapping(read)["routing"] == to_mapping(config)["routing"]
    assert execute([read], folder=cut) == [cut]
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert {masks.ROUTING, masks.EVIDENCE, masks.UNITS, masks.PICTURE} <= set(read_manifest(cut)["files"])


def test_a_mask_for_own_texts_ablates_what_is_relearned(tmp_path: Path) -> None:
    stories = [
        f"The {'virus' if n % 3 == 0 else 'dog'} was in the {('lab', 'house', 'garden')[n % 3]} {n % 7}."
        for n in range(300)
    ]
    (tmp_path / "texts.txt").write_text("\n<|endoftext|>\n".join(stories))
    given = ["experiment=stories_era", "routing=auto", "dataset=text", f"dataset.files={tmp_path / 'texts.txt'}",
             "dataset.tokenizer=words", "dataset.length=16", "dataset.test_stories=40", "trainer=smoke",
             "routing.groups.forget.words=[virus]", "routing.groups.retain={rest: true}", "routing.auto.points=32",
             "routing.auto.checked=1", "trainer.epochs=12", "trainer.batch_size=4", "model.width=8", "model.heads=2",
             "model.layers=2", "model.expand=[]", "model.added=0", "model.hidden=8", "completions=null",
             "trainer.device=cpu", f"output_dir={tmp_path / 'out'}"]  # fmt: skip
    config = settled(configuration(given), lambda text: None)
    assert list(config.routing.regions) == ["for_forget", "for_retain"]
    assert config.ablation["region"] == "for_forget" and config.losses.l1 == {"for_forget": 1e-4, "for_retain": 1e-4}
    assert str(config.routing.regions["for_forget"].site).count("mlp") >= 1
    create(config)  # the mask fits the model


def test_groups_without_labels_are_clusters_of_gradients(photos: Path, tmp_path: Path) -> None:
    sizes = [one for one in TINY if "limit" not in one]
    own = ["dataset=images", f"dataset.root={photos}", "trainer.epochs=50", f"output_dir={tmp_path / 'out'}"]
    given = [*sizes, "routing=auto", "routing.auto.labels=false", "routing.auto.points=64", "routing.auto.checked=1"]
    config = settled(configuration([*given, *own]), lambda text: None)
    (record,) = (tmp_path / "out" / "pilots").glob("*/clusters/clusters.json")
    found = json.loads(record.read_text())
    assert found["explained"] > max(found["explained_placebos"]) and found["groups"] == list(config.routing.groups)
    assert found["rand_index"]["class"] > 0.3  # of classes that differ in where they are bright
    assert set(config.routing.regions) == set(config.losses.l1)
    assert create(config).names == [f"cluster_{n}" for n in range(len(found["groups"]))]
    assert settled(configuration([*given, *own]), lambda text: None) == config  # found again, with the same identity


@pytest.mark.slow
def test_documents_are_grouped_without_labels(tmp_path: Path) -> None:
    """A second language is found; a limit and validation documents leave every number with its document."""
    given = ["experiment=second_language/era", "routing=auto", "routing.auto.labels=false", "trainer=smoke",
             "dataset.stories=600", "dataset.test_stories=100", "dataset.validation_stories=40", "dataset.length=64",
             "trainer.epochs=5", "trainer.batch_size=8", "trainer.test_limit=30", "model.width=32", "model.heads=2",
             "model.hidden=64", "routing.auto.points=128", "routing.auto.checked=1", "trainer.device=cpu",
             f"output_dir={tmp_path}"]  # fmt: skip
    assert list(configuration(given).routing.groups) == ["forget", "retain"]  # which its steps name
    said: list[str] = []
    config = settled(configuration(given), said.append)
    (folder,) = tmp_path.glob("pilots/*/clusters")
    record = json.loads((folder / "clusters.json").read_text())
    assert record["rand_index"]["language"] > 0.5 > 0.1 > abs(record["rand_index"]["forest"])
    assert f"at the cost of {record['updates']} more updates" in said[-1]
    task = create(config)
    assert isinstance(task, LanguageModelling) and task.names == ["forget", "retain"]
    numbers = {name: list(map(int, (folder / f"{name}.csv").read_text().split()[1:])) for name in ("train", "test")}
    used = task.train_groups.tolist()
    assert used == numbers["train"][: len(used)] and 0 < used.count(0) < len(used) / 2  # the smaller one
    assert task.test_groups.tolist() == numbers["test"][:30] and task.validation.held_out
    assert task.validation.groups.tolist() == numbers["test"][60:90] and set(numbers["test"][60:90]) == {0, 1}


def test_data_that_take_no_clusters_cannot_be_grouped_without_labels(tmp_path: Path) -> None:
    given = ["experiment=secrets/plain", "trainer=smoke", f"output_dir={tmp_path}"]
    right = "give a data set with metadata=null, such as mnist, images or text"
    with pytest.raises(UserError, match=f"routing.auto.labels=false: Secrets cannot take clusters; {right}"):
        unlabelled(configuration(given), AutoConfig(labels=False), tmp_path)
