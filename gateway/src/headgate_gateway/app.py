"""The composition of a worker's application: the only place that knows every room.

May import everything.
"""
