"""Curation in simulated worlds of known truth: what an audit brings (`audits`), and harm to clean labels (`harm`)."""
