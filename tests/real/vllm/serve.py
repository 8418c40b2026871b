"""A vLLM on the CPU with the tiny model, until standard input ends.

    serve.py MODEL PORT [argument of `vllm serve`...]

It must be the first of its process group: the whole group is killed at the end, since vLLM starts processes of its own.
"""

import os
import signal
import subprocess
import sys
import threading

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOOPBACK_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
}
ARGUMENTS = [
    "--served-model-name=tiny",
    "--load-format=dummy",
    "--host=127.0.0.1",
    "--max-model-len=2048",
    "--max-num-seqs=8",
    "--enforce-eager",
    "--dtype=bfloat16",
    "--enable-prompt-tokens-details",
]


def end_with_input():
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


model, port, *more = sys.argv[1:]
vllm = os.path.join(os.path.dirname(sys.executable), "vllm")
command = [vllm, "serve", model, f"--port={port}", *ARGUMENTS, *more]
threading.Thread(target=end_with_input, daemon=True).start()
sys.exit(subprocess.run(command, env=os.environ | ENVIRONMENT, stdin=subprocess.DEVNULL).returncode)
