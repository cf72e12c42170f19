"""Tokenizers of Hugging Face `tokenizers`, trained locally and stored in one JSON file."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from gradroute.errors import UserError

END, UNKNOWN = "<|endoftext|>", "<unk>"
WORDS = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s"  # as in GPT-2: a space belongs to the word after it


class Tokenizer:
    """A tokenizer: texts to token numbers and back.

    Attributes: `size`, one more than the largest token number; `end`, the token that ends a document, and `end_name`;
    `unknown`, the token for text outside the vocabulary, or None.
    """

    def __init__(self, backend: Backend, end: str | int = END) -> None:
        """`end`: the name or number of the token that ends a document. Raises: UserError if there is none."""
        name = backend.id_to_token(end) if isinstance(end, int) else end
        number = None if name is None else backend.token_to_id(name)
        if number is None:
            raise UserError(f"the tokenizer has no token {end} to end a document; train one with it")
        backend.encode_special_tokens = True  # `<|endoftext|>` inside a document is ordinary text
        backend.no_truncation()  # a file may enable either
        backend.no_padding()
        self.size: int = max(backend.get_vocab().values()) + 1
        self._backend, self.end_name = backend, str(name)
        self.end: int = number
        self.unknown: int | None = backend.token_to_id(UNKNOWN)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token numbers of each text, without `end`."""
        return [encoding.ids for encoding in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of token numbers; `end` is written out."""
        return self._backend.decode(list(tokens), skip_special_tokens=False)

    @cached_property
    def spellings(self) -> list[str]:
        """The text of each token by itself; `�` for a part of a character."""
        return [self.decode([token]) for token in range(self.size)]

    @cached_property
    def sha256(self) -> str:
        """The hash of the vocabulary and of all rules: tokenizers with equal hashes do the same."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def check(self, sha256: str, where: str) -> None:
        """Raise UserError unless the hash is this tokenizer's; `where` names what was made with the hashed one."""
        if sha256 != self.sha256:
            raise UserError(f"{where} was made with another tokenizer (SHA-256 {sha256[:12]}…, this one's is "
                            f"{self.sha256[:12]}…); use the tokenizer.json that belongs to it")  # fmt: skip

    def to_json(self) -> str:
        """Return the content of the tokenizer's file."""
        return self._backend.to_str(pretty=True)


def load(path: Path | str, end: str | int = END) -> Tokenizer:
    """Load a tokenizer from a JSON file of Hugging Face `tokenizers` that has the end token. Raises: UserError."""
    path = Path(path).expanduser()
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a tokenizer file (it is not UTF-8)") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return parse(text, path, end)


def parse(text: str, where: object, end: str | int = END) -> Tokenizer:
    """Build a tokenizer from a file's content. Raises: UserError, which names `where`."""
    try:
        return Tokenizer(Backend.from_str(text), end)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # the package raises plain `Exception`
        raise UserError(f"{where}: is not a tokenizer file ({str(error).splitlines()[0]})") from None


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """Train a byte-level BPE of at most `size` tokens. It knows all text, and a space belongs to the word after it.

    Raises: UserError for a size that is too small for all bytes and the end token.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if size <= len(alphabet):
        raise UserError(f"tokenizer: size={size}: a byte-level BPE needs {len(alphabet) + 1} or more")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)


def train_words(texts: Iterable[str], size: int | None = None) -> Tokenizer:
    """Train a tokenizer of words and punctuation, each with the space before it; at most `size` tokens, or no limit.

    Raises: UserError for a size below 3.
    """
    if size is not None and size < 3:
        raise UserError(f"tokenizer: size={size}: words need 3 or more, two of them for {END} and {UNKNOWN}")
    backend = Backend(models.WordLevel(unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "isolated")
    backend.decoder = decoders.Fuse()
    special = [AddedToken(token, special=True, normalized=False) for token in (END, UNKNOWN)]
    trainer = trainers.WordLevelTrainer(vocab_size=size or 2**31 - 1, special_tokens=special, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)
