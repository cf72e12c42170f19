"""Steer by one scalar (GR section 4.2.1): find the words along a dimension, and add to it in generation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch

from gradroute.config.doors import TARGET
from gradroute.config.limits import WEIGHT, WIDTH, Between, Items, Text, one_of, require
from gradroute.config.schema import Config
from gradroute.config.targets import locate
from gradroute.data.text import toy_stories
from gradroute.data.text.datasets import ToyStories
from gradroute.data.text.rules import variants
from gradroute.errors import UserError
from gradroute.models.generation import complete, steered
from gradroute.routing.regions import matching
from gradroute.routing.sites import Site
from gradroute.steps.base import RunState, Step
from gradroute.steps.tuning import require_language
from gradroute.steps.word_directions import Words, cosines, frequency, nearest, orientation, related_share
from gradroute.tasks.base import Task
from gradroute.tasks.evaluation import Head
from gradroute.tasks.language import LanguageModelling
from gradroute.tasks.language_texts import as_json
from gradroute.training.fit import Training

SHOWN = 40  # tokens kept of those nearest to the dimension
KEPT = 2  # completions kept of each prompt at each strength
Many = Annotated[int, Between(1, 10_000)]


@dataclass(kw_only=True)
class Steer(Step):
    """Measure which words lie along a dimension of the residual stream, and add to it while generating text.

    Args:
        group: the group whose words were routed.
        site, unit: the dimension `unit` of the residual stream at the output of the layer `site`.
        strengths: amounts to add, in the direction of the routed words.
        related: held-out words that are related to the routed ones. If empty, in the toy stories, the other words of
            the same families, which occur in the same sentences.
        nearest: number of tokens nearest to the dimension in which to measure the share of related words.
        random: number of random dimensions in which to measure the same.
        prompts, tokens, samples, temperature: prompts to complete, tokens per completion, completions per prompt, and
            sampling temperature.
    """

    group: str
    site: Annotated[str, Text("a module's name, such as blocks.2")]
    prompts: Annotated[Sequence[str], Items(1, right="at least one prompt, and no empty one")]
    strengths: Annotated[
        Sequence[Annotated[float, Between(-WEIGHT, WEIGHT)]],
        Items(1, each_once=True, right="a list of numbers, such as [0,10]"),
    ]
    unit: Annotated[int, Between(0, WIDTH)] = 0
    related: Sequence[str] = ()
    nearest: Many = 20
    random: Many = 20
    tokens: Many = 30
    samples: Annotated[int, Between(1, 1000)] = 16
    temperature: Annotated[float, Between(0, 100)] = 1.0

    def check(self, config: Config) -> None:
        """Raise UserError for a group without words, or an empty prompt."""
        groups = config.routing.groups
        one_of("steering.group", self.group, tuple(groups))
        require(bool(groups[self.group].words), "steering.group", self.group, "a group whose rule is words")
        holds = all(prompt.strip() for prompt in self.prompts)
        require(holds, "steering.prompts", self.prompts, "at least one prompt, and no empty one")

    def prepare(self, task: Task) -> None:
        """Raise UserError for words, prompts, a site or a unit that do not fit the model."""
        language = require_language(task, "steer")
        self.words(language)
        self.encoded(language)
        names = [name for name, _ in language.model.named_modules() if name]
        if len(matching(self.site, names, "steering.site:")) > 1:
            raise UserError(f"steering.site={self.site}: matches several modules; name one")
        width = language.model.unembedding.shape[1]  # type: ignore[index]
        if self.unit >= width:
            raise UserError(f"steering.unit={self.unit}: is out of range; dimensions go from 0 to {width - 1}")
        with torch.no_grad(), steered(language.model, Site(self.site), self.unit, 0.0):
            language.model(language.example()[:1])

    def words(self, task: LanguageModelling) -> Words:
        """Return the words. Raises: UserError if one is not in the vocabulary, or a related word was routed."""
        tokenizer, routed = task.data.tokenizer, task.config.routing.groups[self.group].words
        related = list(self.related)
        if not related:
            if locate(task.config.dataset[TARGET], "dataset") is not ToyStories:
                raise UserError("steering.related=[]: must have words, except for dataset=toy_stories; give words")
            families = [other for word in routed for other in toy_stories.related(word)]
            spelt = {word.strip() for word in tokenizer.spellings}
            related = [word for word in dict.fromkeys(families) if word in spelt and word not in routed]
        if both := set(routed) & set(related):
            raise UserError(f"steering.related: '{min(both)}' is routed; give words that are held out")
        return Words(*([s for word in given for s in variants(tokenizer, word)] for given in (routed, related)))

    def encoded(self, task: LanguageModelling) -> list[list[int]]:
        """Return the prompts as tokens. Raises: UserError for a prompt with a word outside the vocabulary."""
        found = task.data.tokenizer.encode(list(self.prompts))
        for prompt, tokens in zip(self.prompts, found, strict=True):
            if not tokens or task.data.tokenizer.unknown in tokens:
                right = "use words of the documents"
                raise UserError(f"steering.prompts: '{prompt}' has a word outside the vocabulary; {right}")
        return found

    @torch.no_grad()
    def run(self, run: RunState) -> Iterable[Training]:
        """Measure and write `steering.json`; nothing is trained."""
        task = require_language(run.task, "steer")
        words = self.words(task)
        matrix: torch.Tensor = task.model.unembedding.detach().cpu()  # type: ignore[operator]
        self._measure_nearest(run, task, matrix, words.kinds())
        frequencies, completions = self._measure_texts(run, task, words, orientation(matrix, self.unit, words.kinds()))
        run.folder.write_metrics()
        rows = _table(matrix, self.unit, task, words.kinds())
        found = {"unit": self.unit, "nearest": rows, "frequencies": frequencies, "completions": completions}
        run.folder.keep({"steering.json": as_json(found)})
        return ()

    def _measure_nearest(
        self, run: RunState, task: LanguageModelling, matrix: torch.Tensor, kinds: dict[int, str]
    ) -> None:
        """Record the share of related words along the dimension, and along random others."""

        def share(unit: int) -> float:
            return related_share(matrix, unit, self.nearest, task.data.tokenizer, kinds)

        others = [unit for unit in range(matrix.shape[1]) if unit != self.unit]
        drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(run.config.seed))[: self.random]
        mean = sum(share(others[i]) for i in drawn.tolist()) / len(drawn)
        for region, value in ((f"dimension_{self.unit}", share(self.unit)), ("random_dimensions", mean)):
            run.record("test", (self.group, Head("nearest", region), "related_share", value))

    def _measure_texts(
        self, run: RunState, task: LanguageModelling, words: Words, sign: float
    ) -> tuple[list[list[float]], list[list[Any]]]:
        """Record how often words occur at each strength; return these frequencies and a few completions."""
        frequencies: list[list[float]] = []
        completions: list[list[Any]] = []
        for strength in self.strengths:
            texts: list[list[int]] = []
            for prompt, tokens in zip(self.prompts, self.encoded(task), strict=True):
                made = self._completed(task, tokens, sign * strength)
                texts += made
                completions += [[prompt, strength, task.data.tokenizer.decode(text)] for text in made[:KEPT]]
            found = {kind: frequency(texts, getattr(words, kind)) for kind in ("related", "routed")}
            frequencies.append([strength, found["related"], found["routed"]])
            for kind, value in found.items():
                head = Head("steered", f"{strength:+g}")
                run.record("test", (self.group, head, f"{kind}_frequency", value))
        return frequencies, completions

    def _completed(self, task: LanguageModelling, prompt: list[int], amount: float) -> list[list[int]]:
        """Return completions of a prompt with `amount` added; random numbers are the same for every amount."""
        generator = torch.Generator(task.device).manual_seed(task.config.seed)
        batch = torch.tensor([prompt] * self.samples, device=task.device)
        with steered(task.model, Site(self.site), self.unit, amount):
            made = complete(task.model, batch, self.tokens, generator, self.temperature, task.data.length)
        end = task.data.tokenizer.end
        return [text[: text.index(end)] if end in text else text for text in made[:, len(prompt) :].tolist()]


def _table(matrix: torch.Tensor, unit: int, task: LanguageModelling, kinds: dict[int, str]) -> list[list[Any]]:
    """Return the tokens nearest to a dimension, nearest first: spelling, cosine, and kind of word, if any."""
    own, tokenizer = cosines(matrix, unit), task.data.tokenizer
    tokens = nearest(matrix, unit, SHOWN, (tokenizer.end, tokenizer.unknown)).tolist()
    return [[tokenizer.spellings[token], round(float(own[token]), 4), kinds.get(token, "")] for token in tokens]
