"""How old the sources and the report may be, for those who count on rounds that go on.

Dagster's daemon looks at these policies and shows late assets in the UI; it starts nothing. What starts runs are the
sensors and the schedule: an automation condition on the same assets would start them twice, and Dagster has none for
rounds, which depend on the round before.
"""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

from dt2it_pipeline.config.sections.landing import LandingSettings


def freshness(landing: LandingSettings) -> dg.FreshnessPolicy | None:
    """The policy of the sources and the report: late after `stale_hours`, with a warning at half of them.

    Examples:
        >>> freshness(LandingSettings(stale_hours=48)).fail_window.to_timedelta()
        datetime.timedelta(days=2)
    """
    if landing.stale_hours is None:
        return None
    late = timedelta(hours=landing.stale_hours)
    return dg.FreshnessPolicy.time_window(fail_window=late, warn_window=late / 2)
