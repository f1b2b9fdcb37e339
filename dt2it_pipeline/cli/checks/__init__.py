"""What commands look at to say whether an installation is well."""
