"""The report: its data, sentences, figures and HTML. Who collects the data is `orchestrate.report`."""
