"""Generated configurations, most of them wrong: each is accepted, or refused in one line with status 2."""

import contextlib
import functools
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from robust import Hang, Tally, count, kept_data, trying, within

from gradroute.config.build import from_mapping
from gradroute.config.compose import composed
from gradroute.config.identity import flat, to_mapping
from gradroute.config.schema import Config
from gradroute.running.exit_status import report_failure
from gradroute.tasks.base import create

SMALL = ["trainer=smoke", "trainer.epochs=1", "trainer.train_limit=64", "trainer.test_limit=64"]
NUMBERS = [
    "-1", "0", "1", "2", "3", "0.5", "-0.5", "1e-9", "1e5", "1e99", "-1e99", "1e999", "nan", "inf", "-inf", "true",
    "false", "null", str(2**31), str(2**63), str(2**64), "1" + "0" * 30, "1" + "0" * 400, "1" + "0" * 5000, "0x10",
]  # fmt: skip
WORDS = [
    "''", "'a/b'", "'../up'", "'/tmp/away'", "é", "'名前'", "'\u202eabc'", "'a\\tb'", "'a\tb'", "'$x^$'", "'a,b'",
    "'a.b'", "'a b'", "'<script>alert(1)</script>'", "'[/red]'", "half", "train", "all", "default", "digit_3", "keys",
    "a" * 300, "'.'", "'..'", "'0:4'", "'0:99999999999'", "'0:" + "9" * 5000 + "'", "'4:2'", "0:4", "encoder", "top",
    "decoder.act0", "'*'", "'???'", "'\\${seed}'", "${seed}", "${nothing}", "${oc.env:HOME}", "'os:system'", "cuda:99",
    "mnist", "smoke", "'\ud800'", "'\x00'", "gradroute.models.resnet.SplitResNet", "torch.nn.Linear", "os.getcwd",
    "gradroute.tasks.base.Task", "gradroute.load", "no.such.Thing", "gradroute.training.measures.ACCURACY",
    "gradroute.data.text.datasets.ToyStories",
]  # fmt: skip
LISTS = [
    "[]", "[0]", "[0.9]", "[0.9,0.95]", "[1,2,3]", "[a]", "[[1]]", "[null]", "[true,false]", "[nan,0.5]",
    "[1000000000]", "[65536,65536,65536]", "[0,0]", "[-1]", "[top,top]", "[top]", "[train]", "[train,evaluate,report]",
    "[[0,1],[2,3]]", "[[0],[0]]", "[[]]", "[1.5]", "['']", "[" * 60 + "]" * 60, "[1" + ",1" * 2000 + "]",
]  # fmt: skip
MAPPINGS = [
    "{}", "{a:1}", "{weight:0}", "{weight:0,start:-1}", "{weight:0,start:1,ramp:1e9}", "{weight:nan}",
    "{heads:[1],of:8}", "{weight:1,start:" + "9" * 400 + "}",
    "{labels:[0,1]}", "{site:encoder,units:'0:4'}", "{site:decoder}", "{top:1}", "{false_positive:0.5}",
    "{column:x,values:[1]}", "{predicate:'os:getcwd'}", "{a:{b:{c:{d:1}}}}", "{_target_:os.system}",
    "{_target_:gradroute.tasks.ablations.Mean}", "[{_target_:gradroute.training.measures.AbsoluteError}]",
    "[{_target_:gradroute.training.penalties.L1,region:top}]", "[{_target_:gradroute.training.penalties.L1,region:{}}]",
    "[{_target_:[]}]", "{_target_:{_target_:a.b}}", "{_target_:gradroute.models.autoencoder.Autoencoder,hidden:[8]}",
    "{_target_:gradroute.records.atomic.write_atomically,path:x,text:y}",
    "[train,{_target_:gradroute.steps.report.Report}]",
]  # fmt: skip
GOOD = [  # each is right by itself
    "seed=3", "trainer.lr=0.01", "trainer.epochs=2", "trainer.batch_size=16", "trainer.betas=[0.5,0.9]",
    "routing=none", "trainer.schedule=constant", "trainer.batches=by_group", "model.hidden=[64]",
    "model.hidden=[16,8,4]", "ablation=mean", "routing.routes.digits_0_4.bottom=-0.75",
    "routing.routes.digits_0_4.bottom={weight:0,start:1,ramp:2}",
    "routing.labelled_fraction=0.5", "+routing.label_noise.digits_0_4={false_positive:0.2}", "ablation=remove",
    "split.groups=[[0,1,2],[3,4,5,6,7,8,9]]", "'split.groups=[[0,1,2,3,4],[5,6,7,8,9]]'", "losses.correlation=0",
    "losses.certificates=[top]", "routing.regions.top.units=[0,1,2]", "ablation.region=[top,bottom]", "ledger.window=1",
    "steps=[train,certify,evaluate]", "trainer.weight_decay=0", "+losses.groups.digits_0_4=0.5",
    "trainer.warmup_steps=0",
    "routing.groups.digits_0_4.labels=[0]", "routing.unassigned=unrouted", "model.decoders=2", "name=mine",
]  # fmt: skip
NAMES = [
    "", " ", "a/b", "../x", "a.b", "a,b", "a\nb", "a\x00b", "é", "名前", "\u202e", "$x^{$", "all", "default", "digit_3",
    "keys", "half", "train", "unassigned", "a" * 300, "[/]", "<b>", "+", "top+bottom", "fine_1",
]  # fmt: skip


