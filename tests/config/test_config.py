"""Configurations: every experiment composes; every mistake is one clear line."""

from pathlib import Path

import pytest
import yaml

from gradroute.config import compose
from gradroute.config.build import _typed, from_mapping
from gradroute.config.components import SECTIONS, STEPS
from gradroute.config.compose import conf_dir, configuration
from gradroute.config.doors import DOORS, TARGET
from gradroute.config.identity import config_hash, to_mapping
from gradroute.config.overrides import prepared
from gradroute.config.schema import Config, GroupConfig, RegionConfig
from gradroute.config.targets import KINDS, locate
from gradroute.errors import UserError
from gradroute.running.exit_status import report_failure

FOLDER = conf_dir() / "experiment"
EXPERIMENTS = sorted(p.relative_to(FOLDER).with_suffix("").as_posix() for p in FOLDER.rglob("*.yaml"))


PRESETS = ("smoke", "fast", "paper")


def composed(*overrides: str) -> Config:
    return configuration(list(overrides))


def test_presets_of_the_trainer_differ_in_their_name_alone() -> None:
    for preset in PRESETS:
        text = (conf_dir() / "trainer" / f"{preset}.yaml").read_text()
        assert yaml.safe_load(text) == {"defaults": ["_preset"], "preset": preset}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_with_every_preset(experiment: str) -> None:
    whole = compose.composed([f"experiment={experiment}"])
    for preset in PRESETS[1:]:  # CI runs each with the first
        whole.trainer.preset = preset
        assert from_mapping(whole).trainer.preset == preset


@pytest.mark.parametrize("group", ["dataset", "environment", "model", "task", "routing", "ablation", "tracker"])
def test_every_option_of_every_group_composes(group: str) -> None:
    of_data = ("toy_stories", "text", "second_language", "tinystories")
    of_language = (*of_data, "transformer", "hf", "forget_words", "words", "language")
    needed = {
        "auto": ["split.groups=[[0,1,2,3,4],[5,6,7,8,9]]"],
        "images": ["dataset.root=x"],
        "text": ["dataset.files=x"],
        "hf": ["model.pretrained=x", "dataset.tokenizer=pretrained"],
        "forget_words_alone": ["ablation.region=added"],
        "secrets_added": ["ablation.region=added"],
        "words_reserved": ["ablation.region=added", "model=transformer_reserved"],
    }
    for option in (conf_dir() / group).glob("[!_]*.yaml"):
        around = ["experiment=stories_era/base"] if option.stem.startswith(of_language) else []
        around = ["experiment=class_split"] if option.stem.startswith(("class", "resnet")) else around
        around = ["experiment=steering_scalar"] if option.stem.startswith("steering") else around
        of_policies = option.stem.startswith(("policy", "endings", "reinforcement"))
        around = ["experiment=oversight/routing"] if of_policies or group == "environment" else around
        around = ["experiment=secrets"] if option.stem.startswith("secrets_") else around
        around = ["experiment=secrets/plain"] if option.stem == "secrets" else around
        around = ["experiment=secrets/adapter"] if option.stem == "secrets_adapters" else around
        around = ["experiment=planted_behaviour"] if option.stem.startswith("planted") else around
        around = ["experiment=rewards"] if option.stem.startswith("reward") else around
        around = ["experiment=profiles"] if option.stem.startswith(("profiles", "access")) else around
        if option.stem in ("profiles_adapter", "profiles_experts"):
            around = [f"experiment={option.stem.replace('_', '/')}"]
        composed(*around, f"{group}={option.stem}", *needed.get(option.stem, []))


def test_the_published_protocol_is_the_paper_preset() -> None:
    config = composed("trainer=paper")
    trainer = config.trainer
    assert (trainer.epochs, trainer.batch_size, trainer.lr, trainer.betas) == (200, 2048, 1e-3, [0.9, 0.999])
    assert (trainer.weight_decay, trainer.schedule, trainer.warmup_steps) == (5e-5, "constant", 0)
    assert (config.model["hidden"], config.model["encoding"]) == ([2048, 512], 32)
    assert config.losses.l1 == {"top": 3e-3, "bottom": 3e-3} and config.losses.correlation == 0.1


