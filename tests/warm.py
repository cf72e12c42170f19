"""Import what the commands import, and compose a configuration: the fork server does so once for all of its forks."""

import importlib
from importlib.util import find_spec

import composing

from gradroute.config.compose import configuration

MODULES = (
    "gradroute.commands.compare", "gradroute.commands.run", "gradroute.commands.search", "gradroute.commands.tokens",
    "gradroute.commands.verify", "gradroute.comparison.language", "gradroute.comparison.plots",
    "gradroute.reporting.plots", "gradroute.reporting.plots_classification", "gradroute.reporting.plots_images",
    "gradroute.reporting.plots_language", "gradroute.running.runner", "gradroute.running.verify",
    "gradroute.search.finals", "gradroute.search.page", "gradroute.search.study", "gradroute.tasks.classification",
    "gradroute.tasks.language", "gradroute.tasks.reconstruction", "gradroute.models.resnet", "hydra", "jinja2",
    "pandas", "rich.live", "rich.table", "torch._dynamo",
)  # fmt: skip

composing.quick()
for name in MODULES:
    importlib.import_module(name)
for name in ("transformers", "peft"):  # of gradroute[hf]
    if find_spec(name):
        importlib.import_module(name)
for experiment in ("mnist_split", "class_split", "stories_era", "oversight/routing"):
    configuration([f"experiment={experiment}", "trainer=smoke"])
