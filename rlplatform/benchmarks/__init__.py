"""Measures what the platform does: speed, returns, what compression keeps and transfer saves. Files of raw results.

Sees everything but the command line's other commands; nothing else may need it.
"""
