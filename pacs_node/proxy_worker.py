"""The worker process of the in-line proxy: ``python -m pacs_node.proxy_worker FRONT BACK HEART``."""

import sys

from gateway.proxy import worker
from pacs_node.logs import configure_logs

if __name__ == "__main__":
    configure_logs()
    worker.main(sys.argv[1:])
