"""Sources to tables: readers, manifests, adapters, cleaning, decontamination, the landing folder."""
