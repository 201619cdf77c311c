# shellcheck shell=bash disable=SC2034 # the scripts that read this use the variables
# What the scripts of a developer's environment share: what is said, what has to be there, how things are named.
# An environment is an env file; everything else in it is named after its user name:
# Redis container redis-NAME, Kind cluster ottoscaler-NAME, namespace NAME-dev, image ottoscaler:NAME.

# A pod reaches the Redis container on Kind's network by its name and its own port; REDIS_PORT is this machine's.
REDIS_INSIDE_PORT=6379
KIND_NETWORK=kind
PYTHON=${PYTHON:-python3}
FAIL_CODE=1
umask 077 # env files, manifests and kubeconfigs hold secrets

say() { printf '%-10s %s\n' "$1" "$2"; } # WHAT HOW

fail() {
  printf '%s\n' "$@" >&2
  exit "$FAIL_CODE"
}

# -S: it uses nothing that is installed, and to look for that takes Python longer than the work
environment() { "$PYTHON" -I -S deploy/environment.py "$@"; }

check() { # NAME PATTERN EXPECTED: a variable that goes into a command has to match a whole pattern, or be empty
  local LC_ALL=C # a range is one of bytes, not of what a language takes for a letter
  [[ -z ${!1:-} || ${!1} =~ ^($2)$ ]] || fail "$1 is $(printf '%q' "${!1}"), expected $3."
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
  local said where=${DOCKER_HOST:-the default socket}
  where=${where/\/\/*@/\/\/***@}
  said=$(docker version 2>&1 >/dev/null) && return
  case ${said,,} in
    *'permission denied'*) fail "Docker runs, and its socket refuses this account ($(id -un)): sudo usermod -aG docker $(id -un), then log in again." ;;
    '' | *'is the docker daemon running'* | *'connection refused'* | *'no such file or directory'*)
      fail "No Docker daemon answers at $where: start Docker." ;;
    *) fail "Docker does not answer at $where: ${said##*$'\n'}" ;;
  esac
}

# -- an environment

# Which one is meant is checked here, and every value in it by environment.py: a name becomes a part of commands and paths.

env_files() { compgen -G '.env.*.local' || true; }

check_env_file() { check ENV_FILE '[^-[:cntrl:]][^[:cntrl:]]*' 'the path of a file, without a dash at its beginning'; }

choose_env_file() { # ENV_FILE, or the only one there is
  local -a found
  check_env_file
  if [ -z "${ENV_FILE:-}" ]; then
    mapfile -t found < <(env_files)
    case ${#found[@]} in
      0) fail "There is no environment yet: make setup-user USER=<name> makes one." ;;
      1) ENV_FILE=${found[0]} ;;
      *) several "${found[@]/#/  ENV_FILE=}" ;;
    esac
  fi
  [ -f "$ENV_FILE" ] || fail "There is no file $ENV_FILE: make setup-user USER=<name> makes the file of an environment."
  export ENV_FILE
}

several() { fail "There are several environments; say which one:" "$@"; }

use_env_file() { # [check]: read it as the controller does, and name what belongs to it; with check, check all of it first
  choose_env_file
  local settings
  need "$PYTHON"
  settings=$(environment "${1:-shell}" "$ENV_FILE") || exit 1
  eval "$settings"
  name_all
}

name_all() { # after `user`, which environment.py has checked
  redis=redis-$user
  cluster=ottoscaler-$user
  node=$cluster-control-plane
  image=ottoscaler:$user
  state=.cache/deploy/$user
  manifests=$state/manifests
  kept=$state/redis-is-kept
}

lock_environment() { # two commands that make and remove the same things at once would each find half of them
  local wait_s=900
  need flock
  mkdir -p .cache/deploy
  exec 9>".cache/deploy/$user.lock"
  flock --nonblock 9 && return
  say Waiting "another command works on the environment of $user" >&2
  flock --wait "$wait_s" 9 || fail "Another command has worked on the environment of $user for $wait_s s: end it, or wait."
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
  # an older version of this script wrote them here, for everybody to read, and a password with them
  rm -f "$state"/settings.env "$state"/namespace.yaml "$state"/kustomization.yaml
  environment manifests "$ENV_FILE" "$manifests" "$image" "$image_id" || exit 1
}
