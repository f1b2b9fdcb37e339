"""Judges of candidate responses, and the rubric by which they score.

One protocol (`protocol.Judge`): a judge sees a question with one or several responses and returns JSON text in the
form of `rubric`. Whoever wrote it, it is read by `rubric.parse_reply`: no judge is trusted to keep the form.
"""
