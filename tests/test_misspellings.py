"""A name that is nearly one of ours is found, and a name of others' never is."""

from __future__ import annotations

import pytest

from ottoscaler.core.events import KNOWN_FIELDS
from ottoscaler.errors import ConfigError
from ottoscaler.misspellings import closest_known_name, misspelled_variables
from ottoscaler.settings import Settings
from tests.test_settings import VARIABLES

KNOWN = {row[0] for row in VARIABLES} | {"ENV_FILE"}
#: What a typing error, a plural, another unit or another spelling makes of a name.
NEARLY = [
    ("MAX_WORKER", "MAX_WORKERS"),
    ("MAX_WROKERS", "MAX_WORKERS"),
    ("MAXWORKERS", "MAX_WORKERS"),
    ("max_workers", "MAX_WORKERS"),
    ("MAX-WORKERS", "MAX_WORKERS"),
    ("OTTO_MAX_WORKERS", "MAX_WORKERS"),
    ("OTTOSCALER_MAX_WORKERS", "MAX_WORKERS"),
    ("REDIS_HOSTS", "REDIS_HOST"),
    ("REDIS_HOSTNAME", "REDIS_HOST"),
    ("REDIS_USER", "REDIS_USERNAME"),
    ("REDIS_PASS", "REDIS_PASSWORD"),
    ("REDIS_PASSWD", "REDIS_PASSWORD"),
    ("REDIS_PASWORD", "REDIS_PASSWORD"),
    ("REDIS_PASSWORT", "REDIS_PASSWORD"),
    ("REDIS_SENTINEL", "REDIS_SENTINELS"),
    ("REDIS_SENTINELS_MASTER", "REDIS_SENTINEL_MASTER"),
    ("REDIS_STREAMS", "REDIS_STREAM"),
    ("AGENT_IMAGE", "OTTO_AGENT_IMAGE"),
    ("OTTO_AGENT_IMG", "OTTO_AGENT_IMAGE"),
    ("OTTO_AGENT_CMD", "OTTO_AGENT_COMMAND"),
    ("LEASE", "LEASE_S"),
    ("LEASE_SECONDS", "LEASE_S"),
    ("WORKER_DEADLINE", "WORKER_DEADLINE_S"),
    ("WORKER_DEADLINE_SECONDS", "WORKER_DEADLINE_S"),
    ("HTTP_ADDR", "HTTP_ADDRESS"),
    ("KUBE_CONFIG", "KUBECONFIG"),
    ("LOG_LEVELS", "LOG_LEVEL"),
    ("LOGLEVEL", "LOG_LEVEL"),
    ("NAMESPACES", "NAMESPACE"),
    ("ENVFILE", "ENV_FILE"),
    ("WORKER_NODE_SELECTORS", "WORKER_NODE_SELECTOR"),
    ("WORKER_TOLERATION", "WORKER_TOLERATIONS"),
]
#: What is in the environment of a container, a shell or a CI job anyway.
_OTHERS = """
    HOSTNAME HOME PATH PWD OLDPWD SHELL SHLVL TERM USER LOGNAME LANG LC_ALL LANGUAGE TZ TMPDIR EDITOR DISPLAY MAIL PS1
    PYTHONPATH PYTHONUNBUFFERED PYTHON_VERSION PYTHONDONTWRITEBYTECODE GPG_KEY VIRTUAL_ENV PIP_INDEX_URL SSL_CERT_FILE
    HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy ALL_PROXY HTTPS_PORT PORT HOST ADDRESS LEVEL
    KUBERNETES_PORT KUBERNETES_SERVICE_HOST KUBERNETES_SERVICE_PORT KUBERNETES_SERVICE_PORT_HTTPS
    KUBERNETES_PORT_443_TCP
    KUBERNETES_PORT_443_TCP_ADDR KUBERNETES_PORT_443_TCP_PORT KUBERNETES_PORT_443_TCP_PROTO
    REDIS_PORT_6379_TCP REDIS_PORT_6379_TCP_ADDR REDIS_PORT_6379_TCP_PORT REDIS_PORT_6379_TCP_PROTO REDIS_SERVICE_HOST
    REDIS_SERVICE_PORT REDIS_SERVICE_PORT_REDIS REDIS_MASTER_SERVICE_HOST REDIS_MASTER_PORT_6379_TCP
    REDIS_HOST_SERVICE_HOST REDIS_HOST_PORT_6379_TCP REDIS_STREAM_SERVICE_PORT OTTOSCALER_SERVICE_HOST
    OTTOSCALER_PORT_8080_TCP OTTOSCALER_SERVICE_PORT_HTTP HTTP_SERVICE_HOST
    REDIS_URL REDIS_URI REDIS_DSN REDIS_SSL REDIS_VERSION REDIS_DOWNLOAD_URL
    POD_NAME POD_NAMESPACE POD_IP POD_UID NODE_NAME SERVICE_ACCOUNT CONTAINER_NAME
    OTTO_TASK_ID OTTO_EVENT_ID OTTO_WORKER_INDEX OTTO_WORKER_COUNT OTTO_ATTEMPT OTTO_TASK_KEY OTTO_POD_NAME
    OTTO_NAMESPACE OTTO_PYTHON OTTO_RUNTIME OTTO_REASON OTTO_JOB_ID TRACEPARENT
    CI GITHUB_ACTIONS GITHUB_TOKEN GITHUB_WORKSPACE RUNNER_TEMP GITLAB_CI BUILD_NUMBER JENKINS_URL
    KIND_CLUSTER_NAME TEST_KUBECONFIG TEST_IMAGE_LOAD XDG_RUNTIME_DIR DBUS_SESSION_BUS_ADDRESS SSH_AUTH_SOCK
    OTEL_SERVICE_NAME OTEL_EXPORTER_OTLP_HEADERS OTEL_RESOURCE_ATTRIBUTES MAX_MEMORY WORKERS WORKER_ID READ
"""


