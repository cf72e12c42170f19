"""Language modelling: predict the next token, with routes by document and token (GR section 4.2)."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradroute.config.components import step_names
from gradroute.config.limits import one_of
from gradroute.config.schema import Config, TrainerConfig
from gradroute.config.targets import build
from gradroute.data.text.corpora import Part, Texts, packed_by
from gradroute.data.text.datasets import TextDataset
from gradroute.data.text.packing import IGNORED
from gradroute.data.text.token_shares import distinctive
from gradroute.models.adapters import add_adapters
from gradroute.models.base import ModelPlan, plan_of
from gradroute.models.logits import at_once, body
from gradroute.models.pretrained import HuggingFace
from gradroute.routing import Site
from gradroute.routing.ablation import Ablation
from gradroute.routing.sites import undisturbed
from gradroute.tasks.base import Task
from gradroute.tasks.evaluation import Head, activations_at
from gradroute.tasks.language_checks import build_completions, check_language, objectives_of_relearning
from gradroute.tasks.language_groups import grouped, routed_rows, validation_of
from gradroute.tasks.language_losses import group_means, rows_at_once, token_values
from gradroute.tasks.language_memory import fitted, require_language_memory, row_bytes, rows_stored
from gradroute.tasks.language_objective import NextTokenObjective
from gradroute.tasks.language_texts import as_json, completions, encoded, weights_of
from gradroute.tasks.own_measures import error_of, measures_of, try_measures
from gradroute.tasks.parts import assemble
from gradroute.tasks.probe import Measurement
from gradroute.training.measures import CROSS_ENTROPY
from gradroute.training.objectives import Batch
from gradroute.training.penalties import penalties_of

FEW = 2**22  # logits of the example, at most


class LanguageModelling(Task):
    """The task of predicting the next token. Raises: UserError for every mistake in the configuration or the data."""

    kind = "language"
    plots = tuple(
        f"gradroute.reporting.plots_{name}"
        for name in (
            "language.training_curves", "language.stages", "language.relearning", "language.steering",
            "language.steering_likelihood", "secrets.secrets",
        )
    )  # fmt: skip
    data: Texts

    def __init__(
        self, config: Config, data: Texts | None = None, run: Path | None = None, packing: str = "mixed",
    ) -> None:  # fmt: skip
        """Use `data`, if given, instead of reading the data set; read a Hugging Face model from `run`, if given.

        packing: `mixed`, or `by_group` for rows of one group each, which routes of parameters train on faster.
        """
        super().__init__(config, data, run)
        one_of("task.packing", packing, ("mixed", "by_group"))
        self.plan = plan_of(config.model, run)
        limits = (config.trainer.train_limit, config.trainer.test_limit)
        dataset: TextDataset = build(config.dataset, "dataset")
        if isinstance(self.plan, HuggingFace):
            self.plan.check_length(dataset.length)
        self.read = self.data = data or dataset.tensors(*limits, pretrained=self.plan.tokenizer)
        groups = grouped(self.data, config.routing, config.seed)
        if packing == "by_group":
            self.data = packed_by(self.data, groups.routed)
        self.sha256, self.points = self.data.sha256, len(self.data.train.packed)
        self.validation = validation_of(self.data, config.routing, groups)
        self.names, self.train_groups, self.test_groups = groups.names, groups.train, groups.test
        self.labelled = groups.routed
        self.completed = build_completions(config)
        self.prompts = encoded(self.completed, self.data.tokenizer)
        rows, routed, shares = routed_rows(self.data, config.routing, groups)
        self._rows, self.routed = [t.to(self.device) for t in rows], routed.to(self.device)
        self.counted = rows[1] != IGNORED
        self._membership = self.routed if shares is None else shares.to(self.device)
        self._require_memory(self.plan)
        torch.manual_seed(config.seed)
        model = self.plan.build(**self.found)
        add_adapters(model, config.routing.regions, read_back=run is not None)
        model = model.to(self.device)
        self.parts = assemble(model, config.routing, config.losses, self.names, self.example()[:1])
        self.error, self.measures = error_of(config, self.found), measures_of(config, self.found, [CROSS_ENTROPY])
        self.try_ablations()
        if config.measures or config.losses.error:
            tokens = self.example()[:1]
            with undisturbed(self.model), torch.no_grad():
                try_measures(config, self.found, self.model(tokens).float().flatten(0, 1), tokens.flatten())

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise UserError for settings that do not fit a language model."""
        super().check(config)
        check_language(config)

    @classmethod
    def search_objectives(cls, config: Config) -> dict[str, dict[str, str]]:
        """Return the loss on the forget set after relearning, and on the retain set before it. Raises: UserError."""
        return objectives_of_relearning(config)

    @classmethod
    def when_out_of_memory(cls, config: Config, stacked: int) -> str:
        """Advise splitting the batch into more parts."""
        return f"raise trainer.accumulate (now {config.trainer.accumulate})"

    @property
    def found(self) -> dict[str, Any]:
        """The size of the vocabulary, the length of a row, and the groups' names."""
        return {"vocabulary": self.data.tokenizer.size, "context": self.data.length, "groups": list(self.names)}

    def _require_memory(self, plan: ModelPlan) -> None:
        """Raise UserError if parameters, gradients, moments, and a batch's logits and activations exceed the memory."""
        model, length = plan.outline(**self.found), self.data.length
        self.row_bytes = row_bytes(model, self.data.tokenizer.size, length)
        sizes = (self.row_bytes, length, self.points)
        require_language_memory(self.config, model, *sizes, self.device, plan.smaller)

    def fitted(self, trainer: TrainerConfig, points: int) -> TrainerConfig:
        """Take batches in enough parts that each fits the memory."""
        return fitted(self.config, trainer, points, self.row_bytes, self.device)

    def objective(self) -> NextTokenObjective:
        """Return the training loss."""
        partial, losses = bool((self.labelled == -1).any()), self.config.losses
        own, length, routed = penalties_of(losses, own_l1=True), self.data.length, self.parameter_router is not None
        return NextTokenObjective(
            self.model, self.names, losses, partial, self.router, self.error, own, length, routed
        )  # fmt: skip

    def batch(self, chosen: torch.Tensor) -> Batch:
        """Return the rows' tokens, targets, documents, group numbers and memberships."""
        return (*(rows[chosen] for rows in self._rows), self.routed[chosen], self._membership[chosen])

    def group_index(self, batch: Batch) -> torch.Tensor:
        """Return the group numbers of a batch's tokens."""
        return batch[3]

    def modules(self) -> dict[str, nn.Module]:
        """Return every trained module, by its prefix in saved weights."""
        return {"model": self.model, **self.made}

    def left(self) -> nn.Module:
        """Return a copy of the ablated model, or of the trained model if no ablation is configured."""
        for ablation in self.ablations() if "ablate" in step_names(self.config) else ():
            with ablation.applied(self.model) as ablated:
                return copy.deepcopy(ablated)
        return copy.deepcopy(self.model)

    def make(self, name: str) -> nn.Module:
        """Make a copy of the latest model: fine-tuned, else unlearned, else ablated, else trained."""
        model = self.made[name] = self.left()
        if any(region.adapter is not None for region in self.config.routing.regions.values()):
            model.requires_grad_(True)  # who has the model trains all of it, not the adapters alone
        for earlier in ("finetuned", "unlearned"):
            if earlier in self.made and earlier != name:
                model.load_state_dict(self.made[earlier].state_dict())
                break
        return model

    def expected(self) -> list[str]:
        """Return the models that a finished run has besides the trained one."""
        made = {"unlearned": self.config.unlearn, "finetuned": self.config.finetune}
        return [name for name, how in made.items() if how]

    def example(self) -> torch.Tensor:
        """Return a few rows of test tokens, or the start of one."""
        tokens, few = self.data.test.packed.tokens, FEW // self.data.tokenizer.size
        return tokens[: max(1, min(8, few // tokens.shape[1])), : max(2, few)].to(self.device)

    def activations(self, sites: tuple[Site, ...]) -> dict[str, torch.Tensor]:
        """Return activations of the first training rows at some sites, by site name."""
        rows, length = self._rows[0][: rows_stored(self.router, sites, self.data.length)], self.data.length
        called = None if at_once(self.model, length) is None else body(self.model)
        with undisturbed(self.model):
            return activations_at(self.model, sites, rows, rows_at_once(self.model, length), called)

    def losses(self, model: nn.Module, part: Part) -> dict[str, torch.Tensor]:
        """Return each measure at every position of a part, `(total,)`; 0 at the last position of a document."""
        return token_values(model, part, self.measures, self.device)

    def group_losses(self, model: nn.Module, part: Part, groups: torch.Tensor) -> dict[str, float]:
        """Return the mean cross-entropy of each group's documents, in nats per token."""
        each = token_values(model, part, [CROSS_ENTROPY], self.device)[CROSS_ENTROPY.name]
        return group_means(each, part, groups, self.names)

    def stages(self, ablations: list[Ablation]) -> Iterator[tuple[Head, nn.Module]]:
        """Yield the model as trained, ablated, unlearned and fine-tuned; each is valid until the next is requested."""
        yield Head("model", "all"), self.model
        for ablation in ablations:
            with ablation.applied(self.model) as ablated:
                yield Head("model_ablated", ablation.name), ablated
        for name in ("unlearned", "finetuned"):
            if name in self.made:
                yield Head(f"model_{name}", "all"), self.made[name]

    def measure(self, ablations: list[Ablation]) -> Iterator[Measurement]:
        """Yield the loss of every stage on every group of the test documents."""
        for head, model in self.stages(ablations):
            yield from self.measured(model, head)

    def validate(self, ablations: list[Ablation]) -> Iterator[Measurement]:
        """Yield the loss of every stage on the validation documents, if none of them is tested on."""
        for head, model in self.stages(ablations) if self.validation.held_out else ():
            for group, value in self.group_losses(model, self.validation.part, self.validation.groups).items():
                yield group, head, "cross_entropy", value

    def measured(self, model: nn.Module, head: Head) -> Iterator[Measurement]:
        """Yield a model's loss on every group of the test documents; if words define one, also without its tokens."""
        test = self.data.test
        found = self.losses(model, test)
        for metric, each in found.items():
            for group, value in group_means(each, test, self.test_groups, self.names).items():
                yield group, head, metric, value
        own = distinctive(self.data, self.config.routing, self.names, self.train_groups, self.test_groups)
        if own is not None:
            plain, each = test.corpus.predicting(own) < 0.5, found[CROSS_ENTROPY.name]
            for group, value in group_means(each, test, self.test_groups, self.names, plain).items():
                yield group, head, "cross_entropy_unrouted", value

    def texts(self) -> dict[str, str]:
        """Return the tokenizer's file, token weights if a rule weighs tokens, and the configured completions."""
        found = {"tokenizer.json": self.data.tokenizer.to_json()}
        if self._membership is not self.routed:
            found["tokens.json"] = as_json(self.weights())
        if self.completed is not None:
            ablations = self.ablations() if "ablate" in step_names(self.config) else []
            rows = completions(self.stages(ablations), self.prompts, self.completed, self.config, self.data)
            found["completions.json"] = as_json(rows)
        return found

    def weights(self) -> dict[str, Any]:
        """Return the effect of token rules on the training documents; see `token_weights`. Raises: UserError."""
        return weights_of(self.data, self.config.routing, self.names, self.labelled)

    def kept(self) -> dict[str, str]:
        """Return the files from which a Hugging Face model is loaded again."""
        return self.plan.kept(self.data.tokenizer)

    def samples(self, ablations: list[Ablation]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the masks, and the size of the vocabulary."""
        masks = {f"mask/{site.name}": self.router.masks[site.name] for site in self.router.sites}
        return masks, {"vocabulary": self.data.tokenizer.size}