@pytest.mark.parametrize("section", [*SECTIONS, "privacy"])
def test_every_argument_of_a_step_is_set_without_a_plus(section: str) -> None:
    """Its default may stand in the step alone, and not in the configuration files."""
    assert prepared([f"{section}.argument=1"]) == [f"++{section}.argument=1"]


def test_a_saved_configuration_comes_back_equal() -> None:
    config = composed("seed=4", "routing=none")
    assert from_mapping(yaml.safe_load(yaml.safe_dump(to_mapping(config)))) == config


def test_a_section_that_is_added_later_leaves_the_runs_that_are_finished_as_they_are() -> None:
    """A new section must be in `LATER`: else sweeps and searches would make all their finished runs again."""
    assert set(to_mapping(composed())) == {
        "ablation", "audit", "checkpoint", "completions", "dataset", "extract", "finetune", "ledger", "losses",
        "measures", "model", "name", "output_dir", "plots", "pretrain", "privacy", "relearn", "routing", "seed",
        "split", "steering", "steps", "task", "tracker", "trainer", "unlearn",
    }  # fmt: skip
    assert to_mapping(composed("experiment=profiles"))["profiles"]["groups"]


def test_the_hash_ignores_seed_device_and_paths_only() -> None:
    base = config_hash(composed())
    same = composed("seed=9", "output_dir=/x", "dataset.root=/y", "trainer.device=cpu")
    assert config_hash(same) == base != config_hash(composed("trainer.lr=0.1"))


