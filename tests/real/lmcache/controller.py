"""The controller of lmcache as its command `lmcache_controller` starts it, until standard input ends."""

import peer

from lmcache.v1.api_server.__main__ import main

peer.lines()
main()
