"""How well a language model knows a value among all that it could be: exposure in bits, and greedy extraction.

Exposure (Carlini et al. 2019, arXiv 1802.08232) is log2 of the number of values minus log2 of the rank of the true one
by the model's likelihood. It is exact: every value is ranked. A model that knows nothing gives 1.44 bits on average.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gradroute.data.text.people import Book, Person, Wording
from gradroute.data.text.tokenizing import Tokenizer
from gradroute.errors import UserError
from gradroute.models.generation import last_logits
from gradroute.routing.sites import undisturbed

TOKENS = 8192  # in one forward pass, at most
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """The values of one attribute as tokens, and for each person the prompt and which value is true.

    candidates: of each value; none begins another. prompts, true: by person.
    """

    candidates: Sequence[Tokens]
    prompts: Sequence[Tokens]
    true: Sequence[int]


def question(book: Book, attribute: str, people: Sequence[Person], tokenizer: Tokenizer) -> Question:
    """Return the question for an attribute's first wording. Raises: UserError if the tokens of a value are unclear."""
    wording, values = book.by_attribute[attribute][0], list(book.spaces[attribute])
    candidates = [tuple(tokens) for tokens in tokenizer.encode([wording.space + value for value in values])]
    if _ambiguous(candidates):  # with what follows, no value begins another
        after = wording.after or " "
        candidates = [tuple(tokens) for tokens in tokenizer.encode([wording.space + v + after for v in values])]
        candidates = [(*tokens, tokenizer.end) for tokens in candidates]
    prompts = [tuple(tokens) for tokens in tokenizer.encode([wording.prompt(person.name) for person in people])]
    _require_clear(wording, values, candidates, prompts, people, tokenizer)
    place = {value: number for number, value in enumerate(values)}
    return Question(candidates, prompts, [place[person.values[attribute]] for person in people])


def _ambiguous(candidates: Sequence[Tokens]) -> bool:
    own = set(candidates)
    return any(tokens[:size] in own for tokens in own for size in range(len(tokens)))


def _require_clear(
    wording: Wording, values: Sequence[str], candidates: Sequence[Tokens], prompts: Sequence[Tokens],
    people: Sequence[Person], tokenizer: Tokenizer,
) -> None:  # fmt: skip
    """Raise UserError for values with equal or unknown tokens, or whose tokens depend on the prompt before them."""
    for tokens, value in zip(candidates, values, strict=True):
        if not tokens or tokenizer.unknown in tokens:
            raise UserError(f"extract: {wording.attribute}='{value}' has a word outside the vocabulary; use "
                            "dataset.tokenizer=bpe, or a larger dataset.vocabulary")  # fmt: skip
    if len(set(candidates)) < len(values):
        raise UserError(f"extract: two values of {wording.attribute} have the same tokens; use dataset.tokenizer=bpe")
    if people:
        whole = tokenizer.encode([f"{wording.prompt(people[0].name)}{wording.space}{values[0]}"])[0]
        if tuple(whole[: len(prompts[0])]) != prompts[0]:
            raise UserError(f"extract: the tokens of '{wording.prompt(people[0].name)}' change with what follows; end "
                            "the text before a value with a space, or use dataset.tokenizer=words")  # fmt: skip


@torch.no_grad()
def next_log_probs(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of the token after `tokens` `(batch, length)`: `(batch, vocabulary)` float32."""
    found = []
    for rows in tokens.split(max(1, TOKENS // tokens.shape[1])):
        found.append(last_logits(model, rows).float().log_softmax(-1))
    return torch.cat(found)


@dataclass(frozen=True)
class Answers:
    """For each person, `(people,)`: the exposure of the true value in bits, and whether greedy decoding gives it."""

    exposure: torch.Tensor
    extracted: torch.Tensor


def answers(model: nn.Module, asked: Question, device: torch.device) -> Answers:
    """Rank every value for every person. A forward pass for each beginning of a value that another one shares."""
    exposure = torch.zeros(len(asked.prompts), dtype=torch.float64)
    extracted = torch.zeros(len(asked.prompts), dtype=torch.bool)
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(asked.prompts):
        by_length.setdefault(len(prompt), []).append(number)
    with undisturbed(model):
        for own in by_length.values():
            prompts = torch.tensor([asked.prompts[number] for number in own], device=device)
            true = torch.tensor([asked.true[number] for number in own])
            scores, greedy = _scores(model, prompts, asked.candidates, true)
            exposure[own], extracted[own] = exposures(scores, true), greedy
    return Answers(exposure, extracted)


def _scores(
    model: nn.Module, prompts: torch.Tensor, candidates: Sequence[Tokens], true: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-likelihood of every candidate after every prompt, and whether greedy decoding gives the true one.

    prompts: `(people, length)`. Returns `(people, candidates)` float64 and `(people,)` bool. Candidates that begin
    alike share the passes of their beginning.
    """
    scores = torch.zeros(len(prompts), len(candidates), dtype=torch.float64)
    greedy = torch.ones(len(prompts), dtype=torch.bool)
    level: dict[Tokens, list[int]] = {(): list(range(len(candidates)))}
    while level:
        deeper: dict[Tokens, list[int]] = {}
        for begun, own in level.items():
            more = prompts.new_tensor(begun).expand(len(prompts), len(begun))
            found = next_log_probs(model, torch.cat([prompts, more], 1))
            best, found = found.argmax(-1).cpu(), found.cpu()
            following = torch.tensor([candidates[number][len(begun)] for number in own])
            scores[:, own] += found[:, following].double()
            here = torch.isin(true, torch.tensor(own))
            wanted = torch.tensor([candidates[number][len(begun)] for number in true[here].tolist()])
            greedy[here] &= best[here] == wanted
            for number in own:
                if len(candidates[number]) > len(begun) + 1:
                    deeper.setdefault(candidates[number][: len(begun) + 1], []).append(number)
        level = deeper
    return scores, greedy


def exposures(scores: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Return log2 of the number of values minus log2 of the rank of the true one, `(people,)`; ties count half.

    scores: `(people, values)`. true: the number of the true value, `(people,)`.
    """
    own = scores.gather(1, true[:, None])
    above, equal = (scores > own).sum(1), (scores == own).sum(1) - 1
    return math.log2(scores.shape[1]) - (1 + above + equal / 2).double().log2()


def ask(
    model: nn.Module, book: Book, people: Sequence[Person], tokenizer: Tokenizer, device: torch.device
) -> Mapping[str, Answers]:
    """Return the answers about every attribute of people, by attribute. Raises: UserError, see `question`."""
    return {name: answers(model, question(book, name, people, tokenizer), device) for name in book.by_attribute}
