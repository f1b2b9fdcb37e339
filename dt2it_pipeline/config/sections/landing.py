"""Section `landing`: the folder where new sources are dropped, and the schedules that look there."""

from __future__ import annotations

from pydantic import Field

from dt2it_pipeline.config.base import Settings, unit


class LandingSettings(Settings):
    """The folder where manifests are dropped with their data, and how often Dagster looks there."""

    folder: str = Field(
        "landing",
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$",
        description="name of a folder in the artifact home",
    )
    network: bool = Field(
        False,
        description="whether a dropped manifest may make requests: images by address (`media_urls`), and datasets of "
        "the Hub (`hub`)",
    )
    every_seconds: int = Field(
        30,
        ge=1,
        le=86_400,
        json_schema_extra=unit("seconds"),
        description="time between two looks of the landing sensor",
    )
    fresh_round_cron: str = Field(
        "0 * * * *",
        min_length=9,
        json_schema_extra=unit("cron expression"),
        description="when the schedule starts a fresh round if something has landed",
    )
    stale_hours: float | None = Field(
        None,
        ge=0.1,
        le=100_000,
        json_schema_extra=unit("hours"),
        description="age from which on sources and round_report count as late in the UI. null: they never do",
    )
