"""What CI checks besides the tests: linters, types, the README's commands, every experiment, and a wheel install."""

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Forked  # of the tests
from PIL import Image

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "conf" / "experiment"
DOWNLOADED = {"cifar100_split"}  # these download data; the tests run them on small data of their own
FILES = [path for path in FOLDER.rglob("*.yaml") if not path.name.startswith("_")]  # those are shared by others
WITH_PEFT = ("planted_behaviour", "profiles/adapter", "rewards", "secrets/adapter")  # these need the extra `hf`
HAS_PEFT = importlib.util.find_spec("peft") is not None
NAMES = {path.relative_to(FOLDER).with_suffix("").as_posix() for path in FILES} - DOWNLOADED
EXPERIMENTS = sorted(name for name in NAMES if HAS_PEFT or not name.startswith(WITH_PEFT))
CERTIFY = ["steps=[train,certify,ablate,evaluate,report]"]
SHORT = ["dataset.stories=600", "dataset.test_stories=60", "dataset.length=64", "model.width=16", "model.heads=2"]
SHORT += ["model.hidden=32", "trainer.train_limit=120", "trainer.test_limit=24"]
TAUGHT = [*SHORT, "relearn.documents=[4]"]  # again, what was forgotten
SAID = [*TAUGHT, "completions.tokens=4"]
LANGUAGE = ("stories_era", "second_language", "profiles", "planted_behaviour")
NARROW = ["model.width=32", "model.heads=4", "extract.documents=8", "extract.rates=[0.01]"]
FEW = ["trainer.train_limit=512", "trainer.test_limit=64"]  # images
MNIST = [*FEW, "model.hidden=[64]"]
SMALLER = {
    **dict.fromkeys(LANGUAGE, TAUGHT),
    "stories_era": SAID,
    "rewards": [*SHORT, "task.keyword=the"],  # a word that a model of no training writes, too
    "class_split": ["audit.adapter_examples=[]"],  # the audit of stories relearns by adapters, too
    "secrets": NARROW,
    "mnist_table2": MNIST,
    "mnist_split": MNIST,
}  # by family
SPECIAL: dict[str, list[str]] = {  # in processes of their own, which render the plots; the others' are sketched
    "mnist_split": CERTIFY,
    "class_split": CERTIFY,
    "stories_era": SAID,
    "steering_scalar": [*SHORT, "trainer.train_limit=400", "steering.kl=[0.1]", "steering.samples=1"],
    "planted_behaviour": TAUGHT,
    "profiles": TAUGHT,
    "secrets": NARROW,
    "oversight/routing": [],
    "stories_era/audit": [*SHORT, "trainer.test_limit=60"],
}


def batches() -> dict[str, tuple[list[str], list[str]]]:
    """Return the experiments that run in one process, and their overrides, by a name."""
    found = {name: ([name], more) for name, more in SPECIAL.items() if name in EXPERIMENTS}
    for name in (name for name in EXPERIMENTS if name not in SPECIAL):
        family = name.partition("/")[0]
        found.setdefault(f"{family}/", ([], SMALLER.get(family, [])))[0].append(name)
    return found


BATCHES = batches()


