#!/usr/bin/env bash
# The daily round in a developer's environment, which ENV_FILE names; the Makefile calls this.
#
#   deploy/dev.sh build | deploy | logs | test-event | status | k8s-status | redis-cli | clean
#
# OTTO is the command line of ottoscaler.py with its Python, for those that send and ask.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/common.sh

ROLLOUT_S=${ROLLOUT_S:-180}

build() {
  use_env_file
  need_docker
  docker build --tag "$image" . || fail "The image $image could not be built."
  say Image "$image is built; make deploy brings it into $cluster"
}

deploy() {
  use_env_file
  need_cluster
  has_image "$image" || fail "There is no image $image: make build makes it."
  container_runs "$redis" || fail "The container $redis does not run: make setup-user USER=$user starts it."
  load_image "$image"
  load_image "$OTTO_AGENT_IMAGE"
  write_manifests
  kube apply --kustomize "$manifests"
  kube rollout status deployment/ottoscaler --namespace "$NAMESPACE" --timeout "${ROLLOUT_S}s" || explain_rollout
  say Deployed "$image in namespace $NAMESPACE; make logs shows what it says"
}

explain_rollout() { # and end
  exec >&2
  printf '\nThe controller did not get ready within %s s. Its pods:\n' "$ROLLOUT_S"
  kube get pods --namespace "$NAMESPACE" --selector app.kubernetes.io/name=ottoscaler --output wide || true
  printf '\nThe last events:\n'
  kube get events --namespace "$NAMESPACE" --sort-by .lastTimestamp 2>/dev/null | tail -n 10 || true
  printf '\nIts last words:\n'
  kube logs "$(newest_controller)" --namespace "$NAMESPACE" --tail 20 || true
  exit 1
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
  $OTTO send "${fields[@]}"
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
  $OTTO status
  printf '\nLast results\n'
  in_redis --json XREVRANGE "$RESULT_STREAM" + - COUNT 5 | "$PYTHON" -I deploy/environment.py results
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
  if [ -t 0 ] && [ -t 1 ]; then
    docker exec --interactive --tty "$redis" redis-cli "$@"
  else
    docker exec --interactive "$redis" redis-cli "$@"
  fi
}

clean() { # everything of this environment, and the shared Redis only when told so
  use_env_file
  need kind kubectl
  need_docker
  if has_cluster; then
    kind delete cluster --name "$cluster" || fail "The Kind cluster $cluster could not be deleted."
    say Kind "cluster $cluster: deleted"
  fi
  if has_image "$image"; then
    docker image rm --force "$image" >/dev/null
    say Image "$image: removed"
  fi
  if has_container "$redis"; then clean_redis; fi
  rm -rf "$manifests"
  rm -f "$ENV_FILE"
  say File "$ENV_FILE: removed"
}

clean_redis() {
  local answer=''
  if [ "${FORCE:-}" = 1 ]; then
    answer=yes
  elif [ -t 0 ]; then
    read -r -p "Remove the container $redis with all that is in it? otto-handler uses it, too. [yes/NO] " answer
  fi
  if [ "$answer" = yes ]; then
    docker rm --force --volumes "$redis" >/dev/null
    docker volume rm --force "$redis" >/dev/null
    say Redis "container $redis: removed, with its data"
  else
    say Redis "container $redis: kept, since otto-handler uses it, too; to remove it: docker rm --force $redis && docker volume rm --force $redis"
  fi
}

case ${1:-} in
  build | deploy | logs | status | clean) "$@" ;;
  test-event) shift && test_event "$@" ;;
  k8s-status) shift && k8s_status "$@" ;;
  redis-cli) shift && redis_cli "$@" ;;
  *) fail "$(sed -n '2,6s/^# \{0,1\}//p' "$0")" ;;
esac
