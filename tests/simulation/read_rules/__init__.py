"""Read rules side by side: on one schedule of writes and faults, what each rule finds wrongly and what it costs.

The writes and faults run once. Every rule searches that one cluster as a shadow: at the same moments, for the same
queries, over a network that is cut and slowed like the real one, but with chance of its own and without leaving a
trace. What a shadow changes (a repair that its search asks for) happens in a copy. So no rule can help or disturb
another, nor the writes; a test compares the histories.
"""