BAD = [
    ("trainer.epochs=0", "trainer.epochs=0: must be from 1 to 100000"),
    ("trainer.epochs=two", "trainer.epochs"),
    ("trainer.lr=nan", "trainer.lr=nan"),
    ("trainer.end_rate=2", "trainer.end_rate=2.0: must be from 0 to 1"),
    ("trainer.batch_size=-4", "trainer.batch_size=-4"),
    ("trainer.precision=float8", "unknown value of trainer.precision"),
    ("model.encoding=-3", "from 1 to 65536"),
    ("model.hidden=[]", "model.hidden"),
    ("seed=-1", "seed=-1"),
    ("ablation.region=botom", "did you mean bottom"),
    ("steps=[trian]", "did you mean train"),
    ("steps=[evaluate,train]", "in this order"),
    ("losses.certificates=[tpo]", "did you mean top"),
    ("losses.correlation=-1", "losses.correlation"),
    ("+losses.l1.left=1", "unknown value of losses.l1: 'left'"),
    ("routing.groups.digits_0_4.labels=[0,1,5]", "label 5 is in 'digits_0_4' and 'digits_5_9'"),
    ("routing.groups.digits_0_4.labels=[]", "exactly one rule that is not empty: labels"),
    ("routing.routes.digits_0_4.bottom=nan", "a finite number"),
    ("routing.routes.digits_0_4.bottom=none", "a finite number"),
    ("routing.routes.digits_0_4.bottom={weight:0,stopp:9}", "did you mean stop"),
    ("routing.routes.digits_0_4.bottom={weight:0,start:9,stop:9}", "must come after start + ramp = 9"),
    ("routing.labelled_fraction=1.5", "from 0 to 1"),
    ("+routing.label_noise.digits={false_positive:0.1}", "did you mean digits_"),
    ("+routing.label_noise.digits_0_4={false_positive:2}", "from 0 to 1"),
    ("routing.groups.digits_0_4={labels:[0],predicate:'a:b'}", "['labels', 'predicate']: must be exactly one rule"),
    ("+routing.groups.digits_0_4.values=[1]", "must be given if, and only if, column is"),
    ("+routing.regions.top.parameters={a:null}", "region 'top' is parameters and has no activations"),
    ("routing.regions.top.output=[]", "routing.regions.top.output=[]: must be the number of an output, or its key"),
    ("ablation.region=[]", "null, a region, or a list"),
    ("trainer.batches=grouped", "did you mean by_group"),
    ("ledger.every=0", "ledger.every=0"),
    ("+routing.routes.digits_0_4.botom=0", "did you mean bottom"),
    ("+routing.routes.digits=1", "routing.routes.digits"),
    ("routing.unassigned=skip", "unknown value of routing.unassigned"),
    ("+sede=1", "unknown key 'sede'; did you mean seed"),
    ("+trainer.epoch=1", "unknown key 'trainer.epoch'; did you mean trainer.epochs"),
    ("+routing.regions.top.unit=1", "unknown key 'routing.regions.top.unit'"),
    ("trainer.betas=[0.9]", "two numbers from 0 to below 1"),
    ("trainer.betas=[0.9,nan]", "trainer.betas=[0.9, nan]"),
    ("trainer.lr=1e99", "trainer.lr=1e+99"),
    ("trainer.weight_decay=inf", "trainer.weight_decay=inf"),
    ("trainer.train_limit=1", "from 2 to 1000000000"),
    ("trainer.epochs=true", "trainer.epochs"),
    ("trainer.device=meta", "auto, cpu, mps, cuda or cuda:N"),
    ("seed=1e99", "seed"),
    ("seed=9223372036854775808", "seed=9223372036854775808: must be from 0"),
    ("seed=4294967296", "seed=4294967296: must be from 0 to 4294967295"),
    ("model.hidden=[1000000000]", "model.hidden=1000000000: must be from 1 to 65536"),
    ("model.decoders=7", "model.decoders=7: must be 1, or 2"),
    ("losses.correlation=inf", "losses.correlation=inf: must be from 0 to 1000000"),
    ("losses.l1.top=[1]", "losses.l1.top=[1]: must be of type float"),
    ("+losses.groups=${seed}", "losses.groups=0: must be a mapping"),
    ("losses.certificates=${losses.l1}", "losses.certificates"),
    ("routing.routes.digits_0_4=${seed}", "routing.routes.digits_0_4=0: must be a mapping"),
    ("trainer.betas=${seed}", "trainer.betas"),
    ("losses.groups=[1]", "losses.groups=[1]: must be a mapping"),
    ("routing.regions.top=3", "routing.regions.top=3: must be a mapping"),
    ("trainer.betas={a: 1}", "trainer.betas={'a': 1}: must be a list"),
    ("++losses.groups.digits_0_4=nan", "losses.groups.digits_0_4=nan"),
    ("name=a/b", "letters, digits, _ and -"),
    ("name=''", "1 to 64 letters"),
    ("output_dir=''", "a folder's path"),
    ("dataset.root=''", "a folder's path"),
    ("ablation.region=[top,top]", "each region once"),
    ("ablation.region={a:1}", "ablation.region"),
    ("routing.groups.digits_0_4.labels=[-1]", "from 0 to 1000000000"),
    ("+routing.groups.all={labels:[7]}", "this one is reserved"),
    ("+routing.groups.digit_3={labels:[7]}", "this one is reserved"),
    ("+routing.groups.unlabelled={labels:[7]}", "this one is reserved"),
    ("+routing.groups.new={column:'',values:[1]}", "column"),
    ("+routing.groups.new={predicate:'a..b:c'}", "module:function"),
    ("+routing.regions.all={site:encoder}", "this one is reserved"),
    ("+routing.regions.new={parameters:{}}", "at least one parameter"),
    ("+routing.regions.new={site:[]}", "a module's name"),
    ("routing.routes.digits_0_4.bottom=1e300", "from -1000000 to 1000000"),
    ("routing.routes.digits_0_4.bottom=1" + "0" * 400, "from -1000000 to 1000000"),
    ("routing.routes.digits_0_4=x", "routing.routes.digits_0_4"),
    ("split.groups=[]", "split.groups=[]: it has no set"),
    ("split={groups:[[0],[1]],width:64}", "split.width=64: must be null"),
    ("split={groups:[[0],[1]],site:decoder,width:-1}", "split.width=-1"),
    ("trainer.preset=fats", "unknown trainer preset 'fats'; did you mean fast"),
]


