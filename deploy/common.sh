# shellcheck shell=bash disable=SC2034 # the scripts that read this use the variables
# What the scripts of a developer's environment share: what is said, what has to be there, how things are named.
# An environment is an env file; everything else in it is named after its user name:
# Redis container redis-NAME, Kind cluster ottoscaler-NAME, namespace NAME-dev, image ottoscaler:NAME.

# A pod reaches the Redis container on Kind's network by its name and its own port; REDIS_PORT is this machine's.
REDIS_INSIDE_PORT=6379
KIND_NETWORK=kind
AGENT_IMAGE=busybox:latest
PYTHON=${PYTHON:-python3}

say() { printf '%-10s %s\n' "$1" "$2"; } # WHAT HOW

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

need() { # PROGRAM...: or say where it comes from
  local program
  for program in "$@"; do
    command -v "$program" >/dev/null && continue
    case $program in
      docker) fail "docker is missing: install Docker (https://docs.docker.com/get-docker/)." ;;
      kind) fail "kind is missing: install it (https://kind.sigs.k8s.io/docs/user/quick-start/#installation)." ;;
      kubectl) fail "kubectl is missing: install it (https://kubernetes.io/docs/tasks/tools/#kubectl)." ;;
      *) fail "$program is missing: install it." ;;
    esac
  done
}

need_docker() {
  need docker
  docker version >/dev/null 2>&1 || fail "No Docker daemon answers at ${DOCKER_HOST:-the default socket}: start Docker."
}

# -- an environment

choose_env_file() { # ENV_FILE, or the only one there is
  local -a found
  if [ -z "${ENV_FILE:-}" ]; then
    mapfile -t found < <(compgen -G '.env.*.local')
    case ${#found[@]} in
      0) fail "There is no environment yet: make setup-user USER=<name> makes one." ;;
      1) ENV_FILE=${found[0]} ;;
      *) fail "There are several environments; say which one:" "${found[@]/#/  ENV_FILE=}" ;;
    esac
  fi
  [ -f "$ENV_FILE" ] || fail "There is no file $ENV_FILE: make setup-user USER=<name> makes the file of an environment."
  export ENV_FILE
}

use_env_file() { # read it as the controller does, and name what belongs to it
  choose_env_file
  local settings
  need "$PYTHON"
  settings=$("$PYTHON" -I deploy/environment.py shell "$ENV_FILE") || exit 1
  eval "$settings"
  user=${KIND_CLUSTER_NAME#ottoscaler-}
  [ "$user" != "$KIND_CLUSTER_NAME" ] || fail "$ENV_FILE: KIND_CLUSTER_NAME is '$KIND_CLUSTER_NAME', expected ottoscaler-<name>."
  name_all
}

name_all() { # after `user`
  redis=redis-$user
  cluster=ottoscaler-$user
  node=$cluster-control-plane
  image=ottoscaler:$user
  manifests=.cache/deploy/$user
}

kube() { kubectl --context "kind-$cluster" "$@"; }

# -- what there is

has_container() { docker container inspect "$1" >/dev/null 2>&1; }

container_runs() { [ "$(docker container inspect --format '{{.State.Running}}' "$1" 2>/dev/null)" = true ]; }

has_image() { docker image inspect "$1" >/dev/null 2>&1; }

# not grep -q: it would end before the writer has, and that would count as a failure
has_cluster() { kind get clusters 2>/dev/null | grep -Fx "$cluster" >/dev/null; }

need_cluster() {
  need kind kubectl
  need_docker
  has_cluster || fail "There is no Kind cluster $cluster: make setup-user USER=$user makes it."
  container_runs "$node" || fail "The Kind cluster $cluster is stopped: make setup-user USER=$user starts it."
}

load_image() { # IMAGE: into the cluster's node, if Docker has it
  if has_image "$1"; then
    kind load docker-image "$1" --name "$cluster" >/dev/null 2>&1 || fail "The image $1 cannot be loaded into the Kind cluster $cluster."
    say Image "$1 is loaded into $cluster"
  else
    say Image "$1 is not in Docker here; the cluster will pull it"
  fi
}

write_manifests() { # a kustomization for this environment, over the overlay for developers
  local image_id
  image_id=$(docker image inspect --format '{{.Id}}' "$image" 2>/dev/null) || true
  mkdir -p "$manifests"
  "$PYTHON" -I deploy/environment.py config "$ENV_FILE" >"$manifests/settings.env"
  cat >"$manifests/namespace.yaml" <<YAML
apiVersion: v1
kind: Namespace
metadata:
  name: $NAMESPACE
  labels: {pod-security.kubernetes.io/enforce: restricted}
YAML
  # the image's id is written down, so that a new image under the same name rolls out, and the same one does not
  cat >"$manifests/kustomization.yaml" <<YAML
# Made from $ENV_FILE, and made anew each time.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: $NAMESPACE
resources:
  - namespace.yaml
  - ../../../deploy/overlays/dev
images:
  - name: ottoscaler
    newName: ${image%:*}
    newTag: ${image#*:}
configMapGenerator:
  - name: ottoscaler
    behavior: merge
    envs: [settings.env]
patches:
  - patch: |
      apiVersion: apps/v1
      kind: Deployment
      metadata: {name: ottoscaler}
      spec: {template: {metadata: {annotations: {ottoscaler.io/image-id: "${image_id:-none}"}}}}
YAML
}
