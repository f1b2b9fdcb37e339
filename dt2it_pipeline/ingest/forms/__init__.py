"""Forms of preference rows: which columns say what, found by looking at a row, whoever published it.

What belongs here: everything that is known of how trainers, annotation tools and papers write two answers and a
preference. One schema that fits no form has an adapter of its own in adapters/.
"""
