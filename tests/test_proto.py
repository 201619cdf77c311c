"""The interface to the log handler: as it is promised, and the committed code as the tools make it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from ottoscaler.proto import log_streaming_pb2
from tests.readme import ROOT

PROTO = Path("ottoscaler/proto/log_streaming.proto")
GENERATED = ("log_streaming_pb2.py", "log_streaming_pb2.pyi", "log_streaming_pb2_grpc.py")
FILE = log_streaming_pb2.DESCRIPTOR

#: Message -> its fields by number: name and type; `*` is repeated.
MESSAGES = {
    "LogEntry": {
        1: "worker_id string",
        2: "task_id string",
        3: "timestamp string",
        4: "level string",
        5: "source string",
        6: "message string",
        7: "metadata *LogEntry.MetadataEntry",
        8: "sequence int64",
        9: "raw bytes",
        10: "end LogEnd",
    },
    "LogEnd": {1: "lines int64", 2: "bytes int64", 3: "dropped int64", 4: "gaps int64"},
    "LogBatch": {1: "entries *LogEntry"},
    "LogResponse": {1: "status LogResponse.Status", 2: "message string", 3: "sequence int64"},
    "WorkerRegistration": {
        1: "worker_id string",
        2: "task_id string",
        3: "metadata WorkerMetadata",
        4: "server_endpoint string",
    },
    "WorkerMetadata": {
        1: "pod_name string",
        2: "namespace string",
        3: "node_name string",
        4: "created_at string",
        5: "labels *WorkerMetadata.LabelsEntry",
    },
    "RegistrationResponse": {
        1: "status RegistrationResponse.Status",
        2: "message string",
        3: "session_id string",
        4: "config LoggingConfig",
        5: "last_sequence int64",
    },
    "LoggingConfig": {
        1: "rate_limit int32",
        2: "buffer_size int32",
        3: "max_message_size int32",
        4: "include_metadata bool",
        5: "max_batch int32",
    },
}
ENUMS = {
    "LogResponse": {"ACK": 0, "RETRY": 1, "DROP": 2},
    "RegistrationResponse": {"SUCCESS": 0, "ALREADY_REGISTERED": 1, "SERVER_FULL": 2, "INVALID_REQUEST": 3},
}
TYPES = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_BOOL: "bool",
}


@pytest.mark.parametrize("name", GENERATED)
def test_the_committed_code_is_what_the_tools_make(tmp_path: Path, name: str) -> None:
    """`make proto` changes nothing; the tools are pinned."""
    options = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "--proto_path=.", *options, str(PROTO)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    assert (ROOT / PROTO.parent / name).read_bytes() == (tmp_path / PROTO.parent / name).read_bytes()


def described(field: FieldDescriptor) -> str:
    """Name and type of a field, as the table above has them."""
    kind = field.message_type or field.enum_type
    word = kind.full_name.removeprefix("ottoscaler.v1.") if kind else TYPES[field.type]
    return f"{field.name} {'*' if field.is_repeated else ''}{word}"


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_has_the_promised_fields(name: str) -> None:
    """By number: clients that were generated from an older file read the same."""
    message: Descriptor = FILE.message_types_by_name[name]
    assert {field.number: described(field) for field in message.fields} == MESSAGES[name]
    assert list(message.oneofs) == []


def test_there_is_no_other_message() -> None:
    """Nothing is in the file that the table does not know, and the file stands by itself."""
    assert set(FILE.message_types_by_name) == set(MESSAGES)
    assert (FILE.package, list(FILE.dependencies), dict(FILE.enum_types_by_name)) == ("ottoscaler.v1", [], {})


@pytest.mark.parametrize("name", ENUMS)
def test_an_enum_is_inside_its_message(name: str) -> None:
    """Elsewhere its words would collide with those of the other in languages with one scope per package."""
    (enum,) = FILE.message_types_by_name[name].enum_types
    assert (enum.name, {value.name: value.number for value in enum.values}) == ("Status", ENUMS[name])


def test_the_service_has_the_promised_methods() -> None:
    """One call and two streams in both directions."""
    (service,) = FILE.services_by_name.values()
    found = {
        method.name: (method.input_type.name, method.output_type.name, method.client_streaming, method.server_streaming)
        for method in service.methods
    }
    assert service.full_name == "ottoscaler.v1.LogStreamingService"
    assert found == {
        "RegisterWorker": ("WorkerRegistration", "RegistrationResponse", False, False),
        "StreamLogs": ("LogEntry", "LogResponse", True, True),
        "StreamLogBatches": ("LogBatch", "LogResponse", True, True),
    }
