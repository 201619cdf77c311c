#!/usr/bin/env bash
# A developer's own environment, made or reused: Redis container, Kind cluster, namespace, rights, env file.
# A second run changes nothing.
#
#   deploy/setup-user.sh NAME            a name, in Korean or English, from deploy/developers
#   deploy/setup-user.sh NAME PORT       anybody else, with a port for their Redis
#
# KIND_NODE_IMAGE, where it is set, is the image of the cluster's node.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/common.sh

main() {
  find_user "${1:-}" "${2:-}"
  check KIND_NODE_IMAGE '[A-Za-z0-9][A-Za-z0-9._:/@-]*' 'the name of an image'
  need kind kubectl
  need_docker
  lock_environment
  say Developer "$user, Redis on port $port, namespace $user-dev, cluster $cluster"
  ensure_redis
  ensure_cluster
  ensure_network
  ensure_env_file
  use_env_file
  ensure_namespace
  load_image "$OTTO_AGENT_IMAGE"
  printf '\n%s is ready. Next: export ENV_FILE=%s; make build && make deploy && make test-event\n' "$ENV_FILE" "$ENV_FILE"
}

find_user() { # NAME PORT: sets user and port, or ends with the list
  local found
  need "$PYTHON"
  found=$(environment user "$1" "$2") || exit 1
  read -r user port <<<"$found"
  name_all
  ENV_FILE=.env.$user.local
}

ensure_redis() {
  if ! has_container "$redis"; then
    port_is_free || fail "Port $port is taken by somebody else, and $redis needs it: end what listens there (ss -ltnp 'sport = :$port')."
    make_redis
  elif ! container_runs "$redis"; then
    docker start "$redis" >/dev/null || fail "The container $redis is there and cannot be started; it is shared with otto-handler, so it is not replaced."
    say Redis "container $redis: started"
  else
    say Redis "container $redis: there already, used as it is"
  fi
  local published
  published=$(docker port "$redis" "$REDIS_INSIDE_PORT/tcp" 2>/dev/null) || true
  published=${published%%$'\n'*}
  [ "${published##*:}" = "$port" ] || fail \
    "The container $redis listens on ${published:-no port of this machine} instead of port $port." \
    "It is shared with otto-handler, so it is not replaced. If nobody needs it: docker rm --force $redis"
  rm -f "$kept" # it has an env file again, or will have one
  keeps_a_file || say Redis "container $redis keeps no append-only file: a restart of it may lose events; otto-handler should start it with --appendonly yes"
}

make_redis() {
  local cid
  mkdir -p "$state"
  cid=$state/cid
  rm -f "$cid"
  if docker run --detach --cidfile "$cid" --name "$redis" --restart unless-stopped --publish "127.0.0.1:$port:$REDIS_INSIDE_PORT" \
    --volume "$redis:/data" redis:7-alpine redis-server --bind 0.0.0.0 --protected-mode no --dir /data --appendonly yes \
    --maxmemory-policy noeviction >/dev/null; then
    say Redis "container $redis on 127.0.0.1:$port: made"
  elif [ -s "$cid" ]; then
    # it was made and does not start: left there, the next run would take it for one of otto-handler's
    docker rm --force "$(<"$cid")" >/dev/null 2>&1 || true
    fail "The container $redis could not be started."
  elif has_container "$redis"; then
    say Redis "container $redis: made by another program at the same time, used as it is"
  else
    fail "The container $redis could not be made."
  fi
}

keeps_a_file() { # or does not say
  [ "$(docker exec "$redis" redis-cli CONFIG GET appendonly 2>/dev/null | tail -n 1)" != no ]
}

port_is_free() {
  "$PYTHON" -I -c 'import socket, sys; socket.create_server(("127.0.0.1", int(sys.argv[1]))).close()' "$port" 2>/dev/null
}

ensure_cluster() {
  if ! has_cluster; then
    mkdir -p "$state"
    kubectl config current-context >"$state/context" 2>/dev/null || rm -f "$state/context" # make clean goes back to it
    make_cluster || fail "The Kind cluster $cluster could not be made."
    # one node needs one name server, and pods of ours ask it for Redis
    kube scale deployment/coredns --namespace kube-system --replicas 1 >/dev/null
    say Kind "cluster $cluster: made"
  elif ! container_runs "$node"; then
    docker start "$node" >/dev/null || fail "The Kind cluster $cluster is there, but its node $node cannot be started: kind delete cluster --name $cluster"
    say Kind "cluster $cluster: started"
  else
    say Kind "cluster $cluster: there already"
  fi
  # after a start, and for a kubeconfig that does not know the cluster
  kubectl config get-contexts "kind-$cluster" >/dev/null 2>&1 || kind export kubeconfig --name "$cluster" >/dev/null 2>&1
  local tries=60
  until kube get --raw /readyz >/dev/null 2>&1; do
    [ $((tries -= 1)) -gt 0 ] || fail "The Kind cluster $cluster does not answer: docker logs $node"
    sleep 1
  done
  kube rollout status deployment/coredns --namespace kube-system --timeout 120s >/dev/null ||
    fail "The name server of $cluster does not get ready: kubectl --context kind-$cluster get pods --namespace kube-system"
}

make_cluster() { # once more where its node was slow: Kind gives it 30 s to boot, and a busy machine can need longer
  local log=$state/kind.log
  for try in first last; do
    if kind create cluster --name "$cluster" --wait 120s ${KIND_NODE_IMAGE:+--image "$KIND_NODE_IMAGE"} 2>&1 | tee "$log"; then return; fi
    [ "$try" = first ] && grep -q 'could not find a log line' "$log" || return
    say Kind "cluster $cluster: its node did not boot within the 30 s that Kind waits; trying once more"
  done
}

ensure_network() { # the controller's pod finds the container by its name there
  if docker container inspect --format '{{range $name, $_ := .NetworkSettings.Networks}}{{println $name}}{{end}}' "$redis" | grep -Fx "$KIND_NETWORK" >/dev/null; then
    say Network "$redis is on Docker's network $KIND_NETWORK already"
  else
    docker network connect "$KIND_NETWORK" "$redis" || fail "The container $redis could not be put on Docker's network $KIND_NETWORK."
    say Network "$redis is put on Docker's network $KIND_NETWORK, where pods find it"
  fi
}

ensure_env_file() {
  if [ -f "$ENV_FILE" ]; then
    say File "$ENV_FILE: there already, kept as it is"
    return
  fi
  environment template "$user" "$port" >"$ENV_FILE.new" || exit 1
  mv -- "$ENV_FILE.new" "$ENV_FILE"
  say File "$ENV_FILE: made"
}

ensure_namespace() { # and all that the controller finds in it: rights, limits, network policies
  local how='there already'
  kube get namespace "$NAMESPACE" >/dev/null 2>&1 || how='made, with ServiceAccount, rights and limits'
  write_manifests
  kube apply --kustomize "$manifests" --selector 'app.kubernetes.io/component!=controller' >/dev/null ||
    fail "The namespace $NAMESPACE could not be set up in $cluster."
  say Namespace "$NAMESPACE: $how"
}

main "$@"
