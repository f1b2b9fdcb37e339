"""From table rows to batches: encoding, collation, images, features of the vision encoder."""
