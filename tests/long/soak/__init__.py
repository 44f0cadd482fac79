"""Requests that share passes, while readers leave, records get damaged and the disk fills up.

__main__.py   the program: a store on a small disk, an engine over it, and a server over that
cases.py      what is asked, and what it gives alone
requests.py   requests by many threads, each in one of several ways
clients.py    those by HTTP, some of whose clients are reset or killed
client.py     a client that is a process of its own
faults.py     damaged records and a full disk, and somebody who writes meanwhile
"""
