import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.data_manifest import BLOCK_TOKENS, TokenStream
from worker.corpus.shards import BlockDigests, ShardWriter


def write(folder: Path, documents: list[list[int]], *, shard_tokens: int, together: int) -> TokenStream | None:
    """Write documents, so many in a call; document d is record d + 1 of source 3."""
    writer = ShardWriter(folder, "hindi.train", token_bytes=2, shard_bytes=2 * shard_tokens)
    for start in range(0, len(documents), together):
        some = documents[start : start + together]
        writer.append(
            np.array([token for document in some for token in document], dtype="<u2"),
            np.array([len(document) for document in some]),
            np.full(len(some), 3),
            np.arange(start, start + len(some)) + 1,
            10 * len(some),
        )
    return writer.finish()


@settings(deadline=None)  # it waits for the disk
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    shard_tokens=st.integers(1, 12),
    together=st.integers(1, 12),
)
def test_shards_joined_are_the_stream_and_the_index_finds_every_document(
    lengths: list[int], shard_tokens: int, together: int, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("shards")
    documents = [[100 * number + place for place in range(length)] for number, length in enumerate(lengths)]
    stream = write(folder, documents, shard_tokens=shard_tokens, together=together)
    assert stream is not None
    tokens: list[int] = []
    starts = []
    for shard in stream.shards:
        data = (folder / shard.name).read_bytes()
        rows = np.fromfile(folder / shard.index.name, "<u4").reshape(-1, 3)
        assert hashlib.sha256(data).hexdigest() == shard.sha256
        assert hashlib.sha256(rows.tobytes()).hexdigest() == shard.index.sha256
        assert len(rows) == shard.index.num_documents
        starts += [(len(tokens) + first, source, record) for first, source, record in rows.tolist()]
        tokens += np.frombuffer(data, "<u2").tolist()
    assert tokens == [token for document in documents for token in document]
    ends = np.cumsum([0, *lengths]).tolist()
    assert starts == [(ends[number], 3, number + 1) for number in range(len(documents))]
    assert {shard.num_tokens for shard in stream.shards[:-1]} <= {shard_tokens}
    assert (stream.num_documents, stream.num_bytes_text) == (len(documents), 10 * len(documents))


def test_a_stream_without_a_document_writes_nothing(tmp_path: Path):
    assert write(tmp_path, [], shard_tokens=4, together=1) is None
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None)  # it waits for the disk
@given(pieces=st.lists(st.integers(1, BLOCK_TOKENS + 5), min_size=1, max_size=4))
def test_a_block_is_digested_with_the_token_after_it_however_the_tokens_come(pieces: list[int]):
    tokens = np.arange(sum(pieces), dtype=np.uint64).astype("<u2")
    digests = BlockDigests()
    for piece in np.split(tokens, np.cumsum(pieces)[:-1]):
        digests.update(piece)
    expected = [
        hashlib.sha256(tokens[start : start + BLOCK_TOKENS + 1].tobytes()).hexdigest()
        for start in range(0, len(tokens), BLOCK_TOKENS)
    ]
    assert list(digests.finish()) == expected


def test_files_that_are_there_already_are_not_written_over(tmp_path: Path):
    write(tmp_path, [[1, 2]], shard_tokens=4, together=1)
    with pytest.raises(FileExistsError):
        write(tmp_path, [[1, 2]], shard_tokens=4, together=1)
