"""Where jobs run: launchers of whole jobs, and of the shards of a running job."""
