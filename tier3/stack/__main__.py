"""`python -m tier3.stack --data DIR`: the servers, until standard input ends or SIGINT or SIGTERM arrives."""

import argparse
import signal
import sys
from pathlib import Path

from tier3.stack import ServerError, start

parser = argparse.ArgumentParser(prog="python -m tier3.stack", description=__doc__)
parser.add_argument("--data", type=Path, required=True, help="where the servers keep their data and logs")
parser.add_argument("--standard-ports", action="store_true", help="use 5432, 4222, 6379 and 8200 where they are free")
arguments = parser.parse_args()

signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    with start(arguments.data, standard_ports=arguments.standard_ports, durable=True) as stack:
        for server in stack.servers.values():
            print(server.name, server.url, flush=True)
        while sys.stdin.buffer.read(4096):
            pass
except KeyboardInterrupt:
    pass
except ServerError as error:
    sys.exit(str(error))