@pytest.mark.parametrize(("override", "message"), BAD, ids=[o for o, _ in BAD])
def test_mistakes_are_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        composed(override)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_constant_rate_has_no_end() -> None:
    with pytest.raises(UserError, match=r"trainer.end_rate=0.1: must be 0 with trainer.schedule=constant"):
        composed("trainer=paper", "trainer.end_rate=0.1")


def test_a_folder_of_ones_own_adds_experiments(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = (conf_dir() / "experiment" / "mnist_split.yaml").read_text()
    (tmp_path / "experiment" / "mine.yaml").write_text(text.replace("name: mnist_split", "name: mine"))
    assert configuration(["experiment=mine"], tmp_path).name == "mine"


def test_a_seed_may_have_32_bits() -> None:
    assert composed("seed=4294967295").seed == 4294967295
    with pytest.raises(UserError, match=r"seeds=2: must be so small that the last seed is at most 4294967295"):
        composed("seed=4294967295", "seeds=2")


BASE = "experiment=stories_era/base"  # whose group `forget` is documents with one of some words


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["forget={column: lang, values: [xx]}"], GroupConfig(column="lang", values=["xx"])),
        (["forget.column=lang", "forget.values=[xx]"], GroupConfig(column="lang", values=["xx"])),
        (["forget.values=[xx]", "forget.column=lang"], GroupConfig(column="lang", values=["xx"])),
        (["forget.pattern='tr.e'"], GroupConfig(pattern="tr.e")),
        (["forget={predicate: 'rules:is_xx'}"], GroupConfig(predicate="rules:is_xx")),
        (["forget.labels=[0]", "forget.tokens=frequent"], GroupConfig(labels=[0], tokens="frequent")),
        (["forget.words=[oak]"], GroupConfig(words=["oak"], tokens="frequent")),
        (["forget={words: [oak]}"], GroupConfig(words=["oak"])),
    ],
    ids=str,
)
def test_a_rule_of_another_kind_replaces_a_groups_rule(overrides: list[str], rule: GroupConfig) -> None:
    found = composed(BASE, *(f"routing.groups.{override}" for override in overrides))
    assert found.routing.groups == {"forget": rule, "retain": GroupConfig(rest=True)}


def test_tokens_alone_change_the_rule_that_is_there() -> None:
    words = composed(BASE).routing.groups["forget"].words
    for override in ("routing.groups.forget={tokens: all}", "routing.groups.forget.tokens=all"):
        assert composed(BASE, override).routing.groups["forget"] == GroupConfig(words=words)
    for two in (["{words: [oak], pattern: oak}"], [".words=[oak]", ".pattern=oak"]):
        given = [f"routing.groups.forget{'' if '.' in part else '='}{part}" for part in two]
        with pytest.raises(UserError, match=r"forget=\['words', 'pattern'\]: must be exactly one rule"):
            composed(BASE, *given)


def test_names_of_ones_own_and_arguments_need_no_plus() -> None:
    config = composed(
        "routing.groups.few={labels: [3]}", "routing.groups.digits_0_4.labels=[0,1,2,4]",
        "routing.regions.middle={site: decoder.act0, units: '0:8'}", "routing.routes.few={middle: 0, top: 0.5}",
        "routing.routes.digits_0_4.middle=-1", "losses.l1.middle=0", "losses.groups={few: 2}", "model.decoders=3",
        "model.encoding=48", "dataset.metadata=columns", "routing.label_noise.few={false_negative: 0.5}",
        "routing.unlabelled=few", "losses.error={_target_: gradroute.training.measures.SquaredError}",
        "losses.penalties=[{_target_: gradroute.training.penalties.L1, region: middle, weight: 0.5}]",
        "finetune=null", "tracker={_target_: gradroute.running.trackers.Wandb, project: mine}",
    )  # fmt: skip
    routing, losses = config.routing, config.losses
    assert routing.groups["few"] == GroupConfig(labels=[3])
    assert routing.regions["middle"] == RegionConfig(site="decoder.act0", units="0:8")
    assert routing.routes["few"] == {"middle": 0.0, "top": 0.5}
    assert routing.routes["digits_0_4"] == {"bottom": 0.0, "middle": -1.0}
    assert routing.unlabelled == "few" and routing.label_noise["few"].false_negative == 0.5
    assert losses.l1 == {"top": 0.003, "bottom": 0.003, "middle": 0.0} and losses.groups == {"few": 2}
    assert losses.error == {TARGET: "gradroute.training.measures.SquaredError"} and len(losses.penalties) == 1
    assert (config.model["decoders"], config.model["encoding"], config.model["hidden"]) == (3, 48, [2048, 512])
    assert config.dataset["metadata"] == "columns" and config.finetune is None
    assert config.tracker == {TARGET: "gradroute.running.trackers.Wandb", "project": "mine", "mode": "offline"}


