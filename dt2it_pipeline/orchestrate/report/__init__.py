"""What the report shows, taken from stored artifacts."""