@functools.cache
def _keys() -> list[str]:
    leaves = list(flat(to_mapping(from_mapping(composed(SMALL)))))
    parents = {key.rsplit(".", n)[0] for key in leaves for n in range(1, key.count(".") + 1)}
    schema = list(flat(to_mapping(Config())))
    made = [f"routing.{part}.new" for part in ("groups", "regions", "routes", "label_noise")]
    fields = [f"routing.groups.digits_0_4.{f}" for f in ("labels", "column", "values", "predicate")]
    fields += [f"routing.regions.top.{f}" for f in ("site", "units", "axis", "output", "parameters")]
    fields += [f"{key}.{name}" for key in ("model", "dataset", "task", "ablation") for name in ("_target_", "new")]
    fields += [
        "routing.routes.digits_0_4.top",
        "losses.l1.top",
        "losses.groups.digits_0_4",
        "nothing",
        "trainer.nothing",
    ]
    return sorted({*leaves, *parents, *schema, *made, *fields})


VALUE = st.one_of(
    st.sampled_from([*NUMBERS, *WORDS, *LISTS, *MAPPINGS]),
    st.integers().map(str),
    st.floats().map(repr),
    st.lists(st.integers(-5, 40)).map(str),
)
NAME = st.one_of(st.sampled_from(NAMES), st.text(max_size=8))
Case = tuple[list[str], list[tuple[str, str]]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Overrides for the command line, and names to rename a group or region to, as a file could have them."""
    overrides = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 0]))):
        kind = draw(st.integers(0, 9))
        if kind == 0:
            overrides.append(draw(st.text(max_size=20)))
            continue
        if kind < 4:
            overrides.append(draw(st.sampled_from(GOOD)))
            continue
        prefix = draw(st.sampled_from(["", "", "++", "++", "+", "~"]))
        overrides.append(f"{prefix}{draw(st.sampled_from(_keys()))}={draw(VALUE)}")
    renames = draw(st.integers(0, 4)) == 0 or not overrides
    if not renames:
        return overrides, []
    return overrides, [(draw(st.sampled_from(["groups.digits_0_4", "regions.top"])), draw(NAME))]


def _renamed(mapping: dict[str, Any], renames: list[tuple[str, str]]) -> dict[str, Any]:
    """The configuration with a group or region of another name wherever it is named."""
    for path, new in renames:
        kind, old = path.split(".")
        routing, losses = mapping["routing"], mapping["losses"]

        def swap(names: dict[str, Any], old: str = old, new: str = new) -> dict[str, Any]:
            return {new if key == old else key: value for key, value in names.items()}

        routing[kind] = swap(routing[kind])
        routes = routing["routes"]
        routing["routes"] = swap(routes) if kind == "groups" else {g: swap(row) for g, row in routes.items()}
        losses["l1"] = swap(losses["l1"]) if kind == "regions" else losses["l1"]
        if kind == "regions":
            losses["certificates"] = [new if name == old else name for name in losses["certificates"]]
    return mapping


def attempt(overrides: list[str], renames: list[tuple[str, str]]) -> None:
    """Compose, check and set up a configuration, as `gradroute-run` does before it writes."""
    config = from_mapping(composed([*SMALL, *overrides]))
    if renames:
        config = from_mapping(_renamed(to_mapping(config), renames))
    create(config)


def judge(overrides: list[str], renames: list[tuple[str, str]]) -> str:
    """`accepted`, `refused`, or what went wrong."""
    try:
        with within(60):
            attempt(overrides, renames)
        return "accepted"
    except Hang as error:
        return f"hang: {error}"
    except Exception as error:
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed):
            status = report_failure(error)
        lines = printed.getvalue().splitlines()
        clear = status == 2 and len(lines) == 1 and lines[0].startswith("error: ") and lines[0].isprintable()
        return (
            "refused" if clear and len(lines[0]) < 2000 else f"{type(error).__name__}, status {status}: {lines!s:.300}"
        )


def _tally(number: int, strategy: st.SearchStrategy[Case], judged: Callable[[Case], str]) -> Tally:
    tally = Tally()

    @trying(number)
    @given(strategy)
    def try_one(case: Case) -> None:
        tally.add(repr(case), judged(case))

    try_one()
    return tally


def run(number: int) -> Tally:
    """Try generated configurations in this process."""
    with kept_data():
        return _tally(number, cases(), lambda case: judge(*case))


def by_command(overrides: list[str], folder: Path) -> str:
    """How `gradroute-run` ends on them in a new folder: `accepted`, `refused`, or what went wrong."""
    cwd = folder / "in" / "here"
    shutil.rmtree(folder, ignore_errors=True)
    cwd.mkdir(parents=True)
    call = [str(Path(sys.executable).parent / "gradroute-run"), *SMALL, *overrides]
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    try:
        done = subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "hang"
    lines, left = done.stderr.splitlines(), [*cwd.rglob("*"), *folder.glob("[!i]*")]
    if done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ") and not left:
        return "refused"
    states = [json.loads(p.read_text())["state"] for p in folder.rglob("manifest.json")]
    if done.returncode == 0 and states == ["finished"]:
        return "accepted"
    return f"status {done.returncode}, states {states}, left {left[:3]}: {lines!s:.300}"


def run_by_command(number: int, folder: Path) -> Tally:
    """Try generated overrides by the command line, working in `folder`, but for flags and what no shell can pass."""

    def passable(case: Case) -> bool:
        return bool(case[0]) and not any(o.startswith("-") or re.search("[\0\ud800-\udfff]", o) for o in case[0])

    return _tally(number, cases().filter(passable), lambda case: by_command(case[0], folder / "case"))


@pytest.mark.slow
def test_configurations_are_accepted_or_refused_in_one_line() -> None:
    tally = run(count("GRADROUTE_CONFIGURATIONS", 75))
    assert not tally.wrong, "\n".join(tally.wrong[:5])
    assert tally.correct and tally.refused


@pytest.mark.slow
def test_the_command_line_accepts_or_refuses_in_one_line(tmp_path: Path) -> None:
    tally = run_by_command(count("GRADROUTE_COMMANDS", 3), tmp_path)
    assert tally.tried and not tally.wrong, "\n".join(tally.wrong)
