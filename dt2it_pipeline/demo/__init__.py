"""The embedded world, its base model, and how that was made. Nothing else imports it but its own recipe's assets."""
