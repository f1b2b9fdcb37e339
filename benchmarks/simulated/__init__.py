"""Curation in simulated worlds, whose truth is known: what an audit brings (`audits`), what clean labels lose (`harm`)."""
