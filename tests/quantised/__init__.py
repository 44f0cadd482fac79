"""Models with quantised weights. `make test` runs these apart, with torchao on the path."""
