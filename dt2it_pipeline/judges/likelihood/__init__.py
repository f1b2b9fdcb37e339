"""Judges that read probabilities instead of words."""