def said(capsys: pytest.CaptureFixture[str], *overrides: str, folder: Path | None = None) -> str:
    """The one line in which `gradroute-run` refuses overrides, with status 2."""
    with pytest.raises(Exception) as error:
        configuration(overrides, folder)
    assert report_failure(error.value) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and line.isprintable()
    return line


COMPONENTS = [  # of a component what is wrong, and what is said
    ("model._target_=autoencoder", "model._target_=autoencoder: must be the import path of a class or function"),
    ("model._target_=no.such.Thing", "model._target_=no.such.Thing: there is no module 'no.such'; searched: "),
    ("model._target_=gradroute.models.autoencodr.Autoencoder", "there is no module 'gradroute.models.autoencodr'"),
    ("model._target_=gradroute.models.autoencoder.Autoencodr", "'Autoencodr'; did you mean Autoencoder?"),
    ("model._target_=gradroute.models.autoencoder.X", "'X'; valid: Autoencoder"),
    ("model._target_=torch.nn.Linaer", "unknown name in torch.nn: 'Linaer'; did you mean Linear"),
    ("dataset._target_=torch.nn.Linear", "dataset._target_=torch.nn.Linear: is not a data set; use a subclass of"),
    ("dataset._target_=json.dumps", "is not a data set; use a subclass of Dataset"),
    ("task._target_=gradroute.models.resnet.SplitResNet", "is not a task; use a subclass of Task"),
    ("ablation._target_=gradroute.tasks.classification.Classification", "is not an ablation; use a subclass of A"),
    ("model._target_=gradroute.tasks.ablations.Zero", "use a subclass of Module or ModelPlan or a function"),
    ("measures=[{_target_: gradroute.training.penalties.L1}]", "L1: is not a measure; use a subclass of Measure"),
    ("steps=[train,{_target_: gradroute.training.penalties.L1}]", "is not a step; use a subclass of Step"),
    ("tracker={_target_: gradroute.steps.train.Train}", "is not a tracker; use a subclass of Tracker"),
    ("plots=[{_target_: gradroute.reporting.run_data.RunData}]", "unknown name in gradroute.reporting.run_data: 'RunD"),
    ("dataset._target_=gradroute.data.images.dataset.ImageDataset", "has no load, which a data set must define"),
    ("task._target_=gradroute.tasks.images.ImageTask", "has no batch, encodings, objective, samples, targets"),
    ("steps=[train,{_target_: gradroute.steps.base.Step}]", "has no run, which a step must define"),
    ("losses.penalties=[{_target_: gradroute.training.penalties.Penalty}]", "has no __call__, which a penalty must"),
    ("model.hiden=[8]", "unknown key 'model.hiden'; did you mean hidden?"),
    ("model.zzz=1", "unknown key 'model.zzz'; Autoencoder takes: hidden, encoding, decoders"),
    ("ablation.rgion=top", "unknown key 'ablation.rgion'; did you mean region?"),
    ("ablation.share=1", "unknown key 'ablation.share'; Zero takes: region"),
    ("measures=[{_target_: gradroute.training.measures.SquaredError, x: 1}]", "'measures.0.x'; SquaredError takes: n"),
    ("losses.penalties=[{_target_: gradroute.training.penalties.L1}]", "losses.penalties.0.region: L1 needs it; give"),
    ("losses.penalties=[{_target_: gradroute.training.penalties.L1, region: tpo}]", "'tpo'; did you mean top?"),
    ("model={_target_: torch.nn.Linear}", "model.in_features: Linear needs it; give model.in_features="),
    ("plots=[{_target_: gradroute.reporting.plots_common.encoding}]", "plots.0.site: encoding needs it; give plots.0."),
    ("dataset=images", "dataset.root: Missing mandatory value"),
    ("finetune.group=digits_0_4", "finetune.documents: FineTune needs it"),
    ("model.hidden=8", "model.hidden=8: must be a list"),
    ("model.hidden=[a]", "model.hidden=a: must be of type int"),
    ("model.encoding=true", "model.encoding=True: must be of type int"),
    ("model.encoding=1.5", "model.encoding=1.5: must be of type int"),
    ("dataset.format=striips", "unknown value of dataset.format: 'striips'; did you mean strips?"),
    ("dataset.root=3", "dataset.root=3: must be of type str"),
    ("losses.error=mae", "losses.error=mae: must be a mapping"),
    ("measures=mae", "measures=mae: must be a list"),
    ("measures=[mae]", "measures.0=mae: must be a mapping with _target_, the import path of a measure"),
    ("steps=[train,3]", "steps.1=3: must be a mapping with _target_, the import path of a step"),
    ("tracker={project: mine}", "must be a mapping with _target_, the import path of a tracker"),
    ("model.encoding=65537", "model.encoding=65537: must be from 1 to 65536"),
    ("model.hidden=[0]", "model.hidden=0: must be from 1 to 65536"),
    ("ablation=zro", "unknown value of ablation: 'zro'; did you mean zero?"),
    ("experiment=mnist_splt", "unknown value of experiment: 'mnist_splt'; did you mean mnist_split?"),
    ("model=perceptron", "unknown value of model: 'perceptron'; valid: autoencoder, hf, policy"),
]


