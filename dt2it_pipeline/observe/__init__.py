"""What a person or a monitoring system sees of running processes: log lines and progress. No stage's own matters."""
