"""Pictures out: frames to fragments (`fmp4.py`), one channel that never waits, and every way to see it."""