def call(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command and return what it printed; if the command fails, raise AssertionError with the output."""
    result = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def fork(*command: str | Path, cwd: Path, rendered: bool = False) -> None:
    """Run a console script in a process that has imported everything, and sketch its plots unless `rendered`."""
    name, *arguments = map(str, command)
    result = Forked(name, *arguments, cwd=cwd, environment=os.environ, rendered=rendered).wait(600)
    assert result.returncode == 0, result.stdout + result.stderr


PAGES = ("README.md", "conf/README.md", "gradroute/README.md", "outputs/README.md", "scripts/README.md")
NEEDS = ("RUN", "FOLDER", "photos", "--help", "resume=", "rerun=")  # an earlier run, or the user's own files


def readme_commands(name: str = "gradroute-run") -> list[str]:
    """Return the READMEs' lines that call a command, each once, without comments.

    Left out are those that need an earlier run or the user's own files, and those that only name an experiment, which
    `test_every_experiment_runs` does.
    """
    text = "".join((ROOT / page).read_text() for page in PAGES)
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line.strip()) for block in blocks for line in block.splitlines()]
    alone = {f"gradroute-run experiment={experiment}" for experiment in NAMES}
    chosen = [line for line in lines if line.startswith(f"{name} ") and not any(word in line for word in NEEDS)]
    return [line for line in dict.fromkeys(chosen) if line not in alone]


def own_files() -> dict[str, str]:
    """Return the files that the READMEs show, by the path on their first line."""
    text = "".join((ROOT / page).read_text() for page in PAGES)
    return dict(re.findall(r"```(?:yaml|python)\n# (\S+/\S+)\n(.*?)```", text, re.DOTALL))


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """Write all files that the READMEs show into a folder, as a user would, and return the folder."""
    for path, text in own_files().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    "command", [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",), ("lint-imports",)], ids=" ".join
)
def test_linters_types_and_imports_are_clean(command: tuple[str, ...]) -> None:
    call(*command)


LARGEST_FILE, LARGEST_FUNCTION = 250, 50  # lines


def test_files_and_functions_fit_on_a_screen() -> None:
    large = []
    for path in (ROOT / "gradroute").rglob("*.py"):
        text = path.read_text()
        if (lines := len(text.splitlines())) > LARGEST_FILE:
            large.append(f"{path}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LARGEST_FUNCTION:
                large.append(f"{path}:{node.lineno}: {node.name}")
    assert not large


def test_the_top_level_has_what_belongs_there() -> None:
    listed = {line.partition("/")[0] for line in call("git", "ls-files").splitlines()}
    allowed = {"pyproject.toml", "conf", "gradroute", "scripts", "outputs", "tests", "README.md", "LICENSE"}
    assert {name for name in listed if not name.startswith(".")} <= allowed


@pytest.mark.parametrize("batch", BATCHES)
def test_every_experiment_runs(batch: str, tmp_path: Path) -> None:
    experiments, more = BATCHES[batch]
    command = ("gradroute-run", "-m", f"experiment={','.join(experiments)}", "trainer=smoke", *more)
    fork(*command, cwd=tmp_path, rendered=batch in SPECIAL)
    runs = [manifest.parent for manifest in tmp_path.glob("outputs/*/*/manifest.json")]
    own = [run for run in runs if run.parent.name != "audit_anchors"]  # which audits make besides
    assert len(own) == len(experiments)
    fork("gradroute-verify", *runs, cwd=tmp_path)


PILOT = ["trainer.train_limit=2048", "trainer.test_limit=64", "trainer.batch_size=64", "trainer.epochs=5",
         "model.hidden=[64]", "routing.auto.points=32", "routing.auto.checked=1"]  # fmt: skip


def smaller(line: str) -> list[str]:
    """Return overrides that make a command's run small."""
    family = next((name for name in SMALLER if f"experiment={name}" in line), "mnist_split")
    if "routing=auto" in line:
        return PILOT
    own = "--config-dir" in line or "split.site" in line  # another model, or wide layers
    return FEW if own and family == "mnist_split" else SMALLER[family]


@pytest.mark.parametrize("line", readme_commands())
def test_the_commands_of_the_readmes_run(line: str, user: Path) -> None:
    words = shlex.split(line, comments=True)
    added = [] if "trainer=smoke" in words else ["trainer=smoke"]
    if "oversight" not in line:  # a policy makes its own data
        added += smaller(line)
    fork(*words, *added, cwd=user)


@pytest.mark.parametrize("line", readme_commands("gradroute-tokens"))
def test_the_token_commands_of_the_readmes_run(line: str, user: Path) -> None:
    fork(*shlex.split(line, comments=True), cwd=user)


def test_a_folder_of_photos_runs_as_the_readme_says(tmp_path: Path) -> None:
    (line,) = [line for line in (ROOT / "README.md").read_text().splitlines() if "dataset.root=photos" in line]
    for number, name in enumerate(("boats", "cars", "trees")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for picture in range(20):
            colour = (60 * number + picture, 255 - 9 * picture, 90)
            Image.new("RGB", (40 + number, 50), colour).save(tmp_path / "photos" / name / f"{picture}.png")
    fork(*shlex.split(line), "trainer=smoke", cwd=tmp_path)


SEARCHED = [
    "trainer=smoke", *FEW, "search.trials=2", "search.random=1",
    "search.workers=1", "search.final.best=1", "search.final.seeds=2", "search.guess=null",
]  # fmt: skip
FIXED = {setting.partition("=")[0] for setting in SEARCHED}


def searches() -> list[str]:
    """Return the READMEs' searches, once where they differ in settings of `SEARCHED` only."""
    lines = [shlex.split(line) for line in readme_commands("gradroute-search")]
    found = [[word for word in words if word.partition("=")[0] not in FIXED] for words in lines]
    return list(dict.fromkeys(shlex.join(words) for words in found))


@pytest.mark.parametrize("line", searches())
def test_the_searches_of_the_readmes_run(line: str, user: Path) -> None:
    finals = line == searches()[0]
    more = [*TAUGHT] if "stories" in line else []
    more += [] if finals else ["search.final.best=0", "search.trials=1", "search.random=0"]
    fork(*shlex.split(line), *SEARCHED, *more, cwd=user)
    (page,) = user.glob("outputs/searches/*/search.html")
    assert ("minus the hand-made mask" in page.read_text()) == finals


def test_the_script_that_compares_masks_runs(tmp_path: Path) -> None:
    said = call("bash", ROOT / "scripts" / "mask_design.sh", cwd=tmp_path, SMOKE="1")
    (folder,) = tmp_path.glob("outputs/searches/*")
    assert (folder / "pilot" / "routing.yaml").is_file() and (folder / "learned" / "routing.yaml").is_file()
    costs = dict(line.split(",")[:2] for line in (folder / "methods.csv").read_text().splitlines()[1:])
    assert costs["random"] == costs["tpe"] == "320" and int(costs["pilot"]) < int(costs["learned"]) < 320
    rows = [line for line in said.splitlines() if line.startswith("| mnist_rare | ")]
    assert len(rows) == 2 and all(row.count(" ± ") == 6 for row in rows)  # hand-made, unrouted, and four methods


def test_a_wheel_has_the_configurations_and_the_data(tmp_path: Path) -> None:
    call(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    call(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel)
    site, cache = str(tmp_path / "site"), str(tmp_path / "data")
    origin = call(sys.executable, "-c", "import gradroute; print(gradroute.__file__)", cwd=tmp_path, PYTHONPATH=site)
    assert Path(origin.strip()).is_relative_to(tmp_path / "site")
    arguments = (sys.executable, "-m", "gradroute", "trainer=smoke", *MNIST)
    call(*arguments, cwd=tmp_path, PYTHONPATH=site, GRADROUTE_DATA=cache)
