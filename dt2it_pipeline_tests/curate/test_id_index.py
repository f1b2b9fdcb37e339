from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dt2it_pipeline.curate.id_index import IdIndex, id_keys, repeats
from dt2it_pipeline.storage.content_ids import content_hash


def test_content_ids_keep_all_their_bits() -> None:
    for place in range(32):
        for digit in "123456789abcdef":
            assert (
                len({key.tobytes() for key in id_keys(pa.array(["0" * 32, "0" * place + digit + "0" * (31 - place)]))})
                == 2
            )
    random = np.random.default_rng(0)
    ids = [random.bytes(16).hex() for _ in range(1000)]
    # Every digit goes to a place of its own: the keys of two ids differ in as many bits as the ids.
    bits = np.array([[int(i, 16) >> bit & 1 for bit in range(128)] for i in ids])
    keys = np.unpackbits(id_keys(pa.array(ids)).view(np.uint8), axis=1)
    for one, other in zip(range(0, 1000, 2), range(1, 1000, 2), strict=True):
        assert (bits[one] != bits[other]).sum() == (keys[one] != keys[other]).sum()


@pytest.mark.parametrize("character", ["g", "G", "A", "/", ":", "`", "@", " ", "\x00", "~"])
def test_other_characters_are_not_taken_for_digits(character: str) -> None:
    ids = ["0" * 31 + character, "0" * 32, "9" * 31 + character, "f" * 31 + character]
    alone = [id_keys(pa.array([i]))[0].tobytes() for i in ids]
    assert len(set(alone)) == 4
    assert [key.tobytes() for key in id_keys(pa.array(ids))] == alone


def test_an_id_has_one_key_whatever_stands_beside_it_and_however_it_is_held() -> None:
    ids = [content_hash(str(i)) for i in range(5)]
    mixed = [ids[0], "short", ids[1], "ü" * 16, ids[2].upper(), "", ids[3]]
    assert len(ids[0]) == 32
    keys = id_keys(pa.array(mixed))
    np.testing.assert_array_equal(keys[[0, 2, 6]], id_keys(pa.array(ids))[[0, 1, 3]])
    for held in (
        pa.array(mixed, pa.large_string()),
        pa.chunked_array([mixed[:2], mixed[2:]]),
        pa.array(["x", *mixed]).slice(1),
        pd.Series(mixed),
        pd.Series(mixed, dtype=object),
        pd.Series(mixed, dtype=pd.ArrowDtype(pa.string())),
    ):
        np.testing.assert_array_equal(id_keys(held), keys)
    assert len({key.tobytes() for key in keys}) == len(mixed)


@pytest.mark.parametrize("make", [lambda i: content_hash(str(i)), lambda i: f"id {i}"])
def test_an_index_finds_what_it_holds_and_nothing_else(make) -> None:  # type: ignore[no-untyped-def]
    ids = [make(i) for i in range(50)]
    index = IdIndex(pa.array([*ids, ids[3]]))
    assert len(index) == 50 and index.codes[-1] == index.codes[3]
    asked = [ids[7], make(99), ids[0]]
    assert index.positions(pa.array(asked)).tolist() == [index.codes[7], -1, index.codes[0]]
    assert IdIndex(pa.array([], pa.string())).positions(pa.array(asked)).tolist() == [-1, -1, -1]


def test_ids_that_share_half_their_bits_are_distinguished() -> None:
    ids = [f"{'ab' * 8}{i:016x}" for i in range(20)]
    index = IdIndex(pa.array(ids))
    assert index.codes.tolist() == list(range(20))
    assert index.positions(pa.array([ids[5], "ab" * 8 + "f" * 16])).tolist() == [5, -1]


def test_repeats() -> None:
    assert repeats(pd.Series(["a", "b", "a", "a"])).tolist() == [False, False, True, True]
