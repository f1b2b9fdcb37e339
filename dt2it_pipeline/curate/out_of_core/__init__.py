"""The published algorithm from files to files, for tables that do not fit in memory."""
