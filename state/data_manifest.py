"""The manifest of a data folder: token shards per language, and a digest of everything that determines the tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from state.document import Document, digest_of
from state.layout import DATA_MANIFEST_NAME, FileName, InnerPath

TOKENIZER_NAME = "tokenizer.model"
REPORT_NAME = "report.json"
LARGEST_16_BIT_VOCABULARY = 65_536
BLOCK_TOKENS = 2**20
"""Tokens of a block: the unit that is digested, copied to scratch and shuffled. The order of the data depends on it."""
INDEX_ROW_BYTES = 12
"""Three little-endian uint32 for each text document of a shard."""

_SHA256 = r"^[0-9a-f]{64}$"
_RESERVED_NAMES = (DATA_MANIFEST_NAME, TOKENIZER_NAME, REPORT_NAME)


def token_bytes_for(vocab_size: int) -> Literal[2, 4]:
    """Return the bytes of a stored token: 2 if every id fits into 16 bits, else 4."""
    return 2 if vocab_size <= LARGEST_16_BIT_VOCABULARY else 4


def num_blocks(num_tokens: int) -> int:
    """Return the number of blocks of a token stream; the last one may be shorter."""
    return -(-num_tokens // BLOCK_TOKENS)


def language_problem(name: str) -> str | None:
    """Return why a language's name is invalid, or None; the names of its shards begin with it."""
    if not name or name.startswith("."):
        return "it is empty or starts with a dot"
    if any(character in "/\\" or not character.isprintable() for character in name):
        return "it has a slash or an unprintable character in it"
    if len(name.encode("utf-8", "replace")) > 100:
        return "it is longer than 100 bytes"
    return None


class Recipe(Document):
    """How text becomes tokens, apart from the corpus and the tokenizer; every field changes the output."""

    text_field: str = Field(default="text", min_length=1, description="field, or Parquet column, that holds the text")
    language_field: str | None = Field(default=None, description="field that names the language; none: the folder does")
    text_documents: Literal["file", "paragraphs", "lines"] = Field(
        default="file", description="what one text document of a plain text file is"
    )
    nfc: bool = Field(default=True, description="bring text into Unicode's composed form")
    strip_control: bool = Field(default=True, description="remove control characters except tab and line feed")
    deduplicate: bool = Field(default=True, description="drop exact copies of an earlier text, in any source")
    min_characters: int = Field(default=0, ge=0, description="drop shorter text documents; 0: none")
    max_document_bytes: int = Field(
        default=32 * 1024**2, ge=1024, le=256 * 1024**2, description="skip longer lines, rows and text documents"
    )
    validation_share: float = Field(default=0.005, ge=0.0, lt=1.0, description="share of the text documents to hold out")
    validation_shares: dict[str, float] = Field(default_factory=dict, description="the same, for single languages")
    shard_bytes: int = Field(
        default=256 * 1024**2, ge=2, le=8 * 1024**3, description="size of a full shard; an index counts its tokens in 32 bits"
    )
    max_malformed_share: float = Field(
        default=0.01, ge=0.0, le=1.0, description="a larger share of lines without a text is an error"
    )
    max_part_bytes: int | None = Field(default=None, ge=2, description="put shards into folders of at most this size")


class ShardIndex(Document):
    """Where the text documents of a shard begin: a file of little-endian uint32, [num_documents, 3].

    Its columns: first token within the shard; number of the source in `DataManifest.sources`; place within the source, from 1
    (the line where the text document begins, or the row of a Parquet file). A text document that began in the previous shard is
    not listed again.
    """

    name: InnerPath
    num_documents: int = Field(ge=0)
    sha256: str = Field(pattern=_SHA256)


class Shard(Document):
    """One file of raw little-endian tokens; its file name is unique in the data folder."""

    name: InnerPath = Field(description="path within the data folder, with forward slashes")
    num_tokens: int = Field(ge=1)
    sha256: str = Field(pattern=_SHA256)
    index: ShardIndex


class Source(Document):
    """One text file of a corpus."""

    corpus: int = Field(ge=0, description="number of the corpus folder, from 0, in the order of the options")
    name: str = Field(description="path within that folder, with forward slashes")
    num_bytes: int = Field(ge=0, description="size of the file")
    sha256: str = Field(pattern=_SHA256)
    num_records: int = Field(
        ge=0, description="number of its lines that are not blank, rows or paragraphs; 1 for a whole text file"
    )
    skipped: dict[str, int] = Field(
        default_factory=dict, description="lines, rows or paragraphs without a usable text, by reason"
    )


class SourceShare(Document):
    """One language's part of a source; only `dropped` counts the dropped text documents."""

    source: int = Field(ge=0, description="number of the source in `DataManifest.sources`")
    num_documents: int = Field(ge=0, description="text documents to train on")
    num_tokens: int = Field(ge=0, description="tokens to train on")
    num_held_out: int = Field(default=0, ge=0, description="text documents of the validation set")
    changed: dict[str, int] = Field(default_factory=dict, description="text documents that cleaning changed, by rule")
    dropped: dict[str, int] = Field(default_factory=dict, description="text documents that cleaning dropped, by rule")


