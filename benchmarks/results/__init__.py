"""Results of runs as the tables and figures of the docs."""
