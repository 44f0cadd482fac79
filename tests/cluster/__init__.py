"""What takes servers on this machine: `make test-cluster` runs it."""
