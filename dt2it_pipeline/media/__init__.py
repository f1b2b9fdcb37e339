"""Images and videos: one safe way to open, confine, hash, store and fetch them, for every stage."""
