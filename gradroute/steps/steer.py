"""Steering by one scalar (GR section 4.2.1): which words lie along a dimension, and what comes of adding to it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from gradroute.config.language_schema import SteeringConfig
from gradroute.data.text import toy_stories
from gradroute.data.text.packing import Corpus
from gradroute.data.text.rules import occurrences, variants
from gradroute.data.text.tokenizing import Tokenizer
from gradroute.errors import UserError
from gradroute.models.generation import complete, steered
from gradroute.routing.regions import matching
from gradroute.routing.sites import Site
from gradroute.tasks.evaluation import Head
from gradroute.tasks.language import LanguageModelling
from gradroute.tasks.language_texts import as_json

if TYPE_CHECKING:
    from gradroute.running.run import Run

Sequences = list[tuple[int, ...]]
SHOWN = 40  # words of each sign, and completions of each prompt, that are kept
KEPT = 2


@dataclass(frozen=True)
class Words:
    """Token sequences of the words that were routed, and of those that are related to them and were not."""

    routed: Sequences
    related: Sequences

    def kinds(self) -> dict[int, str]:
        """Which tokens are a word of either kind by themselves."""
        found = {s[0]: "related" for s in self.related if len(s) == 1}
        return found | {s[0]: "routed" for s in self.routed if len(s) == 1}


def words_of(problem: LanguageModelling, steer: SteeringConfig) -> Words:
    """The words that a configuration means. Raises: UserError if one is not in the vocabulary, or was routed, too."""
    tokenizer, routed = problem.data.tokenizer, problem.config.routing.groups[steer.group].words
    related = list(steer.related)
    if not related:
        if problem.config.dataset.name != "toy_stories":
            raise UserError("steering.related=[]: only the toy stories know what is related; give words")
        families = [other for word in routed for other in toy_stories.related(word)]
        spelt = {word.strip() for word in tokenizer.spellings}
        related = [word for word in dict.fromkeys(families) if word in spelt and word not in routed]
    if both := set(routed) & set(related):
        raise UserError(f"steering.related: '{min(both)}' is routed; give words that are held out")
    return Words(*([s for word in given for s in variants(tokenizer, word)] for given in (routed, related)))


def cosines(unembedding: torch.Tensor, unit: int) -> torch.Tensor:
    """Of each token's row, `(vocabulary,)`, from `(vocabulary, width)`, with one dimension of the residual stream."""
    return torch.nn.functional.normalize(unembedding, dim=1)[:, unit]


def nearest(unembedding: torch.Tensor, unit: int, count: int, leave_out: Iterable[int | None] = ()) -> torch.Tensor:
    """The tokens with the largest |cosine| with a dimension, `(count,)`, the largest first."""
    size = cosines(unembedding, unit).abs()
    size[[token for token in leave_out if token is not None]] = -1.0
    return torch.argsort(size, descending=True, stable=True)[:count]


def related_share(
    unembedding: torch.Tensor, unit: int, count: int, tokenizer: Tokenizer, kinds: dict[int, str]
) -> float:
    """The share of the `count` tokens nearest to a dimension that are related words which were not routed."""
    found = nearest(unembedding, unit, count, (tokenizer.end, tokenizer.unknown)).tolist()
    return sum(kinds.get(token) == "related" for token in found) / count


def orientation(unembedding: torch.Tensor, unit: int, kinds: dict[int, str]) -> float:
    """1 or -1: the direction along a dimension in which the routed words lie, by the mean of their cosines."""
    routed = [token for token, kind in kinds.items() if kind == "routed"]
    return 1.0 if not routed or float(cosines(unembedding, unit)[routed].mean()) >= 0 else -1.0


def frequency(texts: Sequence[Sequence[int]], sequences: Sequences) -> float:
    """The share of the tokens of texts that belong to one of the sequences."""
    corpus = Corpus.of([list(text) for text in texts if len(text)]) if any(len(text) for text in texts) else None
    return float(occurrences(corpus, sequences).double().mean()) if corpus else 0.0