class TokenStream(Document):
    """The tokens of many text documents in one sequence, stored as shards in order."""

    num_documents: int = Field(ge=1)
    num_tokens: int = Field(ge=1, description="with bos and eos")
    num_bytes_text: int = Field(ge=1, description="UTF-8 bytes of the text")
    shards: tuple[Shard, ...] = Field(min_length=1)
    blocks: tuple[str, ...] = Field(
        description="sha256 of each block: its BLOCK_TOKENS tokens, and the next token if there is one"
    )

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        in_shards = sum(shard.num_tokens for shard in self.shards)
        if in_shards != self.num_tokens:
            raise ValueError(f"num_tokens is {self.num_tokens}, but the shards hold {in_shards}")
        if len(self.blocks) != num_blocks(self.num_tokens):
            raise ValueError(
                f"{self.num_tokens} tokens have {num_blocks(self.num_tokens)} blocks, but {len(self.blocks)} are listed"
            )
        return self


class LanguageData(TokenStream):
    """One language: its training stream and its validation stream."""

    validation: TokenStream | None = Field(default=None, description="none: no text was held out")
    sources: tuple[SourceShare, ...] = ()

    @property
    def dropped(self) -> dict[str, int]:
        """Number of text documents that cleaning dropped, by rule, in name order."""
        return _total(source.dropped for source in self.sources)


class DataManifest(Document):
    """Describes a data folder. It is written last: a folder without it is not a data folder."""

    schema_version: Literal[2] = 2
    token_bytes: Literal[2, 4]
    vocab_size: int = Field(ge=1)
    bos_id: int = Field(ge=0)
    eos_id: int = Field(ge=0)
    pad_id: int | None = Field(ge=0, description="none: the tokenizer has no padding piece; training needs none")
    unk_id: int = Field(ge=0)
    tokenizer_file: FileName = Field(default=TOKENIZER_NAME, description="copy of the SentencePiece model in the data folder")
    tokenizer_sha256: str = Field(pattern=_SHA256)
    recipe: Recipe = Recipe()
    languages: dict[str, LanguageData] = Field(min_length=1)
    sources: tuple[Source, ...] = ()
    data_sha256: str = Field(pattern=_SHA256, description="digest of everything that determines the tokens and their order")

    @classmethod
    def sealed(cls, **fields: Any) -> Self:
        """Return a manifest with these fields, and compute its `data_sha256` from them."""
        draft = cls.model_construct(**fields)
        return cls(**fields, data_sha256=data_sha256(draft))

    @property
    def num_tokens(self) -> int:
        """Number of tokens to train on, over all languages."""
        return sum(language.num_tokens for language in self.languages.values())

    @property
    def tokens_by_language(self) -> dict[str, int]:
        """Number of tokens to train on, by language in name order."""
        return {name: self.languages[name].num_tokens for name in sorted(self.languages)}

    @property
    def skipped(self) -> dict[str, int]:
        """Number of lines, rows or paragraphs without a usable text, by reason in name order."""
        return _total(source.skipped for source in self.sources)

    @property
    def streams(self) -> tuple[TokenStream, ...]:
        """Every stream of the folder: the training stream of each language, and its validation stream."""
        return tuple(
            stream for language in self.languages.values() for stream in (language, language.validation) if stream is not None
        )

    @property
    def files(self) -> dict[str, int]:
        """Size in bytes of every shard and every index, by file name."""
        sizes: dict[str, int] = {}
        for stream in self.streams:
            for shard in stream.shards:
                sizes[shard.name] = shard.num_tokens * self.token_bytes
                sizes[shard.index.name] = shard.index.num_documents * INDEX_ROW_BYTES
        return sizes

    @field_validator("languages")
    @classmethod
    def _languages_name_shards(cls, languages: dict[str, LanguageData]) -> dict[str, LanguageData]:
        for name in languages:
            if problem := language_problem(name):
                raise ValueError(f"{name!r} cannot name a language: {problem}")
        return languages

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.token_bytes < token_bytes_for(self.vocab_size):
            raise ValueError(f"{self.vocab_size} ids do not fit into {self.token_bytes} bytes")
        if self.data_sha256 != data_sha256(self):
            raise ValueError("data_sha256 does not match the rest of the document")
        return self


def data_sha256(manifest: DataManifest) -> str:
    """Return the digest of everything that determines the tokens and their order.

    The blocks' digests cover the tokens. So sources, counts of skipped text, validation streams and the cut into shards and parts
    are not part of it.
    """
    return digest_of(
        {
            "token_bytes": manifest.token_bytes,
            "vocab_size": manifest.vocab_size,
            "ids": [manifest.bos_id, manifest.eos_id, manifest.pad_id, manifest.unk_id],
            "tokenizer": manifest.tokenizer_sha256,
            "languages": {name: [language.num_tokens, list(language.blocks)] for name, language in manifest.languages.items()},
        }
    )


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for reason, count in each.items():
            total[reason] = total.get(reason, 0) + count
    return dict(sorted(total.items()))
