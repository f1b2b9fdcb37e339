"""Judges of candidate responses, and the rubric by which they score.

One protocol (`protocol.Judge`): a judge sees a question with one or several responses and returns JSON text in the
form of `rubric`. `rubric.parse_reply` reads it whoever wrote it: no judge is assumed to keep the form.
"""
