#!/bin/sh
# The image's entrypoint. With arguments it runs them in its place; else it checks the environment, naming all that is
# missing in one message, and becomes the service.
set -eu

[ "$#" -eq 0 ] || exec "$@"

: "${PORT:=8080}" "${LOG_LEVEL:=info}"
export PORT LOG_LEVEL

missing=
lacks() { missing="$missing${missing:+, }$1"; }

[ "${VAULT_ADDR:-}" ] || lacks VAULT_ADDR
case "${VAULT_TOKEN:+login}${VAULT_ROLE:+login}:${VAULT_ROLE_ID:+id}${VAULT_SECRET_ID:+secret}" in
    login* | :idsecret) ;;
    :id) lacks VAULT_SECRET_ID ;;
    :secret) lacks VAULT_ROLE_ID ;;
    *) lacks "VAULT_ROLE (or VAULT_TOKEN, or VAULT_ROLE_ID with VAULT_SECRET_ID)" ;;
esac
if [ "$missing" ]; then
    echo "run.sh: missing environment variables: $missing" >&2
    exit 64 # EX_USAGE
fi

# exec, so that SIGTERM reaches the service and not a shell that would wait for it. Only when the service has drained,
# for SHUTDOWN_GRACE_S at most, does uvicorn begin to count its own timeout.
exec uvicorn --factory agent_executor.app:main \
    --host 0.0.0.0 --port "$PORT" --proxy-headers --no-access-log \
    --http agent_executor.connections:Connection --ws none --no-server-header \
    --timeout-graceful-shutdown 5