@pytest.mark.parametrize(("name", "ours"), NEARLY)
def test_a_variable_that_is_nearly_ours_is_named_with_ours(name: str, ours: str) -> None:
    """Both names, and never the value."""
    (sentence,) = misspelled_variables({name: "hunter22"}, KNOWN)
    assert sentence == f"{name} is set and is no variable of Ottoscaler's; did you mean {ours}?"


@pytest.mark.parametrize("name", sorted(_OTHERS.split()))
def test_a_variable_of_others_is_no_concern_of_ours(name: str) -> None:
    """No false alarm."""
    assert misspelled_variables({name: "value"}, KNOWN) == ()


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_variable_of_ours_is_one(name: str) -> None:
    """Also beside others that are like it."""
    assert misspelled_variables({name: "value"}, KNOWN) == ()


@pytest.mark.parametrize("name", ["REDIS_HOST_PORT", "MAX_WORKER_PORT", "OTTOSCALER_PORT", "MAX_WORKER"])
def test_the_address_of_a_service_is_no_setting(name: str) -> None:
    """Kubernetes sets one for each Service of the namespace, whatever it is called."""
    assert misspelled_variables({name: "tcp://10.0.0.1:6379"}, KNOWN) == ()


def test_an_empty_variable_counts_as_not_set() -> None:
    """As everywhere."""
    assert misspelled_variables({"MAX_WORKER": " "}, KNOWN) == ()


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("podcount", "pod_count"),
        ("pod-count", "pod_count"),
        ("podCount", "pod_count"),
        ("pod_counts", "pod_count"),
        ("taskid", "task_id"),
        ("task_ids", "task_id"),
        ("eventid", "event_id"),
        ("supersede", "supersedes"),
        ("trace_parent", "traceparent"),
        ("target_replica", "target_replicas"),
        ("modes", "mode"),
        ("types", "type"),
        ("metadatas", "metadata"),
        ("mine", ""),
        ("reason", ""),
        ("job_id", ""),
        ("build_id", ""),
        ("model", ""),
        ("note", ""),
    ],
)
def test_a_field_that_is_nearly_one_of_ours_is_found(name: str, ours: str) -> None:
    """By the same rule."""
    assert closest_known_name(name, KNOWN_FIELDS) == ours


def test_the_settings_name_them(tmp_path: object) -> None:
    """From the environment and from the file."""
    loaded = Settings.load({"MAX_WORKER": "7", "REDIS_SERVICE_HOST": "10.0.0.1"}, "host-1", None)
    assert loaded.misspelled_variables == (
        "MAX_WORKER is set and is no variable of Ottoscaler's; did you mean MAX_WORKERS?",
    )


def test_a_fault_names_them_too() -> None:
    """A user with a typing error in one variable may miss it in the fault of another."""
    with pytest.raises(ConfigError) as caught:
        Settings.load({"REDIS_SENTINEL": "a:1", "REDIS_SENTINEL_MASTER": "main"}, "host-1", None)
    assert any("did you mean REDIS_SENTINELS?" in fault for fault in caught.value.faults)
