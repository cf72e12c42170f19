"""The step `audit`, from the training of its anchors to the page, the claims and the command."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_images import small
from small_language import config

from gradroute.audit.anchors import config_of, other_units
from gradroute.audit.material import FORGET, TEST, VALIDATION, material_of
from gradroute.commands.audit import main
from gradroute.config.compose import configuration
from gradroute.data.groups import UNASSIGNED
from gradroute.errors import UserError
from gradroute.records.audits import (
    AUDITED,
    FILE,
    HELD,
    LABELS,
    RANK,
    SECOND,
    SUPPRESSED,
    THIRD,
    TRAINED,
    TWIN,
    USUAL,
    checked,
    read_audit,
    words,
)
from gradroute.routing import Region
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of
from gradroute.tasks.base import create

TINY = [
    "experiment=mnist_split/audit", "trainer=smoke", "trainer.device=cpu", "trainer.train_limit=128",
    "trainer.test_limit=120", "trainer.batch_size=32", "model.hidden=[16]", "ledger.window=4", "audit.points=10",
]  # fmt: skip


def tiny(folder: Path, *overrides: str) -> Any:
    return configuration([*TINY, f"output_dir={folder}", *overrides])


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    (run,) = execute([tiny(folder)])
    assert isinstance(run, Path), run
    return run


@pytest.mark.slow
def test_every_anchor_is_attacked_alike(audited: Path) -> None:
    found = read_audit(audited)
    assert found is not None and set(found["missing"]) <= {SUPPRESSED}
    made = {AUDITED, *USUAL} - set(found["missing"])
    assert set(found["anchors"]) == made
    assert {axis["axis"] for axis in found["axes"]} >= {
        "behaviour", "calibrated_loss", "quantised_4_bit", "weight_noise", "relearn_2", "relearn_retain_only",
        "certificate_linear", "certificate_fresh", "certificate_stronger",
    }  # fmt: skip
    for axis in found["axes"]:
        assert set(axis["values"]) == made
        assert len({len(own) for own in axis["values"].values()}) == 1
    tried = {(row["attack"], row["anchor"]) for row in found["attempts"]}
    for key in tried:
        rows = [row for row in found["attempts"] if (row["attack"], row["anchor"]) == key]
        assert len(rows) == 10 and sum(row["chosen"] for row in rows) == 2  # five rates, two choices of images
    assert all(word in RANK for word in words(found).values())


@pytest.mark.slow
def test_anchors_are_runs_that_the_next_audit_uses(audited: Path) -> None:
    folder = audited.parent.parent
    runs = sorted((folder / "audit_anchors").iterdir())
    assert len(runs) == len(set(TRAINED) & set(USUAL))
    few = ("trained=auto", f"audit.anchors=[{TWIN}]", "audit.make=false", "audit.probe_updates=0")
    (again,) = execute([tiny(folder, *few)])
    assert isinstance(again, Path), again
    assert sorted((folder / "audit_anchors").iterdir()) == runs
    one, two = read_audit(audited), read_audit(again)
    assert one is not None and two is not None
    assert one["anchors"][TWIN]["run"] == two["anchors"][TWIN]["run"]
    before = {axis["axis"]: axis["values"] for axis in one["axes"]}
    for axis in two["axes"]:
        assert axis["values"] == {name: before[axis["axis"]][name] for name in (TWIN, AUDITED)}
    assert set(two["missing"]) == {*USUAL} - {TWIN} and set(words(two).values()) == {None}
    assert "No verdict: " in (again / "report.html").read_text()


@pytest.mark.slow
def test_its_claims_hold_and_a_changed_verdict_fails_one(audited: Path) -> None:
    assert [claim.what for claim in claims_of(audited) if not claim.holds] == []
    twin = next(run for run in (audited.parent.parent / "audit_anchors").iterdir() if "seed1" in run.name)
    claims = {claim.what: claim.holds for claim in claims_of(twin)}
    assert all(claims.values()) and claims["no data point of 'digits_0_4' was in the training"]
    kept = (audited / FILE).read_bytes()
    found = json.loads(kept)
    rank = {word: word for word in RANK if word is not None}
    own = found["axes"][0]["verdicts"][AUDITED]
    own["verdict"] = next(word for word in rank if word != own["verdict"])
    try:
        (audited / FILE).write_text(json.dumps(found))
        with pytest.raises(UserError, match=r"audit\.json"):
            list(claims_of(audited))
    finally:
        (audited / FILE).write_bytes(kept)


def test_the_page_shows_it(audited: Path) -> None:
    page = (audited / "report.html").read_text()
    for text in ("Audit: axes", "Audit: models", "certificate stronger", "Not tried:", "never trained 2"):
        assert text in page
    assert (audited / "plots" / "recovery.png").is_file()


def test_the_command_compares_with_stored_verdicts(
    audited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def called(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["gradroute-audit", str(audited), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    status, out, _ = called()
    line = json.loads(out)
    assert status == 0 and line["worse"] == [] and line["audits"] == [str(audited)] and out.count("\n") == 1
    stored = tmp_path / "stored.json"
    stored.write_text(json.dumps({**line, "verdicts": dict.fromkeys(line["verdicts"], HELD)}))
    status, out, _ = called("--baseline", str(stored))
    assert status == 1 and json.loads(out)["worse"] == [a for a, word in line["verdicts"].items() if word != HELD]
    assert called("--against", str(audited))[0] == 0
    stored.write_text("{}")
    status, out, said = called("--baseline", str(stored))
    assert status == 2 and "has no verdicts" in said and out == ""
    status, _, said = called("--set", "samples")
    assert status == 2 and "give KEY=VALUE" in said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("audit.group=x", "audit.group"), ("audit.rates=[0.1,0.2,0.3,0.4,0.5]", "the largest is 1000 times"),
        ("audit.rates=[0.001,1]", "audit.rates"), ("audit.anchors=[twin]", "audit.anchors"),
        ("steps=[train,audit,evaluate]", "with ablate before audit"), ("ablation.region=null", "ablation.region"),
        ("audit.margin=0", "audit.margin"), ("routing.left_out=[digits_0_4]", "routing.left_out"),
        ("audit.samples=1", "audit.samples"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_before_anything_is_read(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")) as raised:
        configuration([*TINY, override])
    assert "\n" not in str(raised.value)


def test_too_few_points_are_refused_before_the_training(tmp_path: Path) -> None:
    for override, message in (("audit.examples=[500]", "audit.examples=500"), ("trainer.test_limit=10", "at least 5")):
        (outcome,) = execute([tiny(tmp_path, override)])
        assert isinstance(outcome, UserError) and message in str(outcome)
    assert not list(tmp_path.iterdir())


def test_nothing_is_measured_on_what_is_trained_or_chosen_by(tmp_path: Path) -> None:
    task = create(tiny(tmp_path))
    material = material_of(task, "digits_0_4", 10, 0)
    chosen, tested = (set(material.measured[FORGET, part].tolist()) for part in (VALIDATION, TEST))
    assert not chosen & tested and len(chosen) == len(tested) == 10
    groups = task.train_groups  # type: ignore[attr-defined]
    assert {int(groups[number]) for number in material.chosen(FORGET, 20, 1)} == {0}


def test_a_left_out_group_reaches_no_batch_of_images() -> None:
    task = create(small("routing.left_out=[digits_0_4]"))
    assert int(task.data.train_labels.min()) >= 5 and set(task.routed.tolist()) == {1}
    assert len(task.data.train_labels) == task.points == 512


def test_a_left_out_group_is_padding_in_every_batch_of_documents(tmp_path: Path) -> None:
    given = ("finetune=null", "relearn=null", "steps=[train,ablate,evaluate]")
    whole, less = (
        create(config(tmp_path, "stories_era", *given, *more)) for more in ((), ("routing.left_out=[forget]",))
    )
    assert whole.points == less.points and UNASSIGNED not in less.names
    rows = torch.arange(whole.points)
    (tokens, targets, documents, _, _), other = whole.batch(rows), less.batch(rows)
    out = (documents >= 0) & (whole.train_groups == 0)[documents.clamp(min=0)]  # type: ignore[attr-defined]
    assert bool(out.any()) and bool((other[0][out] == 0).all()) and bool((other[1][out] == -100).all())
    assert bool((other[2][out] == -1).all()) and bool((other[3][out] == -1).all())
    for mine, own in zip((tokens, targets, documents), other, strict=False):
        assert torch.equal(mine[~out], own[~out])


def test_anchors_differ_from_the_audited_run_in_one_thing(tmp_path: Path) -> None:
    own = tiny(tmp_path)
    made = {kind: config_of(kind, own, "digits_0_4", {"digits_0_4": 0.6, "digits_5_9": 0.4}) for kind in TRAINED}
    assert made[TWIN].routing.left_out == ["digits_0_4"] and made[TWIN].routing.routes == own.routing.routes
    for number, kind in enumerate((SECOND, THIRD), 1):
        assert (made[kind].seed, made[kind].routing) == (own.seed + number, made[TWIN].routing)
    rates = {name: noise.false_positive for name, noise in made[LABELS].routing.label_noise.items()}
    assert rates == {"digits_0_4": 0.6, "digits_5_9": 0.4}
    assert all(each.trainer == own.trainer and each.model == own.model for each in made.values())


def test_placebo_units_are_as_many_others() -> None:
    units = other_units(Region("x", [0, 1, 2]), 10, seed=0)
    assert len(units) == 3 and not {0, 1, 2} & set(units)
    assert len(other_units(Region("x", list(range(8))), 10, seed=0)) == 2


@pytest.mark.parametrize("damage", [{"axes": 1}, {"margin": None}, {"anchors": {"<b>": {}}}, {"power": "yes"}])
def test_a_damaged_record_is_refused(audited: Path, damage: dict[str, Any]) -> None:
    found = read_audit(audited)
    assert found is not None
    with pytest.raises(UserError, match="not the record of an audit"):
        checked({**found, **damage}, Path("audit.json"))
