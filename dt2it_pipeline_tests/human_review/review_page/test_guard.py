"""What the review page refuses, what it tells browsers, and the parts that need no server."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from dt2it_pipeline.human_review.review_page import OwnTable, review_app, row_file, table_subject
from dt2it_pipeline.human_review.review_page.guard import MOST_BYTES
from dt2it_pipeline.human_review.review_page.row_file import ReviewError, RowFile
from dt2it_pipeline.human_review.review_page.subject import Subject
from dt2it_pipeline.human_review.review_page.thumbnails import Thumbnails
from dt2it_pipeline.human_review.review_page.word_diff import word_diff
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline_tests.support.commands import failing
from dt2it_pipeline_tests.support.review_world import ADDRESS, SAME

PACKAGE = "dt2it_pipeline.human_review.review_page"
TOKEN = "a-token-of-many-letters"


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    file = tmp_path_factory.mktemp("table") / "pairs.csv"
    pd.DataFrame({"chosen": ["yes"], "rejected": ["no"]}).to_csv(file)
    return table_subject(OwnTable(file))


@pytest.fixture
def client(subject: Subject) -> TestClient:
    return TestClient(review_app(subject), base_url=ADDRESS)


@pytest.mark.parametrize("path", ["/", "/page.js", "/api/state", "/api/image", "/nothing"])
def test_every_answer_tells_browsers_to_run_nothing_else(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil@127.0.0.1.x", "", "[", "10.0.0.7"])
def test_another_name_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/api/state", headers={"host": host}).status_code == 421
    assert client.get("/api/state", headers={"host": "localhost:8765"}).status_code == 200
    assert client.get("/api/state", headers={"host": "[::1]:8765"}).status_code == 200


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:1", "http://127.0.0.1.evil", "http://["]
)
def test_another_site_cannot_answer(client: TestClient, origin: str | None) -> None:
    answer = {"id": "0", "person": "Ann", "choice": "first"}
    headers = {} if origin is None else {"origin": origin}
    for path in ("/api/answer", "/api/undo"):
        assert client.post(path, json=answer, headers=headers).status_code == 403
    plain = {**SAME, "content-type": "text/plain"}
    assert client.post("/api/answer", content="{}", headers=plain).status_code == 415
    big = client.post("/api/answer", json={**answer, "more": "x" * MOST_BYTES}, headers=SAME)
    assert big.status_code == 413
    many_digits = {**SAME, "content-type": "application/json", "content-length": "9" * 5000}
    assert client.post("/api/answer", content="{}", headers=many_digits).status_code == 413
    for body in ("[]", "{", "\xff", "[" * 9999):
        sent = client.post("/api/answer", content=body, headers={**SAME, "content-type": "application/json"})
        assert sent.status_code == 400
    half = client.post("/api/answer", content='{"id": "\\ud800", "person": "Ann", "choice": "first"}', headers=plain | {
        "content-type": "application/json"
    })  # fmt: skip
    assert half.status_code == 410
    assert client.get("/api/answer").status_code == 405
    assert client.get("/api/state").json()["answers"]["votes"] == 0


def test_a_token_is_asked_for_once_and_leaves_the_address(subject: Subject) -> None:
    client = TestClient(review_app(subject, TOKEN), base_url=ADDRESS, follow_redirects=False)
    for path in ("/", "/page.js", "/api/state", "/?token=wrong", f"/api/state?token={TOKEN}"):
        assert client.get(path).status_code == 401
    assert client.get("/api/state", headers={"cookie": 'dt2it_review=%E4; b="c'}).status_code == 401
    given = client.get(f"/?token={TOKEN}&a=b")
    assert (given.status_code, given.headers["location"]) == (303, "/?a=b")
    cookie = given.headers["set-cookie"].casefold()
    assert "httponly" in cookie and "samesite=lax" in cookie
    assert client.get("/api/state").status_code == 200
    assert client.get("/api/state", headers={"host": "10.0.0.7:8765"}).status_code == 200  # no name to point elsewhere
    assert client.get("/api/state", headers={"host": "evil.example"}).status_code == 421
    assert client.post("/api/undo", json={"person": "Ann"}).status_code == 403


@pytest.mark.parametrize(
    "path", ["/static/page.js", "/../pyproject.toml", "/%2e%2e/app.py", "/page.js/../app.py", "/app.py"]
)
def test_no_path_reaches_the_file_system(client: TestClient, path: str) -> None:
    found = client.get(path)
    assert found.status_code == 404 or found.text.startswith("// The head of the page")


def test_images_are_encoded_anew_and_the_memory_for_them_is_bounded(tmp_path: Path) -> None:
    Image.new("RGB", (900, 300), "red").save(tmp_path / "large.jpg", comment=b"<script>")
    (tmp_path / "evil.png").write_text("<svg onload=alert(1)>")
    read: list[str] = []

    def opened(medium: tuple[str, str]) -> Path:
        name = medium[1]
        read.append(name)
        return tmp_path / name

    images = Thumbnails(opened, most_bytes=2000)
    made = images.png(("image", "large.jpg"), "small")
    assert made.startswith(b"\x89PNG") and b"script" not in made
    assert images.png(("image", "large.jpg"), "small") == made and read == ["large.jpg"]
    with pytest.raises(MediaError):
        images.png(("image", "evil.png"), "large")
    for n in range(30):
        Image.effect_noise((60, 60), 50).save(tmp_path / f"{n}.png")
        images.png(("image", f"{n}.png"), "small")
    assert images.bytes_kept < 8000


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_pieces_of_a_text_add_up_to_it(first: str, second: str) -> None:
    for parts, text, other in zip(word_diff(first, second), (first, second), (second, first), strict=True):
        assert "".join(piece for _, piece in parts) == text
        assert any(differs for differs, _ in parts) or text == "" or text == other or len(other) > len(text)


def test_long_answers_are_compared_at_their_ends() -> None:
    left, right = word_diff("a " * 5000 + "x end", "a " * 5000 + "y end")
    assert [piece for differs, piece in left if differs] == ["x"] and [p for d, p in right if d] == ["y"]


def test_a_full_temporary_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_file, "_temporary", lambda: tmp_path / "rows")

    def full() -> Any:
        raise OSError(28, "No space left on device")
        yield

    with pytest.raises(ReviewError, match="TMPDIR"):
        RowFile(pa.schema([("a", pa.string())]), full())
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize("name", ["app", "row_file", "scripts", "word_diff"])
def test_examples_are_right(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"{PACKAGE}.{name}"))
    assert result.attempted and not result.failed


def test_the_command_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve = ["review", "serve"]
    assert "either --pairs or --round" in failing(*serve, code=2)
    assert "--media: for --pairs" in failing(*serve, "--round", 0, "--media", tmp_path, code=2)
    assert "there is no artifact home" in failing(*serve, "--round", 0, "--home", tmp_path / "no", "--port", 0)
    assert "`dt2it run round --round 0`" in failing(*serve, "--round", 0, "--home", tmp_path, "--port", 0)
    monkeypatch.setenv("REVIEW_TOKEN", "short")
    told = failing(*serve, "--round", 0, "--home", tmp_path, "--token-env", "REVIEW_TOKEN")
    assert "holds no token" in told and "short" not in told
    assert "--host" in failing(*serve, "--round", 0, "--host", "no.such.host.invalid")
