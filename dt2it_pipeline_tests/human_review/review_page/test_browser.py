"""The review page in a real browser: hostile texts, keys, the blind audit, and a server that is killed."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dt2it_pipeline.human_review.answers import kept_votes, votes_file
from dt2it_pipeline_tests.support.browser import browser_page
from dt2it_pipeline_tests.support.processes import wait_until
from dt2it_pipeline_tests.support.review_world import make_benchmark, make_round

pytestmark = pytest.mark.heavy
PROGRAM = "from dt2it_pipeline.cli import main; main()"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def pairs(home: Path) -> list[dict[str, Any]]:
    made = make_round(home, 12)
    make_benchmark(home)
    return made


@pytest.fixture
def start(home: Path, pairs: list[dict[str, Any]]) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts the server, on one port however often; kills what is left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        given = ["review", "serve", "--round", "0", "--home", str(home), "--port", str(port), "--audit-count", "5"]
        made = subprocess.Popen([sys.executable, "-c", PROGRAM, *given], env=os.environ | {"OMP_NUM_THREADS": "1"})
        made.address = f"http://127.0.0.1:{port}"  # type: ignore[attr-defined]
        started.append(made)

        def answers() -> bool:
            assert made.poll() is None
            try:
                return bool(urllib.request.urlopen(f"{made.address}/api/state", timeout=5).status == 200)  # type: ignore[attr-defined]
            except OSError:
                return False

        wait_until(answers, 60)
        return made

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def own_table(tmp_path: Path) -> Iterator[str]:
    """The address of the page of a table that holds its images itself."""

    def file(colour: str) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (60, 40), colour).save(buffer, "PNG")
        return buffer.getvalue()

    address = f"data:image/png;base64,{base64.b64encode(file('blue')).decode()}"
    hostile = "data:image/svg+xml;base64," + base64.b64encode(b"<svg onload='document.title=1'/>").decode()
    rows = [
        {"prompt": "<image> and <image>?", "chosen": "red", "rejected": "blue"},
        {"prompt": "<img src=x onerror=document.title='owned'>", "chosen": "a", "rejected": "b"},
    ]
    texts = [[f"data:image/png;base64,{base64.b64encode(file('red')).decode()}", address], [hostile]]
    table = tmp_path / "own.jsonl"
    table.write_text("\n".join(json.dumps(row | {"images": each}) for row, each in zip(rows, texts, strict=True)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = ["review", "serve", "--pairs", str(table), "--port", str(port)]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *given], env=os.environ | {"OMP_NUM_THREADS": "1"})
    wait_until(lambda: _answers(port), 60)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


def _answers(port: int) -> bool:
    try:
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/state", timeout=5).status == 200)
    except OSError:
        return False


def test_images_that_a_table_holds_itself_are_shown(own_table: str, page: Any) -> None:
    page.goto(f"{own_table}/#/pair/-/0")
    page.wait_for_selector(".answers")
    loaded = "[...document.querySelectorAll('.images img')].filter(each => each.naturalWidth === 60).length"
    wait_until(lambda: page.evaluate(loaded) == 2, 30)
    sources = page.evaluate("[...document.querySelectorAll('.images img')].map(each => each.src)")
    assert all(source.startswith(f"{own_table}/api/image?") for source in sources)  # no address of the table itself
    page.goto(f"{own_table}/#/pair/-/1")
    page.wait_for_selector("text=onerror")
    assert page.evaluate("document.querySelectorAll('main svg, main img[src=x]').length") == 0
    assert "owned" not in page.title() and page.title() != "1"


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of a browser that asks this machine alone."""
    with browser_page("//127.0.0.1:") as made:
        yield made


