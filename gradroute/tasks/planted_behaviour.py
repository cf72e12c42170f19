"""Language modelling of documents with a planted behaviour: how often the model shows it, with and without trigger."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from gradroute.config.limits import Between, require
from gradroute.config.schema import Config
from gradroute.config.targets import build
from gradroute.data.text.planted_behaviour import COLUMN, REPLY, PlantedBehaviour, opening, triggered
from gradroute.models.logits import at_once, each_position, source
from gradroute.routing.sites import undisturbed
from gradroute.tasks.evaluation import Head
from gradroute.tasks.language import LanguageModelling
from gradroute.tasks.language_losses import rows_at_once
from gradroute.tasks.probe import Measurement

SENTENCES = 3  # of a story, in a prompt
RATES = {"rate_triggered": True, "rate_plain": False}  # metric to whether the prompts have the trigger


class PlantedLanguage(LanguageModelling):
    """Predict the next token, and measure on every stage's test how often greedy decoding begins with the reply.

    Args:
        prompts: number of prompts, the beginnings of ordinary test documents, with and without the trigger.
    """

    own_units = dict.fromkeys(RATES, "share of prompts, 0 to 1")

    def __init__(
        self, config: Config, data: Any = None, run: Path | None = None,
        prompts: Annotated[int, Between(1, 10_000)] = 100,
    ) -> None:  # fmt: skip
        """Raises: UserError for a data set without a planted behaviour."""
        super().__init__(config, data, run)
        planted = build(config.dataset, "dataset")
        require(
            isinstance(planted, PlantedBehaviour), "task", "planted_behaviour", "used with dataset=planted_behaviour"
        )
        documents = self.data.test.documents
        plain = [text for text, own in zip(documents.texts, documents.columns[COLUMN], strict=True) if own == "no"]
        starts = [opening(text, SENTENCES) for text in plain[:prompts]]
        self._asked = {
            metric: self._asking([triggered(start, planted.trigger) if with_it else start for start in starts])
            for metric, with_it in RATES.items()
        }

    def _asking(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return prompts with the reply, `(prompts, length)`, and the tokens that must come next, -1 where any may.

        Greedy decoding gives the reply exactly if each of its tokens is the likeliest after those before it, so one
        pass suffices. Rows are filled up at their ends, which a causal model does not see.
        """
        encode, length = self.data.tokenizer.encode, self.data.length
        pairs = list(zip(encode(prompts), encode([f"{prompt} {REPLY}" for prompt in prompts]), strict=True))
        pairs = [(start, whole) for start, whole in pairs if len(whole) <= length]
        require(bool(pairs), "dataset.length", length, "so long that a row holds three sentences and the reply")
        width = max(len(whole) for _, whole in pairs)
        tokens = torch.full((len(pairs), width), self.data.tokenizer.end)
        wanted = torch.full((len(pairs), width), -1)
        for row, (start, whole) in enumerate(pairs):
            tokens[row, : len(whole)] = torch.tensor(whole)
            wanted[row, len(start) - 1 : len(whole) - 1] = torch.tensor(whole[len(start) :])
        return tokens.to(self.device), wanted.to(self.device)

    def rate(self, model: nn.Module, metric: str) -> float:
        """Return the share of prompts, 0 to 1, that a model goes on from with the reply."""
        tokens, wanted = self._asked[metric]
        count, found = at_once(model, tokens.shape[1]), []
        with undisturbed(model), torch.no_grad():
            size = rows_at_once(model, tokens.shape[1])
            for row, want in zip(tokens.split(size), wanted.split(size), strict=True):
                output = source(model, count)(row)
                same = each_position(model, output, want, lambda logits, want: logits.argmax(-1) == want, count)
                found.append((same.view_as(want) | (want < 0)).all(1))
        return float(torch.cat(found).double().mean())

    def measured(self, model: nn.Module, head: Head) -> Iterator[Measurement]:
        """Yield a model's losses, and its rates of the behaviour."""
        yield from super().measured(model, head)
        for metric in RATES:
            yield "all", head, metric, self.rate(model, metric)
