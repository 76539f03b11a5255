"""Staying alive: the generator process and its watchdog, health, figures, logs."""