def _completed(problem: LanguageModelling, steer: SteeringConfig, prompt: list[int], amount: float) -> list[list[int]]:
    """What follows a prompt with so much added; the same random numbers for every amount."""
    generator = torch.Generator(problem.device).manual_seed(problem.config.seed)
    batch = torch.tensor([prompt] * steer.samples, device=problem.device)
    with steered(problem.model, Site(steer.site), steer.unit, amount):
        made = complete(problem.model, batch, steer.tokens, generator, steer.temperature, problem.data.length)
    end = problem.data.tokenizer.end
    return [text[: text.index(end)] if end in text else text for text in made[:, len(prompt) :].tolist()]


def prompts_of(problem: LanguageModelling, steer: SteeringConfig) -> list[list[int]]:
    """The prompts as tokens. Raises: UserError for one with a word outside the vocabulary."""
    found = problem.data.tokenizer.encode(steer.prompts)
    for prompt, tokens in zip(steer.prompts, found, strict=True):
        if not tokens or problem.data.tokenizer.unknown in tokens:
            raise UserError(
                f"steering.prompts: '{prompt}' has a word outside the vocabulary; take words of the documents"
            )
    return found


def try_steering(problem: LanguageModelling, steer: SteeringConfig) -> None:
    """Raise UserError for what cannot be steered so: that must be said before hours of training."""
    words_of(problem, steer)
    prompts_of(problem, steer)
    names = [name for name, _ in problem.model.named_modules() if name]
    if len(matching(steer.site, names, "steering.site:")) > 1:
        raise UserError(f"steering.site={steer.site}: several modules are meant; name one")
    width = problem.model.unembedding.shape[1]  # type: ignore[index]
    if steer.unit >= width:
        raise UserError(f"steering.unit={steer.unit}: is outside; dimensions go from 0 to {width - 1}")
    with torch.no_grad(), steered(problem.model, Site(steer.site), steer.unit, 0.0):
        problem.model(problem.example()[:1])


@torch.no_grad()
def steering(run: "Run") -> None:
    """Measure a trained model: what lies along the dimension, beside others, and what adding to it does to texts."""
    problem, steer = run.problem, run.config.steering
    assert isinstance(problem, LanguageModelling) and steer is not None  # by the configuration's checks
    tokenizer, words = problem.data.tokenizer, words_of(problem, steer)
    matrix: torch.Tensor = problem.model.unembedding.detach().cpu()  # type: ignore[operator]
    kinds = words.kinds()

    def record(head: Head, metric: str, value: float) -> None:
        run.record("test", (steer.group, head, metric, value))

    def share(unit: int) -> float:
        return related_share(matrix, unit, steer.nearest, tokenizer, kinds)

    others = [unit for unit in range(matrix.shape[1]) if unit != steer.unit]
    drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(run.config.seed))[: steer.random]
    record(Head("nearest", f"dimension_{steer.unit}"), "related_share", share(steer.unit))
    record(Head("nearest", "random_dimensions"), "related_share",
           sum(share(others[i]) for i in drawn.tolist()) / len(drawn))  # fmt: skip
    sign, frequencies, completions = orientation(matrix, steer.unit, kinds), [], []
    for strength in steer.strengths:
        texts: list[list[int]] = []
        for prompt, tokens in zip(steer.prompts, prompts_of(problem, steer), strict=True):
            made = _completed(problem, steer, tokens, sign * strength)
            texts += made
            completions += [[prompt, strength, tokenizer.decode(text)] for text in made[:KEPT]]
        found = {kind: frequency(texts, getattr(words, kind)) for kind in ("related", "routed")}
        frequencies.append([strength, found["related"], found["routed"]])
        for kind, value in found.items():
            record(Head("steered", f"{strength:+g}"), f"{kind}_frequency", value)
    run.folder.write_metrics()
    run.folder.keep({"steering.json": as_json({
        "unit": steer.unit, "nearest": _table(matrix, steer.unit, tokenizer, kinds), "frequencies": frequencies,
        "completions": completions,
    })})  # fmt: skip


def _table(matrix: torch.Tensor, unit: int, tokenizer: Tokenizer, kinds: dict[int, str]) -> list[list[Any]]:
    """The tokens nearest to a dimension, the nearest first: spelling, cosine, and routed, related or nothing."""
    own = cosines(matrix, unit)
    tokens = nearest(matrix, unit, SHOWN, (tokenizer.end, tokenizer.unknown)).tolist()
    return [[tokenizer.spellings[token], round(float(own[token]), 4), kinds.get(token, "")] for token in tokens]
