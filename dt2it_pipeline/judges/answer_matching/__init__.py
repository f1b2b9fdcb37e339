"""What a response asserts, read from its words, and which of two agrees with a short answer."""
