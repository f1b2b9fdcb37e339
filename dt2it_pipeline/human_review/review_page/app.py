"""The server of the review page: its files, the pairs as JSON, images, and answers.

Whatever a request names is looked up among pairs in memory; no part of a request becomes a path.
"""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.human_review.review_page.catalogue import OUTCOMES, Catalogue, Medium
from dt2it_pipeline.human_review.review_page.guard import LOOPBACK, Guard
from dt2it_pipeline.human_review.review_page.journal import NOTES
from dt2it_pipeline.human_review.review_page.kept_answers import NothingToUndo, give, give_note, undo
from dt2it_pipeline.human_review.review_page.query import SORTS, Query
from dt2it_pipeline.human_review.review_page.row_file import ReviewError
from dt2it_pipeline.human_review.review_page.scripts import SCRIPTS
from dt2it_pipeline.human_review.review_page.subject import Shown, Subject
from dt2it_pipeline.human_review.review_page.thumbnails import CONTENT_TYPE, Thumbnails
from dt2it_pipeline.human_review.spreadsheet import named_person
from dt2it_pipeline.human_review.tasks import AUDIT, FIRST, GUIDELINES, SECOND, TIE, shown_sides
from dt2it_pipeline.media.errors import MediaError

_FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    **{
        f"{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in ("page", "gallery", "pair", "server")
    },
}
_MOST_ROWS = 200  # of one answer
_MOST_NAME = 80  # characters of a person's name
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class _Refused(UserError):
    """A request that cannot be fulfilled: the words, and the status of the answer."""

    def __init__(self, words: str, status: int = 400) -> None:
        super().__init__(words)
        self.status = status


def review_app(subject: Subject, token: str | None = None, hosts: Iterable[str] = LOOPBACK) -> Starlette:
    """The review page as an ASGI application.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import pandas as pd
    >>> from starlette.testclient import TestClient
    >>> from dt2it_pipeline.human_review.review_page import OwnTable, table_subject
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "pairs.csv"
    ...     pd.DataFrame({"chosen": ["It is red."], "rejected": ["It is blue."]}).to_csv(file)
    ...     app = review_app(table_subject(OwnTable(file)))
    ...     TestClient(app, base_url="http://127.0.0.1").get("/api/pairs").json()["total"]
    1

    Serve it with any ASGI server: `uvicorn.run(app, host="127.0.0.1", port=8765)`.

    Args:
        subject: what is reviewed, of `round_subject` or `table_subject`.
        token: secret that a browser has to bring once, as `/?token=...`. Give one wherever others can reach the
            server; None: whoever reaches it may read and answer.
        hosts: names, without a port, by which browsers may ask for the page.
    """
    page = _Page(subject)
    routes = [_static(name, file, kind) for name, (file, kind) in _FILES.items()]
    reads = {
        "state": page.state,
        "pairs": page.pairs,
        "pair": page.pair,
        "audit": page.audit,
        "audit_pair": page.audit_pair,
        "quarantine": page.quarantine,
        "benchmark": page.benchmark,
    }
    routes += [Route(f"/api/{name}", _answered(work)) for name, work in reads.items()]
    routes += [Route("/api/image", page.image)]
    routes += [Route("/api/answer", _posted(page.answer), methods=["POST"])]
    routes += [Route("/api/undo", _posted(page.undo), methods=["POST"])]
    return Starlette(routes=routes, middleware=[Middleware(Guard, token=token, hosts=tuple(hosts))])