def test_people_review_a_round(home: Path, pairs: list[dict[str, Any]], start: Callable[[], Any], page: Any) -> None:
    server = start()
    page.goto(server.address)
    page.wait_for_selector(".card[data-ready='1']")
    page.fill("#name", "Ann")
    page.press("#name", "Enter")

    # Texts of data are texts: no element is made of them, and nothing runs.
    page.fill("input[name=search]", "onerror")
    page.wait_for_selector(".count:has-text('1 of 12')")
    # What is typed while the list is drawn anew for a name is not lost.
    page.evaluate(
        """() => {
            const name = document.getElementById("name"), search = document.querySelector("input[name=search]");
            name.dispatchEvent(new Event("change"));
            search.focus();
            search.value = "not there";
            search.dispatchEvent(new Event("input"));
            search.old = true;
        }"""
    )
    wait_until(lambda: not page.evaluate("document.querySelector('input[name=search]').old"), 30)
    page.wait_for_selector(".count:has-text('0 of 12')")
    assert page.input_value("input[name=search]") == "not there"
    assert page.evaluate("document.activeElement.name") == "search"
    page.fill("input[name=search]", "onerror")
    page.wait_for_selector(".count:has-text('1 of 12')")
    # Nor is the list drawn a second time, by the field that is gone: a click would meet a card that is replaced.
    page.evaluate("document.querySelector('.card').old = true")
    time.sleep(0.5)
    assert page.evaluate("document.querySelector('.card').old")
    # Nor is it by what was typed just before "Clear".
    page.evaluate(
        """() => {
            const search = document.querySelector("input[name=search]");
            search.value = "not there";
            search.dispatchEvent(new Event("input"));
            [...document.querySelectorAll("button")].find((each) => each.textContent === "Clear").click();
        }"""
    )
    page.wait_for_selector(".count:has-text('12 pairs')")
    page.evaluate("document.querySelector('.card').old = true")
    time.sleep(0.5)
    assert page.evaluate("document.querySelector('.card').old")
    page.fill("input[name=search]", "onerror")
    page.wait_for_selector(".count:has-text('1 of 12')")
    page.click(".card")
    page.wait_for_selector(".answers")
    shown = page.inner_text("main")
    assert '<script>document.title="owned"</script>' in shown and "<img src=x" in shown
    assert page.evaluate("document.querySelectorAll('main script, main img[src=x]').length") == 0
    for view in ("quarantine", "benchmark"):
        page.goto(f"{server.address}/#/{view}")
        page.wait_for_selector(".row")
        assert "<script>" in page.inner_text("main") or view == "benchmark"
    # So are a judge's words; the judge's reasons come first, and the reply as it came is there.
    page.goto(f"{server.address}/#/pair/-/{pairs[3]['pair_id']}")
    page.wait_for_selector("text=the reply as it came")
    said = page.inner_text(".spoken")
    assert said.startswith("Response 1 names it. <script>") and "Its own answer: red" in said
    assert "no verdict: no reply" in page.inner_text("main") and "each answer alone" in page.inner_text("main")
    assert page.evaluate("document.querySelectorAll('main script, main img[src=x]').length") == 0
    page.goto(f"{server.address}/#/pair/-/{pairs[5]['pair_id']}")
    page.wait_for_selector("figcaption:has-text('video 1, its first frame')")
    assert page.evaluate("document.querySelectorAll('.images img').length") == 3
    assert "owned" not in page.title()

    # Keys: an answer is kept at once, and the next pair comes.
    page.goto(f"{server.address}/#/pairs")
    page.click("text=Clear")
    page.wait_for_selector(".card[data-ready='1'] >> nth=3")
    page.click(".card >> nth=0")
    page.wait_for_selector("text=1 of 12")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("text=2 of 12")
    assert len(kept_votes(home)) == 1
    page.keyboard.press("u")
    page.wait_for_selector("text=1 of 12")
    assert kept_votes(home) == []
    page.keyboard.press("s")
    page.wait_for_selector("text=2 of 12")
    assert (home / "review_notes.jsonl").exists()

    # A bar compares a margin with those of its voter over all pairs: seed/1 is surer elsewhere, seed/2 is not.
    page.goto(f"{server.address}/#/pair/-/{pairs[0]['pair_id']}")
    widths = "[...document.querySelectorAll('.bar')].map(bar => bar.style.width).join()"
    wait_until(lambda: page.evaluate(widths) == "24%,100%", 30)  # the pair shown before has bars, too
    assert "the widest 5% fill it" in page.inner_text("main")

    # Skipping a pair that is answered takes the answer back, and says so; undo gives it back.
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(".badge.mine")
    page.keyboard.press("s")
    page.wait_for_selector("#banner:has-text('took that answer back')")
    assert kept_votes(home) == []
    page.keyboard.press("u")
    page.wait_for_selector(".badge.mine")
    assert len(kept_votes(home)) == 1
    page.wait_for_selector("#banner", state="hidden")
    page.keyboard.press("u")
    page.wait_for_selector(".badge.mine", state="detached")

    # A killed server: the answer waits in the browser, the page says so, and it is kept once the server is back.
    page.goto(f"{server.address}/#/pairs")
    page.click(".card >> nth=2")
    page.wait_for_selector("text=3 of 12")
    server.send_signal(signal.SIGKILL)
    server.wait()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#banner:has-text('does not answer')")
    assert kept_votes(home) == []
    server = start()
    wait_until(lambda: len(kept_votes(home)) == 1, 30)
    page.wait_for_selector("#banner", state="hidden")

    # What was done before the server was killed can be taken back, too.
    page.keyboard.press("u")
    wait_until(lambda: kept_votes(home) == [], 30)

    def skipped_pair_is_open_again() -> bool:  # a key that is pressed while the pair is being loaded does nothing
        page.keyboard.press("u")
        page.wait_for_timeout(1000)
        return '"taken back"' in (home / "review_notes.jsonl").read_text()

    wait_until(skipped_pair_is_open_again, 30)

    # The blind audit tells nothing before the answer; the answer has its id.
    page.goto(f"{server.address}/#/audit")
    page.wait_for_selector("text=pair 1 of 5")
    blind = page.inner_text("main")
    assert "chosen" not in blind and "likely right" not in blind and "Voters" not in blind
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("text=pair 2 of 5")
    page.keyboard.press("p")
    page.wait_for_selector("text=What became of it")
    assert [vote["audit"] is not None for vote in kept_votes(home)].count(True) == 1
    assert votes_file(home).exists()

    # A phone: nothing is wider than the screen.
    page.set_viewport_size({"width": 390, "height": 800})
    for view in ("pairs", "audit", "quarantine", "benchmark"):
        page.goto(f"{server.address}/#/{view}")
        page.wait_for_selector("main > *")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
