"""Whatever owns a process, a GPU or a connection: vLLM, launchers, the HTTP client.

What belongs here: how something is started, called and ended. What does not: what it is asked.
"""
