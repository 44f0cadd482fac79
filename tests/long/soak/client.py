"""A client that reads an answer's events, in a process that is killed meanwhile.

    python client.py PORT BODY

Prints each line that comes. It imports little, so that it starts quickly.
"""

import sys
from http.client import HTTPConnection

if __name__ == "__main__":
    connection = HTTPConnection("127.0.0.1", int(sys.argv[1]))
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", sys.argv[2].encode(), headers)
    for line in connection.getresponse():
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
