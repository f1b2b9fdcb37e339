"""What the step of the judges logs."""

from dt2it_pipeline.orchestrate.assets.annotation import further_notes
from dt2it_pipeline.storage.artifacts import Artifact


def test_a_note_that_the_votes_have_logged_is_not_logged_again():
    voted = Artifact({}, {"warnings": ["one voter is left out", "labels are assumed right in 80%"]})
    annotated = Artifact({}, {"notes": ["one voter is left out", "labels are assumed right in 85%"]})
    assert further_notes(annotated, voted) == ["labels are assumed right in 85%"]
    assert further_notes(Artifact({}, {}), voted) == []
