"""The joint model of labels, voters and judges: what it sees, how it is fitted, and what follows for every pair.

`evidence` puts margins, verdicts and lengths on one scale, `priors` says what is assumed before any data, `model` fits
how far each can be believed, and `decisions` keeps, flips or drops pairs by the fitted probability and says which are
worth a judge call.
"""
