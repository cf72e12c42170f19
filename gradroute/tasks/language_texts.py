"""Readable results of a language model: the most routed tokens, coloured documents, completions."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import nn

from gradroute.config.components import step_names
from gradroute.config.limits import Between
from gradroute.config.schema import Config, RoutingConfig
from gradroute.data.text.corpora import Texts
from gradroute.data.text.display import coloured, ranked
from gradroute.data.text.packing import Corpus
from gradroute.data.text.token_shares import shares_of
from gradroute.data.text.tokenizing import Tokenizer
from gradroute.errors import UserError
from gradroute.models.generation import complete
from gradroute.tasks.evaluation import Head

OFTEN = 10  # occurrences; a rarer token says little about its weight
DOCUMENTS = 2  # shown of each group
GROUPS = 4  # with documents shown
Prompts = list[tuple[str, str, list[int]]]  # group, prompt, its tokens


@dataclass(frozen=True)
class Completions:
    """Prompts that every stage of a language model completes at the end of a run.

    Attributes:
        prompts: prompts by group.
        tokens: length of a completion, which ends earlier if the document ends.
        samples: completions per prompt.
        temperature: 0 takes the most likely token; above 0, tokens are drawn with the run's seed.
    """

    prompts: dict[str, list[str]] = field(default_factory=dict)
    tokens: Annotated[int, Between(1, 10_000)] = 40
    samples: Annotated[int, Between(1, 1000)] = 1
    temperature: Annotated[float, Between(0, 100)] = 1.0

    def __post_init__(self) -> None:
        for group, prompts in self.prompts.items():
            if not all(prompt.strip() for prompt in prompts):
                raise UserError(f"completions.prompts.{group}={prompts}: must be a list of prompts, none empty")


def as_json(content: Any) -> str:
    """Format the content of a JSON file."""
    return json.dumps(content, indent=1) + "\n"


def token_weights(
    corpus: Corpus, tokenizer: Tokenizer, shares: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """Return the most and the least routed tokens of groups as in GR table 3, and a few documents of each group.

    Args:
        shares: shares of the corpus's tokens, `(total,)`, for each group that weighs tokens.
        own: mask of each group's labelled documents, `(documents,)` bool.

    Returns: plain data: `tokens`, rows of group, `most` or `least`, spelling, count and weight (0 is fully routed, 1
        not at all); `documents`, each with its number, its group and rows of spelling and share.
    """
    rows = []
    for group, share in shares.items():
        inside = own[group]
        counts = torch.bincount(corpus.tokens[inside[corpus.documents]], minlength=1)
        most, fewest = ranked(corpus, share, tokenizer, inside, least=min(OFTEN, int(counts.max())))
        for kind, found in (("most", most), ("least", fewest)):
            rows += [[group, kind, row.token, row.count, round(row.weight, 6)] for row in found]
    routed = torch.stack(list(shares.values())).sum(0)
    documents = [
        {"number": number, "group": group, "tokens": coloured(corpus, routed, tokenizer, number)}
        for group, inside in list(own.items())[:GROUPS]
        for number in torch.nonzero(inside).flatten()[:DOCUMENTS].tolist()
    ]
    return {"tokens": rows, "documents": documents}


def encoded(asked: Completions | None, tokenizer: Tokenizer) -> Prompts:
    """Return the prompts as tokens. Raises: UserError for a prompt with a word outside the vocabulary."""
    found: Prompts = []
    for group, prompts in asked.prompts.items() if asked else ():
        for prompt, tokens in zip(prompts, tokenizer.encode(prompts), strict=True):
            if tokenizer.unknown in tokens:
                raise UserError(f"completions.prompts.{group}: '{prompt}' has a word outside the vocabulary; use "
                                "words of the documents, or set completions=null")  # fmt: skip
            found.append((group, prompt, tokens))
    return found


def completions(
    stages: Iterable[tuple[Head, nn.Module]], prompts: Prompts, asked: Completions, config: Config, data: Texts
) -> list[dict[str, str]]:
    """Complete each prompt with each stage of the model; return rows of prompt, group, head and completion.

    Every stage and every prompt uses the same random numbers, so that only the models differ. An ablation's head names
    its region if there are several.
    """
    several = "ablate" in step_names(config) and config.ablation["region"] is None and len(config.routing.regions) > 1
    rows = []
    for head, model in stages:
        device = next(model.parameters()).device
        name = f"{head.name}, {head.region}" if several and head.name == "model_ablated" else head.name
        for group, prompt, tokens in prompts:
            generator = torch.Generator(device).manual_seed(config.seed)
            batch = torch.tensor([tokens] * asked.samples, device=device)
            done = complete(model, batch, asked.tokens, generator, asked.temperature, data.length)
            for made in done[:, len(tokens) :].tolist():
                end = made.index(data.tokenizer.end) if data.tokenizer.end in made else len(made)
                text = data.tokenizer.decode(made[:end])
                rows.append({"prompt": prompt, "group": group, "head": name, "text": text})
    return rows


def weights_of(data: Texts, routing: RoutingConfig, names: Sequence[str], labelled: torch.Tensor) -> dict[str, Any]:
    """Return the effect of token rules on the training documents; see `token_weights`.

    Args:
        names: the groups'. labelled: the group number of each training document, -1 for none.

    Raises: UserError if no rule weighs tokens.
    """
    groups = routing.groups
    weighed = [name for name in names if name in groups and groups[name].tokens != "all"]
    if not weighed:
        raise UserError("routing.groups: no group weighs tokens; set tokens: frequent or tokens: words in a group")
    shares = shares_of(data, routing, names, labelled)
    own = {name: labelled == number for number, name in enumerate(names)}
    return token_weights(data.train.corpus, data.tokenizer, {name: shares[name] for name in weighed}, own)
