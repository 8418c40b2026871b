"""The controller of lmcache as its command `lmcache_controller` starts it, until standard input ends."""

import threading

import peer

from lmcache.v1.api_server.__main__ import main

threading.Thread(target=lambda: list(peer.lines()), daemon=True).start()
main()
