"""Configurations: every experiment composes; every mistake is one clear line."""

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from gradroute.config.build import from_mapping
from gradroute.config.compose import conf_dir, configuration
from gradroute.config.identity import config_hash, to_mapping
from gradroute.config.schema import Config
from gradroute.errors import UserError

FOLDER = conf_dir() / "experiment"
EXPERIMENTS = sorted(p.relative_to(FOLDER).with_suffix("").as_posix() for p in FOLDER.rglob("*.yaml"))


def composed(*overrides: str) -> Config:
    return configuration(list(overrides))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("trainer", ["smoke", "fast", "paper"])
def test_every_experiment_composes_with_every_preset(experiment: str, trainer: str) -> None:
    assert composed(f"experiment={experiment}", f"trainer={trainer}").trainer.preset == trainer


@pytest.mark.parametrize("group", ["dataset", "model", "routing", "ablation"])
def test_every_option_of_every_group_composes(group: str) -> None:
    of_language = ("toy_stories", "text", "tinystories", "transformer", "hf", "forget_words", "words")
    needed = {
        "text": ["dataset.files=x"],
        "hf": ["model.pretrained=x", "dataset.tokenizer=pretrained"],
        "words_reserved": ["ablation.region=added"],
    }
    for option in (conf_dir() / group).glob("[!_]*.yaml"):
        around = ["experiment=stories_era/base"] if option.stem.startswith(of_language) else []
        around = ["experiment=class_split"] if option.stem.startswith(("class_", "resnet")) else around
        around = ["experiment=steering_scalar"] if option.stem.startswith("steering") else around
        composed(*around, f"{group}={option.stem}", *needed.get(option.stem, []))


def test_the_published_protocol_is_the_paper_preset() -> None:
    config = composed("trainer=paper")
    trainer = config.trainer
    assert (trainer.epochs, trainer.batch_size, trainer.lr, trainer.betas) == (200, 2048, 1e-3, [0.9, 0.999])
    assert (trainer.weight_decay, trainer.schedule, trainer.warmup_steps) == (5e-5, "constant", 0)
    assert (config.model.hidden, config.model.encoding) == ([2048, 512], 32)
    assert config.losses.l1 == {"top": 3e-3, "bottom": 3e-3} and config.losses.correlation == 0.1


def test_a_saved_configuration_comes_back_equal() -> None:
    config = composed("seed=4", "routing=none")
    assert from_mapping(yaml.safe_load(yaml.safe_dump(to_mapping(config)))) == config


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
    ("ablation=zro", "did you mean zero"),
    ("steps=[trian]", "did you mean train"),
    ("steps=[evaluate,train]", "in this order"),
    ("losses.certificates=[tpo]", "did you mean top"),
    ("losses.correlation=-1", "losses.correlation"),
    ("+losses.l1.left=1", "unknown value of losses.l1: 'left'"),
    ("routing.groups.digits_0_4.labels=[0,1,5]", "label 5 is in 'digits_0_4' and 'digits_5_9'"),
    ("routing.groups.digits_0_4.labels=[]", "exactly one rule, not empty: labels"),
    ("routing.routes.digits_0_4.bottom=nan", "a finite number"),
    ("routing.routes.digits_0_4.bottom=none", "a finite number"),
    ("routing.routes.digits_0_4.bottom={weight:0,stopp:9}", "did you mean stop"),
    ("routing.routes.digits_0_4.bottom={weight:0,start:9,stop:9}", "must come after start + ramp = 9"),
    ("routing.labelled_fraction=1.5", "from 0 to 1"),
    ("+routing.label_noise.digits={false_positive:0.1}", "did you mean digits_"),
    ("+routing.label_noise.digits_0_4={false_positive:2}", "from 0 to 1"),
    ("+routing.groups.digits_0_4.predicate=a:b", "by exactly one rule"),
    ("+routing.groups.digits_0_4.values=[1]", "given with column"),
    ("+routing.regions.top.parameters={a:null}", "either site or parameters"),
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
    ("model.hidden=[1000000000]", "model.hidden=1000000000: must be from 1 to 65536"),
    ("model.decoders=7", "model.decoders=7: must be 1, or 2"),
    ("losses.correlation=inf", "losses.correlation=inf: must be from 0 to 1000000"),
    ("losses.l1.top=[1]", "losses.l1.top=[1]: must be a float"),
    ("+losses.groups=${seed}", "losses.groups=0: must be a mapping"),
    ("losses.certificates=${losses.l1}", "losses.certificates"),
    ("routing.routes.digits_0_4=${seed}", "routing.routes.digits_0_4=0: must be a mapping"),
    ("trainer.betas=${seed}", "trainer.betas"),
    ("++losses.groups.digits_0_4=nan", "losses.groups.digits_0_4=nan"),
    ("name=a/b", "letters, digits, _ and -"),
    ("name=''", "1 to 64 letters"),
    ("output_dir=''", "a folder's path"),
    ("dataset.root=''", "a folder's path"),
    ("ablation.region=[top,top]", "each region once"),
    ("ablation.region={a:1}", "ablation.region"),
    ("routing.groups.digits_0_4.labels=[-1]", "from 0 to 1000000000"),
    ("+routing.groups.all={labels:[7]}", "this is reserved"),
    ("+routing.groups.digit_3={labels:[7]}", "this is reserved"),
    ("+routing.groups.new={column:'',values:[1]}", "column"),
    ("+routing.groups.new={predicate:'a..b:c'}", "module:function"),
    ("+routing.regions.all={site:encoder}", "this is reserved"),
    ("+routing.regions.new={parameters:{}}", "at least one parameter"),
    ("+routing.regions.new={site:[]}", "a module's name"),
    ("routing.routes.digits_0_4.bottom=1e300", "from -1000000 to 1000000"),
    ("routing.routes.digits_0_4.bottom=1" + "0" * 400, "from -1000000 to 1000000"),
    ("routing.routes.digits_0_4=x", "routing.routes.digits_0_4"),
    ("split.groups=[]", "no set is in it"),
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
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        overrides = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]
        assert from_mapping(compose("config", overrides)).name == "mine"
