"""The problem of a language model: rows of tokens, the next one to predict, routed by document and token (GR 4.2)."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gradroute.config.schema import Config
from gradroute.data.groups import Part as Rules
from gradroute.data.groups import assign
from gradroute.data.text.corpora import Part, Texts, load_texts
from gradroute.data.text.packing import IGNORED
from gradroute.data.text.rules import memberships
from gradroute.data.text.token_shares import distinctive, shares_of
from gradroute.errors import UserError
from gradroute.models.plans import plan_of
from gradroute.routing import Site
from gradroute.routing.ablation import Ablation
from gradroute.tasks.base import Measurement, Probe, Problem, settle_precision
from gradroute.tasks.evaluation import Head, activations_at
from gradroute.tasks.language_texts import as_json, completions, encoded, token_weights
from gradroute.tasks.parts import Parts, routers
from gradroute.training.memory import machine_memory
from gradroute.training.objectives import Batch, NextTokenObjective

ROWS = 64  # at once in an evaluation
SHOWN = 2048  # rows whose activations an ablation by mean or resampling draws from


class LanguageModelling(Problem):
    """Documents to predict token by token. Raises: UserError for every mistake in the configuration or the data."""

    data: Texts

    def __init__(self, config: Config, data: Texts | None = None, run: Path | None = None) -> None:
        """`data` is what `load_texts` would give, if it is at hand; `run` the folder that a model is read back from."""
        self.config = config
        self.device = settle_precision(config)
        self.plan = plan_of(config, run)
        limits = (config.trainer.train_limit, config.trainer.test_limit)
        self.data = data or load_texts(config.dataset, *limits, self.plan.tokenizer)
        train, test = self.data.train, self.data.test
        self.sha256, self.points = self.data.sha256, len(train.packed)
        rules = [
            Rules(part.documents.texts, torch.zeros(len(part.documents), dtype=torch.int64), part.documents.columns)
            for part in (train, test)
        ]
        groups = assign(config.routing, rules[0], rules[1], config.seed)
        self.names, self.train_groups, self.test_groups = groups.names, groups.train, groups.test
        self.labelled = groups.routed
        self.prompts = encoded(config.completions, self.data.tokenizer)
        packed = train.packed
        self.routed = (packed.spread(self.labelled[train.corpus.documents] + 1) - 1).to(self.device)
        self._rows = [t.to(self.device) for t in (packed.tokens, packed.targets, packed.documents)]
        self._membership = self._memberships(train)
        self._require_memory()
        torch.manual_seed(config.seed)
        model = self.plan.build(self.data.tokenizer.size, self.data.length).to(self.device)
        self.parts = Parts(model, nn.ModuleDict(), *routers(model, config.routing, self.names, self.example()[:1]))
        self.made: dict[str, nn.Module] = {}
        self.try_ablations()
        if config.unlearn is not None:
            from gradroute.steps.unlearn import try_unlearning

            try_unlearning(self, config.unlearn)
        if config.steering is not None:
            from gradroute.steps.steer import try_steering

            try_steering(self, config.steering)

    def _require_memory(self) -> None:
        """An estimate from below: parameters, gradients, moments, and one batch's logits and activations."""
        model = self.plan.outline(self.data.tokenizer.size, self.data.length)
        weights = 16 * sum(parameter.numel() for parameter in model.parameters())
        trainer = self.config.trainer
        tokens = -(-min(trainer.batch_size, self.points) // trainer.accumulate) * self.data.length
        batch = 8 * tokens * (self.data.tokenizer.size + self.plan.per_token)
        limit = machine_memory(self.device)
        if weights + batch > limit:
            right = self.plan.smaller if weights > batch else "lower trainer.batch_size, or raise trainer.accumulate"
            needed = f"{(weights + batch) / 2**30:.1f} GiB are needed and the machine has {limit / 2**30:.1f}"
            raise UserError(f"{self.plan.key}: {needed}; {right}")

    def _memberships(self, train: Part) -> torch.Tensor:
        """What the router takes: group numbers of tokens, or shares where a rule weighs tokens."""
        if all(rule.tokens == "all" for rule in self.config.routing.groups.values()):
            return self.routed
        shares = shares_of(self.data, self.config.routing, self.names, self.labelled)
        return memberships(train.corpus, train.packed, shares).to(self.device)

    def objective(self) -> NextTokenObjective:
        """The training loss."""
        partial = bool((self.labelled == -1).any())
        return NextTokenObjective(self.model, self.names, self.config.losses, partial, self.router)

    def batch(self, chosen: torch.Tensor) -> Batch:
        """Tokens, targets, documents, group numbers and memberships of rows."""
        return (*(rows[chosen] for rows in self._rows), self.routed[chosen], self._membership[chosen])

    def modules(self) -> dict[str, nn.Module]:
        """Everything that was trained, by its prefix in saved weights."""
        return {"model": self.model, **self.made}

    def more(self) -> list[str]:
        """What was made after the training: `unlearned`, `finetuned`, and `relearning` while that goes on."""
        return list(self.made)

    def left(self) -> nn.Module:
        """A copy of what the configured ablation leaves of the model, or of the model where there is none."""
        for ablation in self.ablations() if "ablate" in self.config.steps else ():
            with ablation.applied(self.model) as ablated:
                return copy.deepcopy(ablated)
        return copy.deepcopy(self.model)

    def make(self, name: str) -> nn.Module:
        """A model as the last step before left it: as unlearned, else as ablated, else as trained; then fine-tuned."""
        model = self.made[name] = self.left()
        for earlier in ("finetuned", "unlearned"):
            if earlier in self.made and earlier != name:
                model.load_state_dict(self.made[earlier].state_dict())
                break
        return model

    def expected(self) -> list[str]:
        """What a finished run has beside the model."""
        made = {"unlearned": self.config.unlearn, "finetuned": self.config.finetune}
        return [name for name, how in made.items() if how]

    def probes(self) -> Iterator[Probe]:
        """Nothing: a language model has no certificates."""
        yield from ()

    def example(self) -> torch.Tensor:
        """A few rows of test tokens."""
        return self.data.test.packed.tokens[:8].to(self.device)

    def activations(self, sites: tuple[Site, ...]) -> dict[str, torch.Tensor]:
        """Activations of rows to train on at some sites, by name."""
        return activations_at(self.model, sites, self._rows[0][:SHOWN])

    @torch.no_grad()
    def losses(self, model: nn.Module, part: Part) -> torch.Tensor:
        """Cross-entropy of each of a part's tokens by the position that predicts it, `(total,)`; 0 of a last one."""
        found = []
        for rows in torch.arange(len(part.packed)).split(ROWS):
            tokens, targets, documents = (
                t[rows].to(self.device) for t in (part.packed.tokens, part.packed.targets, part.packed.documents)
            )
            logits = model(tokens, documents).float().flatten(0, 1)
            each = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="none")
            found.append(each.view_as(tokens).cpu())
        return part.packed.gathered(torch.cat(found))

    def group_means(
        self, each: torch.Tensor, part: Part, groups: torch.Tensor, counted: torch.Tensor | None = None
    ) -> dict[str, float]:
        """Means over each group's documents of `each` of a part's tokens, `(total,)`, or of those `counted`, alike."""
        corpus = part.corpus
        predicts = torch.ones(len(corpus.tokens), dtype=torch.bool)
        predicts[corpus.starts + corpus.lengths - 1] = False
        predicts &= True if counted is None else counted
        found = {}
        for number, name in enumerate(self.names):
            own = predicts & (groups[corpus.documents] == number)
            if bool(own.any()):
                found[name] = float(each[own].double().mean())
        return found

    def group_losses(self, model: nn.Module, part: Part, groups: torch.Tensor) -> dict[str, float]:
        """Mean cross-entropy, in nats per token, of each group's documents."""
        return self.group_means(self.losses(model, part), part, groups)

    def stages(self, ablations: list[Ablation]) -> Iterator[tuple[Head, nn.Module]]:
        """The model as trained, ablated, unlearned and fine-tuned; each is good until the next is asked for."""
        yield Head("model", "all"), self.model
        for ablation in ablations:
            with ablation.applied(self.model) as ablated:
                yield Head("model_ablated", ablation.name), ablated
        for name in ("unlearned", "finetuned"):
            if name in self.made:
                yield Head(f"model_{name}", "all"), self.made[name]

    def measure(self, ablations: list[Ablation]) -> Iterator[Measurement]:
        """The loss of every stage on every group of the test documents."""
        for head, model in self.stages(ablations):
            yield from self.measured(model, head)

    def measured(self, model: nn.Module, head: Head) -> Iterator[Measurement]:
        """A model's loss on every group of the test documents; where words choose them, also without their tokens."""
        test, each = self.data.test, self.losses(model, self.data.test)
        for group, value in self.group_means(each, test, self.test_groups).items():
            yield group, head, "cross_entropy", value
        own = distinctive(self.data, self.config.routing, self.names, self.train_groups, self.test_groups)
        if own is not None:
            plain = test.corpus.predicting(own) < 0.5
            for group, value in self.group_means(each, test, self.test_groups, plain).items():
                yield group, head, "cross_entropy_unrouted", value

    def texts(self) -> dict[str, str]:
        """The tokenizer's file; where tokens are weighed, their weights; and completions, if any are asked for."""
        found = {"tokenizer.json": self.data.tokenizer.to_json()}
        if self._membership is not self.routed:
            found["tokens.json"] = as_json(self.weights())
        if self.config.completions is not None:
            ablations = self.ablations() if "ablate" in self.config.steps else []
            rows = completions(self.stages(ablations), self.prompts, self.config, self.data)
            found["completions.json"] = as_json(rows)
        return found

    def weights(self) -> dict[str, Any]:
        """What the token rules of the groups do to the training documents, for people; see `token_weights`."""
        groups, train = self.config.routing.groups, self.data.train
        weighed = [name for name in self.names if name in groups and groups[name].tokens != "all"]
        if not weighed:
            raise UserError("routing.groups: no group weighs tokens; give one tokens: frequent, or words")
        shares = shares_of(self.data, self.config.routing, self.names, self.labelled)
        own = {name: self.labelled == number for number, name in enumerate(self.names)}
        return token_weights(train.corpus, self.data.tokenizer, {name: shares[name] for name in weighed}, own)

    def kept(self) -> dict[str, str]:
        """What a model of Hugging Face is read back from."""
        return self.plan.kept(self.data.tokenizer)

    def samples(self, ablations: list[Ablation]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The masks, and the size of the vocabulary."""
        masks = {f"mask/{site.name}": self.router.masks[site.name] for site in self.router.sites}
        return masks, {"vocabulary": self.data.tokenizer.size}
