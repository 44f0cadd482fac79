"""What every room may use, without torch.

inputs.py         checks what users give against type hints; `shown` puts a value into a message
hints.py          type hints as words, for those messages
names.py          names of arguments: aliases, and suggestions for unknown ones
atomic_files.py   files written whole or not at all, and a user's output
threads.py        a pool of threads that its owner closes; `Closable`
beating.py        calls something now and then, in a thread
batches.py        a sequence, so many values at a time
arenas.py         heaps of glibc's allocator, in a program with many threads
forks.py          objects that stay usable across a fork
progress.py       the type of a progress callback
lazy.py           names of a package imported on first use
renamed.py        old names of attributes, which warn
"""
