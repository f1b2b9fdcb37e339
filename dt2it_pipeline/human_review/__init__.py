"""Tasks for people (Label Studio, Argilla, spreadsheets), and their answers on the way back.

`draw_audit` draws pairs at random for people to check; `read_audit` and `audit_of_home` give what they said.
"""

from dt2it_pipeline.human_review.audit import audit_of_home, draw_audit
from dt2it_pipeline.human_review.audit_answers import load_audit, read_audit

__all__ = ["audit_of_home", "draw_audit", "load_audit", "read_audit"]
