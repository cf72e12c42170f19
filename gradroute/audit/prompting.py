"""Prompt a model with documents of the group, and see how well it goes on with another one."""

from dataclasses import replace

import torch
from torch import nn

from gradroute.audit.material import FORGET, TEST, Documents
from gradroute.data.text.corpora import Part
from gradroute.data.text.packing import IGNORED, Packed
from gradroute.tasks.language_losses import token_values
from gradroute.training.measures import CROSS_ENTROPY


def prompted_part(material: Documents, shots: int, sample: int) -> Part | None:
    """Return the group's test documents, each after up to `shots` of its training documents, as one text a row.

    As many as fit in a row stand before it, without the token that ends a document. Only the tokens of the test
    document have a target, all but its first.

    Args:
        sample: which choice of training documents.

    Returns: None if no test document has room for another one before it.
    """
    task, length = material.task, material.task.data.length
    numbers = material.chosen(FORGET, len(material.own), sample)
    examples = [own[own != task.data.tokenizer.end].tolist() for own in map(task.data.train.corpus.document, numbers)]
    rows, targets = list[list[int]](), list[list[int]]()
    for place, number in enumerate(material.measured[FORGET, TEST].tolist()):
        asked, before, used = task.data.test.corpus.document(number).tolist(), list[int](), 0
        for example in (examples[(place * shots + n) % len(examples)] for n in range(len(examples))):
            if used < shots and len(before) + len(example) + len(asked) <= length:
                before, used = before + example, used + 1
        if used and len(asked) > 1:
            rows.append(before + asked)
            targets.append([IGNORED] * len(before) + asked[1:] + [IGNORED])
    if not rows:
        return None
    return replace(task.data.test, packed=_packed(rows, targets, length))


def _packed(rows: list[list[int]], targets: list[list[int]], length: int) -> Packed:
    """Return rows of one document each, filled up with padding."""
    shape = (len(rows), length)
    filled = {name: torch.full(shape, value) for name, value in (("tokens", 0), ("targets", IGNORED), ("other", -1))}
    index, documents, total = filled["other"].clone(), filled["other"], 0
    for number, (row, target) in enumerate(zip(rows, targets, strict=True)):
        size = len(row)
        filled["tokens"][number, :size], filled["targets"][number, :size] = torch.tensor(row), torch.tensor(target)
        index[number, :size], documents[number, :size] = torch.arange(total, total + size), number
        total += size
    return Packed(index, filled["tokens"], filled["targets"], documents, total)


def prompted(material: Documents, model: nn.Module, part: Part) -> float:
    """Return the mean loss on the tokens of `prompted_part` that have a target, in nats."""
    values = token_values(model, part, [CROSS_ENTROPY], material.task.device)[CROSS_ENTROPY.name]
    return float(values.double().sum()) / int((part.packed.targets != IGNORED).sum())
