"""The planner: what a model costs, and on which cards it runs in real time, before anything is built.

devices.toml   the table of cards, with sources
operations.py  operations and bytes, counted from shapes
roofline.py    seconds a chunk on a card, and what to change
request.py     what is asked
report.py      how it is told
"""