@pytest.mark.parametrize(("override", "message"), COMPONENTS, ids=[o for o, _ in COMPONENTS])
def test_mistakes_about_components_are_said_in_one_line(
    override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in said(capsys, override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=class_split", "task.augment={crp: 2}"], "unknown key 'task.augment.crp'; did you mean crop?"),
        (["experiment=class_split", "task.augment.crop=65"], "task.augment.crop=65: must be from 0 to 64"),
        (["experiment=class_split", "task.augment=3"], "task.augment=3: must be a mapping"),
        (["experiment=stories_era", "finetune.grup=retain"], "unknown key 'finetune.grup'; did you mean group?"),
        (["experiment=stories_era", "finetune.rate=-1"], "finetune.rate=-1.0: must be from 1e-06 to 10"),
        (["experiment=stories_era", "completions.tokns=3"], "unknown key 'completions.tokns'; did you mean tokens?"),
        (["experiment=stories_era", "dataset=mnist"], "MNIST has no documents, which task=LanguageModelling needs"),
        (["dataset=toy_stories"], "ToyStories has no images, which task=Reconstruction needs; give dataset=mnist"),
        (["model=resnet"], "SplitResNet is for classification, and task= is reconstruction; give task=classification"),
        (["dataset=images", "dataset.root=x", "dataset.resize=[8]"], "dataset.resize=[8]: must be [height, width]"),
        (["dataset=images", "dataset.root=x", "dataset.test_share=1"], "test_share=1.0: must be from 0.0001 to 0.9999"),
        (["tracker=wandb", "tracker.mode=onlin"], "unknown value of tracker.mode: 'onlin'; did you mean online"),
    ],
    ids=str,
)
def test_so_are_mistakes_in_arguments(overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in said(capsys, *overrides)


OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, inner: nn.Module | None = None, act=nn.ReLU, sizes: tuple[int, ...] = (3, 4), rate: float = 1):
        super().__init__()
