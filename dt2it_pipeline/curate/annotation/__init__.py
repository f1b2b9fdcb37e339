"""Step 3 of curation: judges and people decide contested pairs, within a budget."""
