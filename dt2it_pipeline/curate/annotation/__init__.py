"""Step 3 of curation: judges are asked about pairs, within a budget."""
