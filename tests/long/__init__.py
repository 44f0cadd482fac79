"""What takes too long for every change: load, kills, damage, leaks. `make test-long` runs it."""
