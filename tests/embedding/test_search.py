"""The nearest rows of a file are those that a comparison with each one finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from banks import write_bank
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_pretrain.embedding import search
from bert_pretrain.embedding.files import table_beside
from bert_pretrain.embedding.search import nearest, open_bank
from bert_pretrain.errors import InputError


def compared_one_by_one(
    bank: np.ndarray, query: np.ndarray, k: int, *, without: int | None = None
) -> list[tuple[float, int]]:
    """Return minus the cosine and the row of the k nearest, in order."""
    found = []
    for row, vector in enumerate(bank.astype(np.float64)):
        if row != without:
            norm = np.linalg.norm(vector) * np.linalg.norm(query)
            found.append((-float(vector @ query) / norm if norm else 0.0, row))
    return sorted(found)[:k]


@given(st.integers(0, 10_000), st.integers(1, 30))
@settings(max_examples=40)
def test_the_nearest_are_those_of_a_loop_also_where_cosines_are_equal(
    tmp_path_factory: pytest.TempPathFactory, seed: int, k: int
) -> None:
    generator = np.random.default_rng(seed)
    # Few different vectors of plus and minus 1, whose cosines are exact: many are equal.
    embeddings = generator.choice([-1.0, 1.0], size=(23, 4)).astype(np.float32)
    queries = generator.choice([-1.0, 1.0], size=(3, 4))
    folder = tmp_path_factory.mktemp("bank")
    bank = write_bank(folder / "b.parquet", embeddings, sizes=[7, 1, 15], dtype="float32")
    found = nearest(bank, queries, k=k)
    for place, query in enumerate(queries):
        expected = compared_one_by_one(embeddings, query, k)
        assert found.rows[place].tolist() == [row for _, row in expected]
        np.testing.assert_allclose(found.cosines[place], [-c for c, _ in expected], atol=1e-6)


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_both_kinds_of_files_and_numbers_are_searched(
    tmp_path: Path, suffix: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_ROWS_AT_ONCE", 9)
    embeddings = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    embeddings[11] = 0  # its cosine is 0
    bank = write_bank(tmp_path / f"b{suffix}", embeddings, sizes=[30, 10], dtype=dtype)
    assert (bank.num_rows, bank.width) == (40, 6)
    stored = embeddings.astype(dtype).astype(np.float32)
    rows = [3, 35]
    assert (bank.embeddings_of(rows) == stored[rows]).all()
    found = nearest(bank, stored[rows], k=5, own_rows=rows)
    for place, row in enumerate(rows):
        expected = compared_one_by_one(stored, stored[row], 5, without=row)
        assert found.rows[place].tolist() == [other for _, other in expected]
    everything = nearest(bank, stored[rows], k=100, own_rows=rows)
    assert everything.rows.shape == (2, 39) and 3 not in everything.rows[0]
    assert [fact["text"] for fact in bank.facts_of([39, 0, 39])] == ["text 39", "text 0", "text 39"]


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    embeddings = np.ones((4, 6), dtype=np.float32)
    bank = write_bank(tmp_path / "b.npy", embeddings, sizes=[4], dtype="float32")
    with pytest.raises(InputError, match=r"5 dimensions but .* has 6"):
        nearest(bank, np.ones((1, 5)), k=1)
    with pytest.raises(InputError, match=r"`row` is 4 but must be in 0\.\.3"):
        bank.embeddings_of([0, 4])
    np.save(tmp_path / "b.npy", embeddings[:3])
    with pytest.raises(InputError, match="has 3 rows but"):
        open_bank(tmp_path / "b.npy")
    np.save(tmp_path / "b.npy", np.full((4, 6), np.nan, dtype=np.float32))
    with pytest.raises(InputError, match="not finite"):
        nearest(open_bank(tmp_path / "b.npy"), np.ones((1, 6)), k=1)
    table_beside(tmp_path / "b.npy").unlink()
    with pytest.raises(InputError, match=r"b\.rows\.parquet'?, which lies beside"):
        open_bank(tmp_path / "b.npy")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="was not written by"):
        open_bank(tmp_path / "other.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="cannot be read"):
        open_bank(tmp_path / "torn.parquet")
    with pytest.raises(InputError, match=r"a \.parquet or \.npy"):
        open_bank(tmp_path / "b.csv")
