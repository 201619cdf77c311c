"""What a worker gives back with its result: the text of its container's termination message.

The kubelet reads it from the end of the file that the worker wrote. Of a worker that failed and wrote nothing, it takes
the last lines of the log
(https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/). The worker may write anything
there, so no verdict ever depends on it.
"""

from __future__ import annotations

import re
from typing import Final

#: The file, as the worker sees it: the kubelet mounts it there, and every user may write to it.
PATH: Final = "/dev/termination-log"
#: With this policy the kubelet reads the log of a failed worker that wrote nothing: its last 2 KiB, at most 80 lines.
POLICY: Final = "FallbackToLogsOnError"
#: What the kubelet reads of one file, and what it keeps of all containers of a pod together, bytes.
MAX_BYTES: Final = 4096
MAX_POD_BYTES: Final = 12 * 1024
#: What stands before an output that the kubelet, or this module, has cut.
CUT: Final = "[truncated] "
#: All outputs of one task may take this much room in its hash, bytes: the hash is read as a whole. The result stream
#: has each output in full.
MAX_TASK_BYTES: Final = 256 * 1024

#: A terminal obeys these, and Redis clients of other languages refuse half a surrogate pair. Tab and line ends stay.
_CONTROL: Final = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def output(message: str, containers: int) -> str:
    """The output in a termination message.

    Arguments: the message, in which the API server has put U+FFFD for each byte that is not UTF-8; the number of
    containers of the pod, which share the kubelet's room for messages. Returns at most MAX_BYTES of UTF-8, with U+FFFD
    for each control character, and CUT before them where something may be missing: the kubelet does not say when it
    cuts, so a message that has the largest size counts as cut.
    """
    if not message:
        return ""
    room = min(MAX_BYTES, MAX_POD_BYTES // max(1, containers))
    cut = len(message.encode("utf-8", "surrogatepass")) >= room
    text = _CONTROL.sub("\ufffd", message).encode()
    # the end is kept, as the kubelet does: the last lines of a log say why a program failed
    kept = text[-MAX_BYTES:].decode("utf-8", "ignore")
    return CUT + kept if cut or len(text) > MAX_BYTES else kept
