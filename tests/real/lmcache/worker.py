"""Workers of lmcache without an engine: they register at a real controller with lmcache's own messages, admit the chunks
of tokens with lmcache's own hashes, and answer what the controller asks of them.

    worker.py PULL REPLY [vllm]      the controller's monitor addresses, as in 127.0.0.1:8300

Standard input takes one JSON object per line; the end of input ends the process.

    {"instance": "vllm-0", "admit": [[1, 2, 3]], "location": "LocalDiskBackend", "hold": ["pin"]}

The first line of an instance registers it; later ones change it. `admit` is a list of prompts (default none),
`location` where they are (default LocalCPUBackend), `hold` names the operations that get no answer until a later
line no longer holds them.

Standard output says, one JSON object per line, what happened: {"instance", "event": "changed", "chunks"} after each
line of input, and {"instance", "event": "asked", "operation", ...} for each message of the controller.

With `vllm`, hashes start where they do in a process that can import vLLM: at the hash of PYTHONHASHSEED. Without it
they start at 0, as in a controller that has no vLLM, and the seed has no effect.
"""

import json
import os
import sys
import threading
import types

import peer

import msgspec
import zmq
from lmcache.v1.cache_controller import message
from lmcache.v1.token_database import ChunkedTokenDatabase

HEARTBEAT_PERIOD_SECONDS = 2

wishes = peer.lines()
pull, reply, *beside = sys.argv[1:]
if beside == ["vllm"]:
    utils = types.ModuleType("vllm.v1.core.kv_cache_utils")
    utils.init_none_hash = lambda function: setattr(utils, "NONE_HASH", function(os.environ["PYTHONHASHSEED"]))
    core = types.ModuleType("vllm.v1.core")
    core.kv_cache_utils = utils
    sys.modules.update({"vllm": types.ModuleType("vllm"), "vllm.v1": types.ModuleType("vllm.v1"), "vllm.v1.core": core})

context = zmq.Context()
database = ChunkedTokenDatabase()
printing = threading.Lock()


def tell(**event):
    with printing:
        print(json.dumps(event), flush=True)


def decode(data):
    return msgspec.msgpack.decode(data, type=message.Msg)


def ask(socket, request):
    """A request to the controller and its answer."""
    socket.send_multipart([b"", msgspec.msgpack.encode(request)])
    return decode(socket.recv_multipart()[-1])


class Worker:
    """The only worker of an instance."""

    def __init__(self, instance):
        self.instance = instance
        self.chunks = {}  # hash -> (location, tokens)
        self.sequence = {}  # location -> number of the next event
        self.held = set()
        self.changed = threading.Condition()
        self.control = context.socket(zmq.REP)
        port = self.control.bind_to_random_port("tcp://127.0.0.1")
        self.identity = {"instance_id": instance, "worker_id": 0, "ip": "127.0.0.1", "port": port, "peer_init_url": None}
        self.events = context.socket(zmq.PUSH)
        self.events.connect(f"tcp://{pull}")
        registration = context.socket(zmq.DEALER)
        registration.connect(f"tcp://{reply}")
        answer = ask(registration, message.RegisterMsg(**self.identity))
        for target in (self.serve, lambda: self.beat(answer.extra_config["heartbeat_url"])):
            threading.Thread(target=target, daemon=True).start()

    def change(self, admit=(), location="LocalCPUBackend", hold=()):
        found = [
            (key, end - start)
            for prompt in admit
            for start, end, key in database.process_tokens(prompt, make_key=False)
        ]
        with self.changed:
            self.chunks.update((key, (location, tokens)) for key, tokens in found)
            self.report(location, message.OpType.ADMIT, [key for key, _ in found])
            self.held = set(hold)
            self.changed.notify_all()
        tell(instance=self.instance, event="changed", chunks=len(self.chunks))

    def report(self, location, kind, keys):
        """Tells the controller which chunks came or went."""
        first = self.sequence.get(location, 0)
        self.sequence[location] = first + len(keys)
        operations = [message.KVOpEvent(op_type=kind, key=key, seq_num=first + n) for n, key in enumerate(keys)]
        batch = message.BatchedKVOperationMsg(
            instance_id=self.instance, worker_id=0, location=location, operations=operations
        )
        self.events.send_multipart([msgspec.msgpack.encode(batch)])

    def beat(self, address):
        socket = context.socket(zmq.DEALER)
        socket.connect(f"tcp://{address}")
        while True:
            ask(socket, message.HeartbeatMsg(**self.identity))
            threading.Event().wait(HEARTBEAT_PERIOD_SECONDS)

    def serve(self):
        while True:
            asked = decode(self.control.recv())
            operation = type(asked).__name__.removesuffix("WorkerMsg").lower()
            details = {key: getattr(asked, key) for key in ("location", "method") if hasattr(asked, key)}
            tokens = getattr(asked, "tokens", None)
            tell(instance=self.instance, event="asked", operation=operation, tokens=len(tokens or []), **details)
            with self.changed:
                self.changed.wait_for(lambda: operation not in self.held)
                answer = self.answer(asked)
            self.control.send(msgspec.msgpack.encode(answer))

    def answer(self, asked):
        match asked:
            case message.PinWorkerMsg():
                return message.PinWorkerRetMsg(num_tokens=self.matched(asked))
            case message.CompressWorkerMsg():
                return message.CompressWorkerRetMsg(num_tokens=self.matched(asked))
            case message.DecompressWorkerMsg():
                return message.DecompressWorkerRetMsg(num_tokens=self.matched(asked))
            case message.ClearWorkerMsg():
                return message.ClearWorkerRetMsg(num_tokens=self.clear(asked.location))
            case message.HealthWorkerMsg():
                return message.HealthWorkerRetMsg(error_code=0)
        return message.ErrorMsg(error=f"Unknown message: {type(asked).__name__}")

    def matched(self, asked):
        """How many of the tokens are here, from the first on; of a method that lmcache does not know, none."""
        if getattr(asked, "method", "cachegen") != "cachegen":
            return 0
        count = 0
        for _, end, key in database.process_tokens(asked.tokens or [], make_key=False):
            if self.chunks.get(key, ("", 0))[0] != asked.location:
                break
            count = end
        return count

    def clear(self, location):
        gone = {key: tokens for key, (where, tokens) in self.chunks.items() if where == location}
        for key in gone:
            del self.chunks[key]
        self.report(location, message.OpType.EVICT, list(gone))
        return sum(gone.values())


workers = {}
for line in wishes:
    wish = json.loads(line)
    instance = wish.pop("instance")
    if instance not in workers:
        workers[instance] = Worker(instance)
    workers[instance].change(**wish)
