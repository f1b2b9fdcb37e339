"""Forms of preference rows."""
