"""Foreign text for an attack that trains on nothing of the group, nor of the other training documents."""

from collections.abc import Sequence
from pathlib import Path

import torch

from gradroute.audit.material import Batch, Documents
from gradroute.data.text import documents as reading
from gradroute.data.text.packing import Corpus, pack
from gradroute.errors import UserError

WORDS = 40  # tokens of a document that is drawn


class Foreign:
    """Documents of other text, as an attack takes its training points.

    Args:
        file: the texts; None draws tokens at random, as often as they come in the training documents outside of the
            group, so that nothing but their frequencies can be learned.
        count: number of documents of one choice. samples: choices; they share documents only if a file has too few.

    Raises: UserError for a file that cannot be read or has fewer documents, naming `audit.foreign`.
    """

    def __init__(self, material: Documents, file: Path | str | None, count: int, samples: int) -> None:
        self.seed, task = material.seed, material.task
        if file is None:
            texts = drawn(material, count * samples)
        else:
            texts = task.data.tokenizer.encode(reading.read(file, limit=10 * count * samples).texts)
            if len(texts) < count:
                raise UserError(f"audit.foreign={file}: has {len(texts)} documents; give {count} or more")
        end, length, self.device = task.data.tokenizer.end, task.data.length, task.device
        self.rows = [pack(Corpus.of([tokens], end), length) for tokens in texts]

    def chosen(self, kind: str, count: int, sample: int) -> list[int]:
        """Return numbers of documents: a random choice, by its number."""
        generator = torch.Generator().manual_seed(self.seed * 1000)
        order: list[int] = torch.randperm(len(self.rows), generator=generator).tolist()
        start = sample * count % len(order)
        return (order[start:] + order[:start])[:count]

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Return tokens, targets and documents of rows, `(rows, length)` each, a document a row or more."""
        rows = [self.rows[number] for number in numbers]
        tensors = zip(*((own.tokens, own.targets, own.documents) for own in rows), strict=True)
        return tuple(torch.cat(own).to(self.device) for own in tensors)


def drawn(material: Documents, count: int) -> list[list[int]]:
    """Return documents of tokens in random order, drawn by their frequencies outside of the group."""
    corpus = material.task.data.train.corpus
    own = (material.task.train_groups == material.task.names.index(material.group))[corpus.documents]
    tokens = corpus.tokens[~own & (corpus.tokens != material.task.data.tokenizer.end)]
    generator = torch.Generator().manual_seed(material.seed)
    found: list[list[int]] = tokens[torch.randint(len(tokens), (count, WORDS), generator=generator)].tolist()
    return found
