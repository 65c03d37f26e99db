from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.errors import DataError
from tests.token_data import write_data
from worker.inspect_data.documents import DocumentIndex, Piece


def index(folder: Path, num_tokens: int, *, shard_tokens: int, document_tokens: int) -> DocumentIndex:
    manifest = write_data(
        folder, {"en": np.arange(num_tokens) % 1000}, shard_tokens=shard_tokens, document_tokens=document_tokens
    )
    return DocumentIndex(folder, manifest.languages["en"])


def pieces_by_walking(first: int, num_tokens: int, document_tokens: int) -> list[Piece]:
    """Each token's document is known here: a document begins at each multiple of document_tokens."""
    pieces = []
    for document in range(first // document_tokens, (first + num_tokens - 1) // document_tokens + 1):
        begin = max(first, document * document_tokens)
        end = min(first + num_tokens, (document + 1) * document_tokens)
        pieces.append(Piece(0, document + 1, begin - first, end - begin, begin - document * document_tokens))
    return pieces


def test_a_stretch_within_one_document_is_one_piece(tmp_path: Path) -> None:
    found = index(tmp_path, 100, shard_tokens=100, document_tokens=50).pieces(60, 10)
    assert found == (Piece(source=0, record=2, first_token=0, num_tokens=10, document_offset=10),)


def test_a_document_that_begins_where_the_stretch_ends_is_not_in_it(tmp_path: Path) -> None:
    found = index(tmp_path, 100, shard_tokens=100, document_tokens=50).pieces(40, 10)
    assert [piece.record for piece in found] == [1]
    found = index(tmp_path / "more", 100, shard_tokens=100, document_tokens=50).pieces(40, 11)
    assert [(piece.record, piece.first_token, piece.num_tokens) for piece in found] == [(1, 0, 10), (2, 10, 1)]


def test_a_document_is_found_that_began_shards_before(tmp_path: Path) -> None:
    """Shards 1 and 2 lie within one document: no document begins in them."""
    found = index(tmp_path, 100, shard_tokens=20, document_tokens=70).pieces(45, 30)
    assert found == (Piece(0, 1, 0, 25, 45), Piece(0, 2, 25, 5, 0))


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    num_tokens=st.integers(1, 300),
    shard_tokens=st.integers(1, 60),
    document_tokens=st.integers(1, 80),
    stretch=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_every_stretch_has_the_documents_that_walking_finds(
    tmp_path_factory: pytest.TempPathFactory,
    num_tokens: int,
    shard_tokens: int,
    document_tokens: int,
    stretch: tuple[float, float],
) -> None:
    first = int(stretch[0] * (num_tokens - 1))
    length = 1 + int(stretch[1] * (num_tokens - first - 1))
    documents = index(tmp_path_factory.mktemp("data"), num_tokens, shard_tokens=shard_tokens, document_tokens=document_tokens)
    assert list(documents.pieces(first, length)) == pieces_by_walking(first, length, document_tokens)


@pytest.mark.parametrize(("first", "length"), [(-1, 5), (0, 0), (96, 5), (100, 1)])
def test_a_stretch_beyond_the_stream_is_refused(tmp_path: Path, first: int, length: int) -> None:
    with pytest.raises(DataError, match="there are no tokens"):
        index(tmp_path, 100, shard_tokens=40, document_tokens=10).pieces(first, length)


def test_an_index_that_has_changed_is_never_believed(tmp_path: Path) -> None:
    documents = index(tmp_path, 100, shard_tokens=40, document_tokens=10)
    path = tmp_path / "en.train-00001.documents"
    content = bytearray(path.read_bytes())
    content[4] ^= 1
    path.write_bytes(content)
    assert documents.pieces(0, 10)
    with pytest.raises(DataError, match=r"en.train-00001.documents has changed"):
        documents.pieces(45, 10)


def test_an_index_that_is_gone_is_named(tmp_path: Path) -> None:
    documents = index(tmp_path, 100, shard_tokens=40, document_tokens=10)
    (tmp_path / "en.train-00002.documents").unlink()
    with pytest.raises(DataError, match=r"en.train-00002.documents cannot be read"):
        documents.pieces(85, 3)


def test_tokens_that_no_document_begins_before_are_an_error(tmp_path: Path) -> None:
    manifest = write_data(tmp_path, {"en": np.zeros(100)}, shard_tokens=40, document_tokens=10)
    later = manifest.languages["en"].evolve(num_tokens=40, shards=manifest.languages["en"].shards[1:2])
    empty = later.shards[0].index.evolve(num_documents=0, sha256=manifest.tokenizer_sha256)
    stream = later.evolve(shards=(later.shards[0].evolve(index=empty),))
    (tmp_path / empty.name).write_bytes(b"")
    with pytest.raises(DataError, match="no document begins at or before token 3"):
        DocumentIndex(tmp_path, stream).pieces(3, 5)
