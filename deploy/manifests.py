"""How an env file gets into a cluster: its settings as a ConfigMap, its secrets as the Secret of the Deployment.

Nothing secret is written to a file that others may read, or into a ConfigMap: everybody who may look at a namespace may
read its ConfigMaps.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ottoscaler.settings import UNSUPPORTED_VARIABLES, Settings
from ottoscaler.settings_files import read_env_file, redact_value

OVERLAY: Final = Path(__file__).resolve().parent / "overlays" / "dev"
#: Of this machine only. In the cluster the probes ask at the manifests' port, and each pod is a consumer of its own.
NOT_IN_CLUSTER: Final = frozenset(
    {
        *("ENV_FILE", "KUBECONFIG", "NAMESPACE", "HTTP_PORT", "HTTP_ADDRESS", "HTTP_TOKEN_FILE", "REDIS_CONSUMER"),
        "OTEL_EXPORTER_OTLP_HEADERS",  # a secret, which belongs into no ConfigMap
        # logs need a right and packages that the overlay for developers leaves out; their files are on this machine
        *("LOG_HANDLER_ADDRESS", "LOG_HANDLER_CA_FILE", "LOG_HANDLER_CERT_FILE", "LOG_HANDLER_KEY_FILE"),
        *("LOG_HANDLER_TOKEN_FILE", "LOG_HANDLER_PLAINTEXT", "WORKER_LOGS", "LOG_DRAIN_S"),
    }
)
#: Variables with a value that is itself a secret.
SECRET_VALUES: Final = ("REDIS_PASSWORD", "OTEL_EXPORTER_OTLP_HEADERS")
#: What goes into the Secret and not into the ConfigMap: variable -> key.
IN_SECRET: Final[Mapping[str, str]] = {
    "REDIS_PASSWORD": "password",
    "REDIS_PASSWORD_FILE": "password",
    "REDIS_CA_FILE": "ca.crt",
}
#: The Secret, where the Deployment mounts it, and which variable then names each key's file.
SECRET: Final = "ottoscaler-redis"
MOUNT: Final = "/etc/ottoscaler/redis"
FILES: Final[Mapping[str, str]] = {"password": "REDIS_PASSWORD_FILE", "ca.crt": "REDIS_CA_FILE"}
#: The policy's ConfigMap, its key, and where the Deployment mounts it.
POLICY: Final = "ottoscaler-policy"
POLICY_KEY: Final = "policy.yaml"
POLICY_MOUNT: Final = "/etc/ottoscaler/policy"
#: On the Secret, so that it goes again when the file names none any more; one that somebody made by hand stays.
FROM_ENV_FILE: Final = "ottoscaler.io/from-env-file"
RESTRICTED: Final = "pod-security.kubernetes.io/enforce"
LOCAL: Final = ("localhost", "127.0.0.1", "::1")


class _Asked(dict[str, str]):
    """An empty environment that notes which variables are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, key: str, default: Any = None, /) -> Any:
        self.names.add(key)
        return default


def known() -> frozenset[str]:
    """The variables that the controller reads and that have an effect."""
    asked = _Asked()
    Settings.load(asked, "host", None)
    return frozenset(asked.names).difference(UNSUPPORTED_VARIABLES)


def is_local(values: Mapping[str, str]) -> bool:
    """Whether the file's Redis is the container on this machine."""
    return (values.get("REDIS_HOST", "").strip() or "localhost") in LOCAL


def in_cluster(values: Mapping[str, str]) -> dict[str, str]:
    """The variables as the controller in the cluster needs them: this machine's Redis is the container there, and files
    are where the Secret is mounted. What the controller does not read stays here: it may be another program's secret.
    """
    names = known() - NOT_IN_CLUSTER - IN_SECRET.keys()
    passed = {name: value for name, value in values.items() if name in names and value}
    passed |= {FILES[IN_SECRET[name]]: f"{MOUNT}/{IN_SECRET[name]}" for name in IN_SECRET if values.get(name)}
    if passed.get("POLICY_FILE"):
        passed["POLICY_FILE"] = f"{POLICY_MOUNT}/{POLICY_KEY}"
    if is_local(values):
        container = f"redis-{values['KIND_CLUSTER_NAME'].strip().removeprefix('ottoscaler-')}"
        passed |= {"REDIS_HOST": container, "REDIS_PORT": "6379"}
    return passed


def secrets(values: Mapping[str, str]) -> dict[str, str]:
    """The content of the Secret. Raises SystemExit with a sentence for a file that cannot be read."""
    found = {}
    for name, key in IN_SECRET.items():
        if not (value := values.get(name)):
            continue
        try:
            found[key] = value if name == "REDIS_PASSWORD" else Path(value.strip()).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise SystemExit(f"{name}={redact_value(value)}: expected a readable text file ({error})") from None
    return found


def policy(values: Mapping[str, str]) -> str:
    """The text of the policy; empty where the file names none. Raises SystemExit with a sentence if it is not readable.

    The controller reads it: there is no YAML where this runs.
    """
    if not (path := values.get("POLICY_FILE", "").strip()):
        return ""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SystemExit(f"POLICY_FILE={redact_value(path)}: expected a readable text file ({error})") from None


def write(path: str, folder: Path, image: str, image_id: str) -> None:
    """Write the kustomization of an environment, over the overlay for developers, into a new folder of ours alone.

    Each object is JSON, which is YAML too: no value can end its string. The image's id is written down, so that a new
    image under the same name rolls out, and the same one does not. Raises SystemExit with a sentence.
    """
    values, faults = read_env_file(path)
    if faults:
        raise SystemExit("\n".join(faults))
    namespace = values["NAMESPACE"].strip()
    objects = {"namespace.yaml": _object("v1", "Namespace", namespace, {RESTRICTED: "restricted"})}
    if content := secrets(values):
        encoded = {key: base64.b64encode(text.encode()).decode() for key, text in content.items()}
        objects["secret.yaml"] = {**_object("v1", "Secret", SECRET, {FROM_ENV_FILE: "true"}), "data": encoded}
    if text := policy(values):
        objects["policy.yaml"] = {**_object("v1", "ConfigMap", POLICY), "data": {POLICY_KEY: text}}
    annotations = {"ottoscaler.io/image-id": image_id or "none"}
    template = {"metadata": {"annotations": annotations}}
    patch = {**_object("apps/v1", "Deployment", "ottoscaler"), "spec": {"template": template}}
    name, _, tag = image.rpartition(":")
    objects["kustomization.yaml"] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": [*objects, os.path.relpath(OVERLAY, folder.resolve())],
        "images": [{"name": "ottoscaler", "newName": name, "newTag": tag}],
        # a file of lines, for kustomize takes the quotes off the ends of a literal's value
        "configMapGenerator": [{"name": "ottoscaler", "behavior": "merge", "envs": ["settings.env"]}],
        "patches": [{"patch": json.dumps(patch)}],
    }
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    for file, each in objects.items():
        _write(folder / file, json.dumps(each, indent=2, ensure_ascii=False))
    _write(folder / "settings.env", "".join(f"{name}={value}\n" for name, value in in_cluster(values).items()))


def _object(version: str, kind: str, name: str, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, **({"labels": dict(labels)} if labels else {})}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _write(path: Path, text: str) -> None:
    """A new file that only its owner may read from its first byte on."""
    with open(path, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
