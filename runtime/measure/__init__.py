"""Measuring: latency (`bench`, `sweep`), long runs (`soak`), studies (`study`), one bundle against another (`compare`)."""
