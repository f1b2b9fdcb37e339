"""The review page: people look at pairs in a browser, see what curation made of them, and answer.

    dt2it review serve --round 1

`review_app(round_subject(HOME, 1))` is the same as an ASGI application. What belongs here: the page and its server.
What does not: what becomes of answers (`human_review.answers`, and curation).
"""

from dt2it_pipeline.human_review.review_page.app import review_app
from dt2it_pipeline.human_review.review_page.subject import round_subject, table_subject
from dt2it_pipeline.human_review.review_page.table_pairs import OwnTable

__all__ = ["OwnTable", "review_app", "round_subject", "table_subject"]