class _Page:
    """What the page asks for. Methods run in threads, several at once."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._answering = threading.Lock()

    def state(self, given: Mapping[str, str]) -> dict[str, Any]:
        """What the page's head and filters show."""
        shown = self._subject.shown()
        columns = shown.catalogue.columns
        counts = {name: int((columns.outcome == code).sum()) for code, name in enumerate(OUTCOMES)}
        votes, people, pairs = self._subject.answers.count()
        person = _person(given)
        return {
            "version": shown.version,
            "title": shown.catalogue.title,
            "notes": list(shown.catalogue.notes),
            "problem": self._subject.problem,
            "pairs": len(columns),
            "outcomes": counts,
            "contested": int(columns.contested.sum()),
            "sources": list(columns.sources)[:_MOST_ROWS],
            "scripts": [name for code, name in enumerate(SCRIPTS) if (columns.script == code).any()],
            "sorts": SORTS,
            "views": self._subject.views,
            "guidelines": GUIDELINES,
            "answers": {"votes": votes, "people": people, "pairs": pairs},
            "mine": len(self._subject.answers.by_person(person)) if person else 0,
        }

    def pairs(self, given: Mapping[str, str]) -> dict[str, Any]:
        """A part of the list of pairs that a query asks for."""
        shown = self._subject.shown()
        found = shown.finder.find(Query.of(given))
        offset, limit = _part(given)
        mine = self._marks(_person(given))
        cards = [shown.catalogue.card(int(place)) for place in found[offset : offset + limit]]
        return {
            "version": shown.version,
            "total": len(found),
            "offset": offset,
            "rows": [card | {"mine": mine.get(card["id"])} for card in cards],
        }

    def pair(self, given: Mapping[str, str]) -> dict[str, Any]:
        """Everything about a pair."""
        shown = self._subject.shown()
        return self._whole(shown, _place(shown.catalogue, given.get("id", "")), _person(given))

    def audit(self, given: Mapping[str, str]) -> dict[str, Any]:
        """The pairs of the audit, and how far a person has come."""
        drawn, catalogue = self._subject.audit(), self._subject.shown().catalogue
        person = _person(given)
        mine, votes = self._marks(person), self._subject.answers
        name = str(drawn["audit"].iloc[0])
        own = votes.by_person(person) if person else {}
        rows = []
        for pair_id in drawn["pair_id"]:
            counted = pair_id in own and own[pair_id][AUDIT] == name
            mark = mine.get(pair_id) if counted or mine.get(pair_id) in NOTES else None
            rows.append({"id": pair_id, "mine": mark, "gone": catalogue.places.get(pair_id) is None})
        answered = sum(any(vote[AUDIT] == name for vote in votes.votes(pair_id)) for pair_id in drawn["pair_id"])
        return {"audit": name, "rows": rows, "answered": answered, "drawn": len(rows)}

    def audit_pair(self, given: Mapping[str, str]) -> dict[str, Any]:
        """A pair of the audit: blind until this person has answered it for the audit."""
        shown = self._subject.shown()
        pair_id, person = given.get("id", ""), _person(given)
        drawn = self._subject.audit()
        if pair_id not in set(drawn["pair_id"]):
            raise _Refused(f"Pair {pair_id[:80]} was not drawn for this audit.", 404)
        place = _place(shown.catalogue, pair_id)
        vote = self._subject.answers.by_person(person).get(pair_id) if person else None
        if vote is not None and vote[AUDIT] == drawn["audit"].iloc[0]:
            return self._whole(shown, place, person) | {"blind": False}
        mark = self._subject.answers.notes.by_person(person).get(pair_id) if person else None
        return shown.catalogue.blind(place) | {"blind": True, "mine": mark}

    def quarantine(self, given: Mapping[str, str]) -> dict[str, Any]:
        """Quarantined rows by reason, or those of one reason."""
        found = self._subject.quarantine()
        if found is None:
            return {"reasons": [], "total": 0, "rows": [], "note": "A table of your own has no quarantined rows."}
        offset, limit = _part(given)
        total, rows = found.rows(given.get("stage", ""), given.get("reason", ""), offset, limit)
        places = self._subject.shown().catalogue.places
        rows = [row | {"known": bool(row["pair_id"]) and places.get(row["pair_id"]) is not None} for row in rows]
        return {"reasons": found.reasons(), "total": total, "offset": offset, "rows": rows, "note": ""}

    def benchmark(self, given: Mapping[str, str]) -> dict[str, Any]:
        """Pairs of benchmarks that the model gets wrong."""
        found = self._subject.benchmark_errors()
        if found is None:
            return {"total": 0, "measured": 0, "rows": [], "note": "A table of your own has no benchmark."}
        offset, limit = _part(given)
        return {"total": len(found), "measured": found.total, "rows": found.rows(offset, limit), "note": ""}

    async def image(self, request: Request) -> Response:
        """An image of a pair, or a video's first frame: `pair` and `n`, or `benchmark` (a place) and `n`."""
        try:
            made = await anyio.to_thread.run_sync(self._image, dict(request.query_params))
        except (UserError, MediaError, OSError) as error:
            return JSONResponse({"error": str(error)}, getattr(error, "status", 404))
        return Response(made, media_type=CONTENT_TYPE, headers={"cache-control": "private, max-age=3600"})

    def answer(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Keep an answer: `id`, `person`, `choice`, `audit` where it is given for the audit, and `seen` of the pair.

        An answer to a pair that has changed since it was shown (`seen` is another) is refused.

        A note (skip, bad image) takes the person's answer about the pair back: `taken_back` says that there was one.
        """
        person, choice, pair_id = _named(given), given.get("choice"), given.get("id")
        if not isinstance(pair_id, str) or choice not in (FIRST, SECOND, TIE, *NOTES):
            raise _Refused(f"An answer has the id of a pair and one of {', '.join((FIRST, SECOND, TIE, *NOTES))}.")
        catalogue = self._subject.shown().catalogue
        place = catalogue.places.get(pair_id)
        if place is None:
            raise _Refused("This pair is gone: it was made anew or taken out. Your answer was not kept. Go on.", 410)
        if given.get("seen") not in (None, catalogue.seen(place)):
            raise _Refused("This pair has changed since you saw it. Your answer was not kept: look at it again.", 409)
        audit, weight = self._drawn_for(pair_id) if given.get("audit") is True else (None, None)
        answers = self._subject.answers
        taken_back = False
        with self._answering:
            if choice in NOTES:
                taken_back = give_note(answers, pair_id, person, str(choice))
            else:
                (first, _), (second, _) = shown_sides(catalogue.sides[place])
                preferred = {FIRST: first, SECOND: second}.get(choice)
                vote = {"pair_id": pair_id, "person": person, "preferred_id": preferred, AUDIT: audit}
                give(answers, vote, weight)
        return {"kept": choice, "id": pair_id, "taken_back": taken_back}

    def undo(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Take the last answer of a person back, whenever and on whichever page it was given."""
        person = _named(given)
        try:
            with self._answering:
                pair_id = undo(self._subject.answers, person)
        except NothingToUndo as refused:
            raise _Refused(str(refused), 409) from refused
        return {"id": pair_id, "gone": self._subject.shown().catalogue.places.get(pair_id) is None}

    def _drawn_for(self, pair_id: str) -> tuple[str, float]:
        drawn = self._subject.audit()
        row = drawn[drawn["pair_id"] == pair_id]
        if not len(row):
            raise _Refused("This pair was not drawn for this audit. Your answer was not kept.", 409)
        return str(row["audit"].iloc[0]), float(row["weight"].iloc[0])

    def _marks(self, person: str) -> dict[str, str]:
        """What a person answered, by pair: a vote as the id of its side, `tie`, or a note."""
        if not person:
            return {}
        notes = self._subject.answers.notes.by_person(person)
        votes = self._subject.answers.by_person(person)
        return notes | {pair: vote["preferred_id"] or TIE for pair, vote in votes.items()}

    def _whole(self, shown: Shown, place: int, person: str) -> dict[str, Any]:
        found = shown.catalogue.pair(place)
        sides = (None, *shown.catalogue.side_ids(place))
        # A table without ids of its own may have had another pair in this row.
        votes = [vote for vote in self._subject.answers.votes(found["id"]) if vote["preferred_id"] in sides]
        people = [
            {"person": vote["person"], "preferred": vote["preferred_id"], "audit": vote[AUDIT] is not None}
            for vote in votes
        ]
        return found | {
            "version": shown.version,
            "people": people,
            "person": person,
            "mine": self._marks(person).get(found["id"]),
        }

    def _image(self, given: Mapping[str, str]) -> bytes:
        size = given.get("size")
        number = given.get("n", "0")
        if size not in ("small", "large") or not (number.isascii() and number.isdigit() and len(number) < 6):
            raise _Refused("An image has a number, and the size small or large.")
        shown = self._subject.shown()
        place = given.get("benchmark", "")
        if place.isascii() and place.isdigit() and len(place) < 10:
            found = self._subject.benchmark_errors()
            names = [] if found is None else found.media(int(place))
        else:
            names = shown.catalogue.media(_place(shown.catalogue, given.get("pair", "")))
        if int(number) >= len(names):
            raise _Refused("There is no such image.", 404)
        return _png(shown.images, names[int(number)], size)


def _png(images: Thumbnails, medium: Medium, size: Any) -> bytes:
    return images.png(medium, size)


def _place(catalogue: Catalogue, pair_id: str) -> int:
    place = catalogue.places.get(pair_id)
    if place is None:
        raise _Refused("There is no such pair any more: it was made anew or taken out. Go back to the list.", 404)
    return place


def _person(given: Mapping[str, Any]) -> str:
    """Pseudonym of the person who asks; empty where none is named."""
    name = given.get("person")
    if not isinstance(name, str) or not name.strip():
        return ""
    return named_person(name[:_MOST_NAME].encode("utf-8", "replace").decode())


def _named(given: Mapping[str, Any]) -> str:
    person = _person(given)
    if not person:
        raise _Refused("An answer needs your name: write it at the top of the page.")
    return person


def _part(given: Mapping[str, str]) -> tuple[int, int]:
    try:
        offset, limit = int(given.get("offset", "0")), int(given.get("limit", "50"))
    except ValueError:
        offset = limit = -1
    if not (0 <= offset < 1 << 40 and 0 <= limit <= _MOST_ROWS):
        raise _Refused(f"offset is a number from 0, and limit one up to {_MOST_ROWS}.")
    return offset, limit


def _static(name: str, file: str, kind: str) -> Route:
    content = resources.files(__package__).joinpath("static", file).read_bytes()

    async def served(request: Request) -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return Route(f"/{name}", served)


def _answered(work: Callable[[Mapping[str, str]], dict[str, Any]]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        return await _outcome(work, dict(request.query_params))

    return endpoint


def _posted(work: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        try:
            given = json.loads(await request.body())
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict):
            return JSONResponse({"error": "The request must be a JSON object."}, 400)
        return await _outcome(work, given)

    return endpoint


async def _outcome(work: Callable[[Any], dict[str, Any]], given: Any) -> Response:
    """What a function gives as JSON, or why it cannot."""
    try:
        return _json(await anyio.to_thread.run_sync(work, given))
    except _Refused as refused:
        return _json({"error": str(refused)}, refused.status)
    except ReviewError as error:
        return _json({"error": str(error)}, 400)
    except UserError as error:
        return _json({"error": str(error)}, 503)
    except OSError as error:
        return _json({"error": _unusable(error)}, 507)


def _unusable(error: OSError) -> str:
    """What a file that cannot be read or written means for the person who waits."""
    if error.errno in _FULL:
        return "The disk is full: your answer was NOT kept. Make room, then answer again."
    where = f" {error.filename}" if error.filename else ""
    return (
        f"A file of answers cannot be read or written ({error.strerror or error}{where}): if you answered, your answer "
        "was NOT kept. Mend the folder, then try again."
    )


def _json(value: Any, status: int = 200) -> Response:
    # Halves of characters, which a source may hold, are escaped: they have no UTF-8.
    return Response(json.dumps(value, allow_nan=False), status, media_type="application/json")
