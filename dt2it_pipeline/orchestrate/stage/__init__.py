"""What every asset does: find its result or compute it, check it, and describe it to Dagster."""
