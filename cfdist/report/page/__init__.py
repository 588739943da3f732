"""`report.html`: one file that shows a run, a comparison or a sweep, without a network."""
