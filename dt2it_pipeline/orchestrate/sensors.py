"""The sensor that asks for the next round when a round has succeeded."""

from __future__ import annotations

import dagster as dg

from dt2it_pipeline.recipe import Recipe


def build_sensors(recipe: Recipe, round_job: dg.UnresolvedAssetJobDefinition) -> list[dg.SensorDefinition]:
    """The round sensor; off until somebody switches it on in the UI."""

    @dg.run_status_sensor(
        name="round_sensor",
        run_status=dg.DagsterRunStatus.SUCCESS,
        monitored_jobs=[round_job],
        request_job=round_job,
    )
    def round_sensor(context: dg.RunStatusSensorContext) -> dg.RunRequest | dg.SkipReason:
        """Ask for round k+1 when round k has succeeded, up to the recipe's bound."""
        number = int(context.partition_key or 0) + 1
        if number >= recipe.rounds:
            return dg.SkipReason(f"the recipe ends after round {recipe.rounds - 1}")
        return dg.RunRequest(run_key=f"round-{number}-{context.dagster_run.run_id}", partition_key=str(number))

    return [round_sensor]
