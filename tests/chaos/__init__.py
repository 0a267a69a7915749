"""An attack on real server processes: a load of many conversations, kill -9 at random moments, and a checker that
proves from what clients, the model endpoint and the tools wrote down that nothing was lost and nothing doubled.

`python -m tests.chaos --help` says how to run it.
"""
