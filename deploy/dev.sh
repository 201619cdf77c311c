#!/usr/bin/env bash
# The daily round in a developer's environment, which ENV_FILE names; the Makefile calls this.
#
#   deploy/dev.sh run | build | deploy | logs | test-event | status | doctor | ui | k8s-status | redis-cli | clean
#
# OTTO_PYTHON is the Python that has what ottoscaler.py needs, for those that run, send and ask.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/common.sh

ROLLOUT_S=${ROLLOUT_S:-180}
OTTO_PYTHON=${OTTO_PYTHON:-.venv/bin/python}
check ROLLOUT_S '[1-9][0-9]{0,3}' 'a number of seconds from 1 to 9999'
check FORCE '[01]' '1, or nothing'

otto() { "$OTTO_PYTHON" ottoscaler.py "$@"; }

run() { # [options]: the controller on this machine, with the cluster of the env file and no other
  FAIL_CODE=2
  local -a found
  if [ -z "${ENV_FILE:-}" ]; then
    mapfile -t found < <(env_files)
    if [ ${#found[@]} -gt 1 ] && [ -z "${KUBECONFIG:-}" ]; then several "${found[@]/#/  ENV_FILE=}"; fi
    if [ ${#found[@]} = 1 ]; then export ENV_FILE=${found[0]}; fi
  fi
  check_env_file
  # a KUBECONFIG given by hand wins; in a pod the ServiceAccount is meant
  if [ -n "${ENV_FILE:-}" ] && [ -z "${KUBECONFIG:-}${KUBERNETES_SERVICE_HOST:-}" ]; then use_kind_cluster; fi
  exec "$OTTO_PYTHON" ottoscaler.py run "$@"
}

use_kind_cluster() { # as KUBECONFIG, in a file of its own: kubectl's current context may be another developer's
  need "$PYTHON"
  user=$(environment cluster "$ENV_FILE") || exit "$FAIL_CODE"
  [ -n "$user" ] || return 0
  name_all
  need_cluster
  mkdir -p "$state"
  kind get kubeconfig --name "$cluster" >"$state/kubeconfig.new" || fail "Kind gives no kubeconfig for its cluster $cluster."
  mv "$state/kubeconfig.new" "$state/kubeconfig"
  export KUBECONFIG=$PWD/$state/kubeconfig
}

build() {
  use_env_file
  need_docker
  docker build --tag "$image" . || fail "The image $image could not be built."
  say Image "$image is built; make deploy brings it into $cluster"
}

deploy() {
  use_env_file check
  lock_environment
  need_cluster
  has_image "$image" || fail "There is no image $image: make build makes it."
  container_runs "$redis" || fail "The container $redis does not run: make setup-user USER=$user starts it."
  load_image "$image"
  load_image "$OTTO_AGENT_IMAGE"
  write_manifests
  kube apply --kustomize "$manifests"
  kube rollout status deployment/ottoscaler --namespace "$NAMESPACE" --timeout "${ROLLOUT_S}s" || explain_rollout
  remove_old_secrets
  say Deployed "$image in namespace $NAMESPACE; make logs shows what it says"
}

explain_rollout() { # and end
  exec >&2
  printf '\nThe controller did not get ready within %s s. Its pods:\n' "$ROLLOUT_S"
  kube get pods --namespace "$NAMESPACE" --selector app.kubernetes.io/name=ottoscaler --output wide || true
  printf '\nThe last events:\n'
  kube get events --namespace "$NAMESPACE" --sort-by .lastTimestamp 2>/dev/null | tail -n 10 || true
  printf '\nThe end of its log:\n'
  kube logs "$(newest_controller)" --namespace "$NAMESPACE" --tail 20 || true
  exit 1
}

remove_old_secrets() { # after the rollout: until then a pod uses them
  local name
  if [ ! -f "$manifests/secret.yaml" ]; then
    kube delete secret --namespace "$NAMESPACE" --selector ottoscaler.io/from-env-file --ignore-not-found >/dev/null
  fi
  # an older version of this script put the password into ConfigMaps, which everybody in the namespace may read
  kube get configmaps --namespace "$NAMESPACE" --selector app.kubernetes.io/part-of=ottoscaler \
    --output 'jsonpath={range .items[?(@.data.REDIS_PASSWORD)]}{.metadata.name}{"\n"}{end}' |
    while read -r name; do kube delete configmap --namespace "$NAMESPACE" "$name" >/dev/null; done
}

logs() { # [kubectl options]: without any it follows
  use_env_file
  need_cluster
  local pod
  pod=$(newest_controller)
  [ -n "$pod" ] || fail "There is no controller in namespace $NAMESPACE: make deploy brings it there."
  if [ $# -gt 0 ]; then
    kube logs "$pod" --namespace "$NAMESPACE" "$@"
  else
    kube logs "$pod" --namespace "$NAMESPACE" --follow --tail 100
    say End "$pod has ended; make logs follows the one that came after it"
  fi
}

newest_controller() { # while one comes and another goes, kubectl would choose the one that goes
  kube get pods --namespace "$NAMESPACE" --selector app.kubernetes.io/name=ottoscaler \
    --sort-by .metadata.creationTimestamp --output name | tail -n 1
}

test_event() {
  use_env_file
  local -a fields=("type=${TYPE:-scale_up}")
  [ -z "${PODS:-}" ] && [ "${TYPE:-scale_up}" = scale_up ] && PODS=3
  [ -z "${PODS:-}" ] || fields+=("pod_count=$PODS")
  [ -z "${TASK:-}" ] || fields+=("task_id=$TASK")
  [ -z "${PROFILE:-}" ] || fields+=("profile=$PROFILE")
  [ -z "${IMAGE:-}" ] || fields+=("image=$IMAGE")
  [ -z "${CMD:-}" ] || fields+=("command=$(environment command)")
  otto send "${fields[@]}"
}

status() {
  use_env_file
  need_cluster
  printf '%s: Redis %s:%s, cluster %s, namespace %s\n' "$ENV_FILE" "$REDIS_HOST" "$REDIS_PORT" "$cluster" "$NAMESPACE"
  printf '\nDeployment\n'
  kube get deployment,pods --namespace "$NAMESPACE" --selector app.kubernetes.io/name=ottoscaler || true
  printf '\nWorker pods\n'
  kube get pods --namespace "$NAMESPACE" --selector managed-by=ottoscaler || true
  printf '\nTasks\n'
  otto status
  printf '\nLast results\n'
  in_redis --json XREVRANGE "$RESULT_STREAM" + - COUNT 5 | environment results
}

doctor() { # [options]: with the rights of the controller, where it runs in the cluster; otherwise with the developer's
  use_env_file
  use_kind_cluster
  if kube get deployment ottoscaler --namespace "$NAMESPACE" >/dev/null 2>&1; then
    set -- --service-account ottoscaler "$@"
  fi
  otto doctor "$@"
}

ui() { # until Ctrl-C
  use_env_file
  need_cluster
  local pod line
  pod=$(newest_controller)
  [ -n "$pod" ] || fail "There is no controller in namespace $NAMESPACE: make deploy brings it there."
  # kubectl chooses a free port, and says which one
  kube port-forward "$pod" --namespace "$NAMESPACE" --address 127.0.0.1 :8080 | while read -r line; do
    if [[ $line =~ ^Forwarding\ from\ (127\.0\.0\.1:[0-9]+) ]]; then open_page "http://${BASH_REMATCH[1]}/"; fi
  done
  say End "the connection to $pod has ended; make ui opens the page of the one that came after it"
}

open_page() { # URL
  local program
  say Page "$1 until Ctrl-C"
  for program in xdg-open open; do
    if command -v "$program" >/dev/null; then
      "$program" "$1" >/dev/null 2>&1 || true
      return
    fi
  done
}

k8s_status() {
  use_env_file
  need_cluster
  kube get nodes
  kube get all,configmaps,resourcequotas,networkpolicies --namespace "$NAMESPACE"
  kube get events --namespace "$NAMESPACE" --sort-by .lastTimestamp | tail -n 15
}

redis_cli() { # [redis-cli arguments]
  use_env_file
  need_docker
  in_redis "$@"
}

in_redis() {
  container_runs "$redis" || fail "The container $redis does not run: make setup-user USER=$user starts it."
  local -a terminal=() login
  local lines
  if [ -t 0 ] && [ -t 1 ]; then terminal=(--tty); fi
  lines=$(environment login "$ENV_FILE") || exit 1
  mapfile -t login <<<"$lines"
  # the password goes by the environment: everybody on this machine may read a command line
  REDISCLI_AUTH=${login[1]:-} docker exec --interactive "${terminal[@]}" ${login[1]:+--env REDISCLI_AUTH} "$redis" \
    redis-cli ${login[0]:+--user "${login[0]}"} "$@"
}

clean() { # everything of this environment, and the shared Redis only when told so
  local remove_redis='' context
  choose_what_to_clean
  need kind kubectl
  need_docker
  lock_environment
  # the one question comes before the first thing is gone
  if has_container "$redis"; then ask_about_redis; fi
  context=$(kubectl config current-context 2>/dev/null) || true
  if has_cluster; then
    kind delete cluster --name "$cluster" || fail "The Kind cluster $cluster could not be deleted."
    say Kind "cluster $cluster: deleted"
    if [ "$context" = "kind-$cluster" ]; then choose_context; fi
  fi
  if has_image "$image"; then
    docker image rm --force "$image" >/dev/null
    say Image "$image: removed"
  fi
  rm -rf "$state"
  if has_container "$redis"; then clean_redis; fi
  if [ -f "$ENV_FILE" ]; then clean_env_file; fi
}

choose_what_to_clean() { # an env file, or what an earlier clean has left: a Redis that was kept
  local -a found left
  local of_user=''
  check_env_file
  if [ -n "${USER_GIVEN:-}" ]; then
    need "$PYTHON"
    of_user=$(environment name "$USER_GIVEN") || exit 1
    [ -z "${ENV_FILE:-}" ] || [ "$ENV_FILE" = ".env.$of_user.local" ] || fail "USER is $of_user, and ENV_FILE is $ENV_FILE: leave one of them out."
    ENV_FILE=.env.$of_user.local
  elif [ -z "${ENV_FILE:-}" ]; then
    mapfile -t found < <(env_files)
    mapfile -t left < <(compgen -G '.cache/deploy/*/redis-is-kept' | sed 's|^\.cache/deploy/\(.*\)/redis-is-kept$|.env.\1.local|' || true)
    mapfile -t found < <(printf '%s\n' ${found[@]+"${found[@]}"} ${left[@]+"${left[@]}"} | sed '/^$/d' | sort -u)
    case ${#found[@]} in
      0) fail "There is no environment yet: make setup-user USER=<name> makes one." "To clean what is left of one: make clean USER=<name>" ;;
      1) ENV_FILE=${found[0]} ;;
      *) several "${found[@]/#/  ENV_FILE=}" ;;
    esac
  fi
  if [ -f "$ENV_FILE" ]; then
    use_env_file
    [ "${of_user:-$user}" = "$user" ] || fail "$ENV_FILE is the file of another environment, of $cluster: say which one with ENV_FILE."
  elif [[ $ENV_FILE =~ ^\.env\.([a-z0-9-]+)\.local$ ]]; then
    need "$PYTHON"
    user=$(environment name "${BASH_REMATCH[1]}") || exit 1
    name_all
  else
    fail "There is no file $ENV_FILE."
  fi
}

ask_about_redis() {
  local answer=''
  if [ "${FORCE:-}" = 1 ]; then
    answer=yes
  elif [ -t 0 ]; then
    read -r -p "Remove the container $redis with all that is in it? otto-handler uses it, too. [yes/NO] " answer || true
  else
    read -r -t 5 answer || true # from a pipe; one that says nothing must not hold this up
  fi
  if [ "$answer" = yes ]; then remove_redis=1; fi
}

clean_redis() {
  if [ -n "$remove_redis" ]; then
    docker rm --force --volumes "$redis" >/dev/null
    docker volume rm --force "$redis" >/dev/null
    say Redis "container $redis: removed, with its data"
  else
    mkdir -p "$state"
    : >"$kept"
    say Redis "container $redis: kept, since otto-handler uses it, too; to remove it: make clean USER=$user FORCE=1"
  fi
}

choose_context() { # kind takes the current one along, and then kubectl talks to nothing
  local before=''
  [ ! -f "$state/context" ] || before=$(<"$state/context")
  if [ -n "$before" ] && kubectl config use-context "$before" >/dev/null 2>&1; then
    say kubectl "uses the context $before again, as before this environment was made"
    return
  fi
  local -a others
  mapfile -t others < <(kubectl config get-contexts --output name 2>/dev/null | grep '^kind-ottoscaler-' || true)
  if [ ${#others[@]} = 1 ] && kubectl config use-context "${others[0]}" >/dev/null 2>&1; then
    say kubectl "uses the context ${others[0]} now"
  else
    say kubectl "has no current context now: kubectl config get-contexts, then kubectl config use-context <name>"
  fi
}

clean_env_file() { # one that was edited has work in it
  local number='' was
  was=$(environment template "$user" "$REDIS_PORT")
  if [ "$was" = "$(<"$ENV_FILE")" ]; then
    rm -f -- "$ENV_FILE"
    say File "$ENV_FILE: removed"
    return
  fi
  while [ -e "$ENV_FILE.edited$number" ]; do number=$((${number:-1} + 1)); done
  mv -- "$ENV_FILE" "$ENV_FILE.edited$number"
  chmod go= "$ENV_FILE.edited$number"
  say File "$ENV_FILE was edited: it is $ENV_FILE.edited$number now"
}

case ${1:-} in
  run | build | deploy | logs | status | ui | clean) "$@" ;;
  doctor) shift && doctor "$@" ;;
  test-event) shift && test_event "$@" ;;
  k8s-status) shift && k8s_status "$@" ;;
  redis-cli) shift && redis_cli "$@" ;;
  *) fail "$(sed -n '2,6s/^# \{0,1\}//p' "$0")" ;;
esac
