"""What a language model leaves for people to read: the tokens that are routed most, coloured documents, completions."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import nn

from gradroute.config.components import step_names
from gradroute.config.limits import Between
from gradroute.config.schema import Config
from gradroute.data.text.corpora import Texts
from gradroute.data.text.display import coloured, ranked
from gradroute.data.text.packing import Corpus
from gradroute.data.text.tokenizing import Tokenizer
from gradroute.errors import UserError
from gradroute.models.generation import complete
from gradroute.tasks.evaluation import Head

OFTEN = 10  # a token that occurs less often says little of its weight
DOCUMENTS = 2  # of each group
GROUPS = 4  # whose documents are shown
Prompts = list[tuple[str, str, list[int]]]  # group, prompt, its tokens


@dataclass(frozen=True)
class Completions:
    """Texts that a language model goes on with at the end, at every stage.

    prompts: by group. tokens: of each completion, which ends before them where its document does. samples: completions
    of a prompt. temperature: 0 takes the most likely token; above, tokens are drawn by the run's seed.
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
    """The content of a JSON file."""
    return json.dumps(content, indent=1) + "\n"


def token_weights(
    corpus: Corpus, tokenizer: Tokenizer, shares: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """The most and the least routed tokens of groups as in GR table 3, and a few documents of each group.

    Args:
        shares: `(total,)` of the corpus's tokens, by the groups that weigh them.
        own: `(documents,)` bool, the labelled documents of every group.

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
    """The prompts as tokens. Raises: UserError for one with a word outside the vocabulary."""
    found: Prompts = []
    for group, prompts in asked.prompts.items() if asked else ():
        for prompt, tokens in zip(prompts, tokenizer.encode(prompts), strict=True):
            if tokenizer.unknown in tokens:
                raise UserError(f"completions.prompts.{group}: '{prompt}' has a word outside the vocabulary; take "
                                "words of the documents, or completions=null")  # fmt: skip
            found.append((group, prompt, tokens))
    return found


def completions(
    stages: Iterable[tuple[Head, nn.Module]], prompts: Prompts, asked: Completions, config: Config, data: Texts
) -> list[dict[str, str]]:
    """How each stage of the model goes on with each prompt: rows of prompt, group, head, and the text after the prompt.

    Every stage and every prompt has the same random numbers, so that only the models differ. An ablation's head names
    its region where there are several.
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
