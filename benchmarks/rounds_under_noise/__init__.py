"""Rounds trained for real where labels are wrong to a known share (`__main__` says what it trains)."""
