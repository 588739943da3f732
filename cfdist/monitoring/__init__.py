"""Watching a run: its state, the screen, the stream of events for programs, and Ray's metrics."""
