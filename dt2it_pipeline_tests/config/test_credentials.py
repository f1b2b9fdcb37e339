"""Keys of endpoints: which are sent, and that no way of writing one down gets past the redactor."""

from __future__ import annotations

import html
import json
import urllib.parse

import pytest

from dt2it_pipeline.config.credentials import Redactor, check_url, checked_key
from dt2it_pipeline.config.models import EndpointSettings

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


@pytest.mark.parametrize(
    "path",
    [
        "sk-abcdefgh", "v1/sk-proj-abcdef", "v1/%73k-abcdefgh", "hf_abcdefghij/v1", "AIzaabcdefgh", "v1;key=abcdefgh",
        "api_key=abcdefgh/v1", "v1/token:abcdefgh", "access_token=abcdefgh",
    ],
)  # fmt: skip
def test_a_path_that_looks_like_a_key_is_refused_and_not_shown(path):
    with pytest.raises(ValueError, match="path of the endpoint's URL holds what looks like a key") as said:
        check_url(f"https://h/{path}", "K")
    assert "abc" not in str(said.value)


@pytest.mark.parametrize(
    "url", ["https://h/v1", "https://h/openai/deployments/task-sk/v1", "https://h/v1/" + "a1" * 16]
)
def test_long_names_in_a_path_are_no_keys(url):
    check_url(url, "K")


def test_a_key_that_stands_in_the_url_is_refused_when_it_is_read(monkeypatch):
    monkeypatch.setenv("K", "plain-1234")
    settings = EndpointSettings(base_url="https://h/plain%2D1234/v1", model="m", api_key_env="K")
    with pytest.raises(ValueError, match="base_url holds the key that K holds") as said:
        settings.key()
    assert "1234" not in str(said.value)


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


def test_a_kept_text_loses_a_key_but_no_ordinary_word():
    text = f"a\n  {KEY} b {json.dumps(KEY)}"
    assert Redactor(KEY).hidden(text) == 'a\n  (key) b "(key)"'
    assert Redactor("token").hidden("the token") == "the token"  # what people set where a server wants any key
    assert Redactor(None).hidden(text) == text


def test_text_is_cut_behind_the_removal():
    assert Redactor("abcdef")(b"12345678abcdef90", 10) == "12345678(k"
    assert Redactor(None)("a\n b\xff" * 3, 5) == "a bÿa"
