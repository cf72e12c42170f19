"""Steer by one scalar (GR section 4.2.1): find the words along a dimension, and add to it."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch

from gradroute.config.doors import TARGET
from gradroute.config.limits import MANY, WEIGHT, WIDTH, Between, Items, Text, one_of, require
from gradroute.config.schema import Config
from gradroute.config.targets import locate
from gradroute.data.text import toy_stories
from gradroute.data.text.datasets import ToyStories
from gradroute.data.text.rules import variants
from gradroute.errors import UserError
from gradroute.models.generation import complete, steered
from gradroute.models.layer_parts import region_of
from gradroute.routing.regions import matching
from gradroute.routing.sites import Site
from gradroute.steps.base import RunState, Step
from gradroute.steps.steering_likelihood import KL_POSITIONS, Likelihoods, Sample, sample
from gradroute.steps.steering_records import UNITS, Dimension, nearest_rows, record_dimensions
from gradroute.steps.tuning import require_language
from gradroute.steps.word_directions import KINDS, Words, frequency, frequency_matched, related_share
from gradroute.tasks.base import Task
from gradroute.tasks.evaluation import Head
from gradroute.tasks.language import LanguageModelling
from gradroute.tasks.language_texts import as_json
from gradroute.training.training import Training

KEPT = 2  # completions kept of each prompt at each strength
Many = Annotated[int, Between(1, 10_000)]
Nats = Annotated[float, Between(1e-6, 1000)]


@dataclass(kw_only=True)
class Steer(Step):
    """Measure which words lie along a dimension of the residual stream, and add to it.

    An amount is added in the direction that makes the routed words of the training documents likelier.

    Args:
        group: the group whose words were routed.
        part, layers: the layers after which the residual stream is steered.
        site: in place of both, a module whose output is the residual stream.
        unit: the dimension.
        strengths: amounts to add.
        kl: mean KL of the next token, unsteered from steered, in nats; for each dimension, the amount that has it.
        related: held-out words that are related to the routed ones. If empty, in the toy stories, the other words of
            the same families, which occur in the same sentences.
        positions: number of test tokens in which words are measured, in the first documents that have a related word.
        placebos: number of random other dimensions in which to measure the same likelihoods.
        nearest: number of tokens nearest to the dimension in which to measure the share of related words.
        random: number of random dimensions in which to measure the same share.
        prompts, tokens, samples, temperature: prompts to complete, tokens per completion, completions per prompt, and
            sampling temperature.
    """

    group: str
    prompts: Annotated[Sequence[str], Items(1, right="at least one prompt, and no empty one")]
    strengths: Annotated[
        Sequence[Annotated[float, Between(-WEIGHT, WEIGHT)]],
        Items(0, each_once=True, right="a list of numbers, such as [0,10]"),
    ] = ()
    kl: Annotated[Sequence[Nats], Items(0, each_once=True, right="a list of numbers, such as [0.03,0.1]")] = ()
    site: Annotated[str | None, Text("a module's name, such as blocks.2")] = None
    part: Literal["residual"] = "residual"
    layers: Annotated[Sequence[Annotated[int, Between(0, WIDTH)]] | None, Items(1, each_once=True)] = None
    unit: Annotated[int, Between(0, WIDTH)] = 0
    related: Sequence[str] = ()
    positions: Annotated[int, Between(1, MANY)] = 16_384
    placebos: Many = 4
    nearest: Many = 20
    random: Many = 20
    tokens: Many = 30
    samples: Annotated[int, Between(1, 1000)] = 16
    temperature: Annotated[float, Between(0, 100)] = 1.0
    units = UNITS

    def check(self, config: Config) -> None:
        """Raise UserError for a group without words, an empty prompt, no place or no strength."""
        groups = config.routing.groups
        one_of("steering.group", self.group, tuple(groups))
        require(bool(groups[self.group].words), "steering.group", self.group, "a group whose rule is words")
        holds = all(prompt.strip() for prompt in self.prompts)
        require(holds, "steering.prompts", self.prompts, "at least one prompt, and no empty one")
        right = "a list of layers, such as [2], unless steering.site names a module"
        require((self.layers is None) != (self.site is None), "steering.layers", self.layers, right)
        right = "a list of numbers, such as [0,10], unless steering.kl has some"
        require(bool(self.strengths) or bool(self.kl), "steering.strengths", list(self.strengths), right)

    def prepare(self, task: Task) -> None:
        """Raise UserError for words, prompts, a place or a unit that do not fit the data or the model."""
        language = require_language(task, "steer")
        words = self.words(language)
        self.encoded(language)
        width = language.model.unembedding.shape[1]  # type: ignore[index]
        if self.unit >= width:
            raise UserError(f"steering.unit={self.unit}: is out of range; dimensions go from 0 to {width - 1}")
        with torch.no_grad(), steered(language.model, self.sites(language), self.unit, 0.0):
            language.model(language.example()[:1])
        if not len(self._test(language, words).places["related"]):
            right = "give other words, or raise dataset.test_stories"
            raise UserError(f"steering.related: none of the words is in the test documents; {right}")

    def sites(self, task: LanguageModelling) -> tuple[Site, ...]:
        """Return the sites that are steered. Raises: UserError if the model does not have them."""
        if self.site is None:
            return region_of(task.model, "steering", self.part, self.layers, None).sites
        names = [name for name, _ in task.model.named_modules() if name]
        if len(matching(self.site, names, "steering.site:")) > 1:
            raise UserError(f"steering.site={self.site}: matches several modules; name one")
        return (Site(self.site),)

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
        matched = frequency_matched(task.data.train.documents.texts, related, routed, tokenizer)
        lists = {"routed": list(routed), "related": related, "matched": matched}
        return Words(**{kind: {word: variants(tokenizer, word) for word in own} for kind, own in lists.items()})

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
        others = [unit for unit in range(matrix.shape[1]) if unit != self.unit]
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(run.config.seed)).tolist()
        others = [others[place] for place in order]
        self._measure_nearest(run, task, matrix, words, others[: self.random])
        own, *placebos = self._measure_likelihoods(run, task, words, [self.unit, *others[: self.placebos]])
        frequencies, completions = self._measure_texts(run, task, words, own)
        run.folder.write_metrics()
        found = {
            "unit": self.unit,
            "nearest": nearest_rows(matrix, self.unit, task.data.tokenizer, words.kinds()),
            "frequencies": frequencies,
            "completions": completions,
            "words": {"routed": list(words.routed), "related": list(words.related), "matched": list(words.matched)},
            "dimensions": [each.as_rows() for each in (own, *placebos)],
        }
        run.folder.keep({"steering.json": as_json(found)})
        return ()

    def _measure_nearest(
        self, run: RunState, task: LanguageModelling, matrix: torch.Tensor, words: Words, others: Sequence[int]
    ) -> None:
        """Record the share of related words along the dimension, and along random others."""
        own, *rest = (
            related_share(matrix, unit, self.nearest, task.data.tokenizer, words.kinds())
            for unit in (self.unit, *others)
        )
        for region, value in ((f"dimension_{self.unit}", own), ("random_dimensions", sum(rest) / len(rest))):
            run.record("test", (self.group, Head("nearest", region), "related_share", value))

    def _test(self, task: LanguageModelling, words: Words) -> Sample:
        return sample(task.data.test, words, task.data.tokenizer, task.data.length, self.positions, "related")

    def _measure_likelihoods(
        self, run: RunState, task: LanguageModelling, words: Words, units: Sequence[int]
    ) -> list[Dimension]:
        """Measure and record the likelihoods of words, along the dimension and then along the placebos."""

        def steer(unit: int, amount: float) -> AbstractContextManager[None]:
            return steered(task.model, self.sites(task), unit, amount)

        train = sample(task.data.train, words, task.data.tokenizer, task.data.length, KL_POSITIONS, "routed")
        tokens = {kind: words.tokens(kind) for kind in KINDS}
        test = self._test(task, words)
        measure = Likelihoods(task.model, steer, task.data.test, test, train, tokens, task.device)
        found = [Dimension.measured(measure, unit, self.strengths, self.kl) for unit in units]
        for dimension in found:
            for level in dimension.unreached:
                run.folder.log(f"steer: no amount along dimension {dimension.unit} has a KL of {level:g}")
        record_dimensions(run, self.group, found)
        return found

    def _measure_texts(
        self, run: RunState, task: LanguageModelling, words: Words, own: Dimension
    ) -> tuple[list[list[float]], list[list[Any]]]:
        """Record how often words occur at each strength; return these frequencies and a few completions."""
        frequencies: list[list[float]] = []
        completions: list[list[Any]] = []
        plain = {} if 0 in own.strengths.values() else {"+0": 0.0}
        for label, strength in {**plain, **own.strengths}.items():
            texts: list[list[int]] = []
            for prompt, tokens in zip(self.prompts, self.encoded(task), strict=True):
                made = self._completed(task, tokens, own.sign * strength)
                texts += made
                completions += [[prompt, round(strength, 4), task.data.tokenizer.decode(text)] for text in made[:KEPT]]
            found = {kind: frequency(texts, words.sequences(kind)) for kind in ("related", "routed")}
            frequencies.append([round(strength, 4), found["related"], found["routed"]])
            for kind, value in found.items():
                run.record("test", (self.group, Head("steered", label), f"{kind}_frequency", value))
        return frequencies, completions

    def _completed(self, task: LanguageModelling, prompt: list[int], amount: float) -> list[list[int]]:
        """Return completions of a prompt with `amount` added; random numbers are the same for every amount."""
        generator = torch.Generator(task.device).manual_seed(task.config.seed)
        batch = torch.tensor([prompt] * self.samples, device=task.device)
        with steered(task.model, self.sites(task), self.unit, amount):
            made = complete(task.model, batch, self.tokens, generator, self.temperature, task.data.length)
        end = task.data.tokenizer.end
        return [text[: text.index(end)] if end in text else text for text in made[:, len(prompt) :].tolist()]
