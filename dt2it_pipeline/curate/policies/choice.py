"""The curation policies of recipes, by name; `curation.policy` chooses.

- `paper`: the published steps as they are (module `paper`).
- `joint`: one model of labels, voters and judges, anchored by what is known to be true (module `joint`).
"""

from __future__ import annotations

from dt2it_pipeline.config.sections.curation import CurationSettings
from dt2it_pipeline.curate.policies.joint import JointPolicy
from dt2it_pipeline.curate.policies.paper import PaperPolicy
from dt2it_pipeline.curate.policies.policy import Policy


def make_policy(settings: CurationSettings) -> Policy:
    """The policy that a recipe asks for."""
    if settings.policy == "paper":
        return PaperPolicy(settings.flip_fraction)
    return JointPolicy(settings.wrong_label_cost, settings.keep_probability, settings.call_cost)
