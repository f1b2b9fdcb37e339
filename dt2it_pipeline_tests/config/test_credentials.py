"""Keys of endpoints: which are sent, and that no way of writing one down gets past the redactor."""

from __future__ import annotations

import html
import json
import urllib.parse

import pytest

from dt2it_pipeline.config.credentials import Redactor, check_url, checked_key

KEY = "se'kr\"et\\/+&<7f"


@pytest.mark.parametrize("given", ["abc", " abc\n", "abc\r\n", ""])
def test_white_space_around_a_key_is_taken_off(given):
    assert checked_key(given, "K") == given.strip()


@pytest.mark.parametrize("given", ["abc\ndef", "abc def", "abc\x00d", "abc\x7f", "abcé", "abc\u2028d"])
def test_what_no_header_takes_is_refused_and_not_shown(given):
    with pytest.raises(ValueError, match="the key in K must be printable ASCII") as raised:
        checked_key(given, "K")
    assert "abc" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://h/v1?api_key=abc",
        "https://h/v1#key=abc",
        "https://abc@h/v1",
        "https://me:abc@h/v1",
        "ftp://h/abc",
        "https://",
        "http://[::1/abc",
        "http://h:99999/abc",
        "http://h/ abc",
    ],
)
def test_a_url_has_no_place_for_a_secret(url):
    with pytest.raises(ValueError, match="without user and password, query and fragment; the key comes from K") as said:
        check_url(url, "K")
    assert "abc" not in str(said.value)


@pytest.mark.parametrize("url", ["https://h/v1", "HTTP://127.0.0.1:80", "http://[::1]:8000/classify/", "https://h/@a"])
def test_plain_urls_are_taken(url):
    check_url(url, "K")


@pytest.mark.parametrize(
    "written",
    [
        KEY,
        repr(KEY),
        repr(KEY.encode()),
        json.dumps(KEY),
        json.dumps(json.dumps(KEY)),
        repr(json.dumps(repr(KEY)).encode()),
        json.dumps(KEY).replace("/", "\\/"),
        "".join(f"\\u{ord(c):04X}" for c in KEY),
        "".join(f"\\x{ord(c):02x}" for c in KEY),
        urllib.parse.quote(KEY, safe=""),
        urllib.parse.quote(urllib.parse.quote(KEY)),
        html.escape(KEY),
        "".join(f"&#{ord(c)};" for c in KEY),
    ],
)
def test_a_key_is_removed_however_it_is_written(written):
    said = Redactor(KEY)(f"bad  key\n{written}, you", 300)
    assert "kr" not in said and "7f" not in said
    assert said.startswith("bad key ") and said.endswith(", you") and "(key)" in said


def test_text_is_cut_behind_the_removal():
    assert Redactor("abcdef")(b"12345678abcdef90", 10) == "12345678(k"
    assert Redactor(None)("a\n b\xff" * 3, 5) == "a bÿa"