"""


@pytest.mark.slow
def test_ones_own_component_is_written_out_but_for_what_no_file_can_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Defaults that are plain data come with it, and components inside of it are as complete."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "own_net_of_test_config.py").write_text(OWN)
    net = "_target_: own_net_of_test_config.Net"
    linear = "_target_: torch.nn.Linear, in_features: 2"
    own = configuration([f"model={{{net}, inner: {{{linear}, out_features: 3}}}}"], tmp_path / "conf")
    inner = {TARGET: "torch.nn.Linear", "in_features": 2, "out_features": 3, "bias": True}
    assert own.model == {
        TARGET: "own_net_of_test_config.Net", "inner": inner | {"device": None, "dtype": None}, "sizes": [3, 4],
        "rate": 1.0,
    }  # fmt: skip
    assert from_mapping(yaml.safe_load(yaml.safe_dump(to_mapping(own)))) == own
    for inside, message in (
        (f"{linear}, out_featurs: 3", "unknown key 'model.inner.out_featurs'; did you mean out_features"),
        (linear, "model.inner.out_features: Linear needs it; give model.inner.out_features="),
        ("_target_: torch.nn.Linaer", "model.inner._target_: unknown name in torch.nn: 'Linaer'; did you mean Linear"),
    ):
        assert message in said(capsys, f"model={{{net}, inner: {{{inside}}}}}", folder=tmp_path / "conf")


def test_every_component_of_ours_may_be_named() -> None:
    named = [base for door in DOORS.values() for base in door.bases]
    for target in [*named, *(target for target, _ in STEPS.values())]:
        found = locate(target, "here")
        assert KINDS & {f"{base.__module__}.{base.__qualname__}" for base in found.__mro__}


def test_a_yaml_file_with_a_tab_says_where_and_what_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment").mkdir()
    path = tmp_path / "experiment" / "mine.yaml"
    path.write_text("# @package _global_\nname: mine\ntrainer:\n\tepochs: 1\n")
    line = said(capsys, "experiment=mine", folder=tmp_path)
    assert line.startswith(f"error: {path}, line 4: is not valid YAML") and "indent with spaces, not tabs" in line
    path.write_text("# @package _global_\ndefaults: [override /model: autoencodr]\n")
    assert "unknown value of model: 'autoencodr'" in said(capsys, "experiment=mine", folder=tmp_path)


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (
            "output_dir=dir with spaces",
            "with: is not an override; give key=value, and quote a value with spaces: 'ou",
        ),
        ("output_dir=dir(1)", "quote a text with special characters: 'output_dir=\"dir(1)\"'"),
        ("output_dir = runs", "output_dir: is not an override; give key=value"),
    ],
)
def test_values_that_need_quotes_say_so(words: str, right: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As a shell splits what is not quoted."""
    assert right in said(capsys, *words.split(" "))


def test_a_quoted_folder_with_spaces_is_one_value() -> None:
    for quoted in ("output_dir=dir with spaces", "output_dir='dir with spaces'", 'output_dir="dir with spaces"'):
        assert composed(quoted).output_dir == "dir with spaces"
    assert composed('output_dir="dir (1)"').output_dir == "dir (1)"


@pytest.mark.parametrize("emptied", ["losses.l1={}", "losses.l1={ }", "losses.l1=null", "losses.l1.original=null"])
def test_an_empty_mapping_and_null_leave_out_what_is_inherited(emptied: str) -> None:
    l1 = configuration(["experiment=stories_era", emptied]).losses.l1
    assert l1 == ({"added": 0.0001} if "original" in emptied else {})


@pytest.mark.parametrize(
    "name", ["routing.groups", "routing.regions", "routing.routes", "routing.label_noise", "losses.groups"]
)
def test_every_mapping_of_names_can_be_emptied(name: str) -> None:
    section, _, key = name.partition(".")
    config = _typed(compose.composed(["experiment=stories_era", f"{name}={{}}"]))
    assert getattr(getattr(config, section), key) == {}


def test_what_is_added_to_an_emptied_mapping_stands_alone() -> None:
    assert configuration(["experiment=stories_era", "losses.l1={}", "losses.l1.original=0.1"]).losses.l1 == {
        "original": 0.1
    }


def test_an_empty_mapping_of_a_sweep_is_empty_too() -> None:
    (swept,) = prepared(["losses.l1={original:0.1},{ },{}"])
    assert swept == "++losses.l1={original:0.1},null,null"
    assert prepared(["routing.routes={forget:{},retain:{added:1}}"]) == [
        "++routing.routes={forget:{},retain:{added:1}}"
    ]
