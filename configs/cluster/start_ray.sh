#!/usr/bin/env bash
# Starts Ray so that nobody without the token can use it.
#
#     configs/cluster/start_ray.sh head                   # on the first machine; makes the token where there is none
#     configs/cluster/start_ray.sh worker HEAD:6379       # on every other one, once the token's file was copied there
#
# What follows goes to `ray start` as it is (--num-gpus=8, --block under a service manager). A head whose dashboard does
# not start ends with an error, because jobs are submitted through it; --include-dashboard=false does without. A job
# that is stopped has RAY_JOB_STOP_WAIT_TIME_S seconds to take its checkpoint (Ray's default is 3). The token lies in
# RAY_AUTH_TOKEN_PATH, by default ~/.ray/auth_token, and must be readable by its owner alone: copy it with
# `scp -p ~/.ray/auth_token MACHINE:.ray/`. The machine that starts the pipeline needs it too, and RAY_AUTH_MODE=token:
#
#     RAY_AUTH_MODE=token python run_pipeline.py --address HEAD:6379 --workdir /shared/runs
#
# The token says who may, it does not encrypt: keep Ray's ports inside a network that is yours (or use Ray's TLS). The
# dashboard listens on this machine alone; look at it through `ssh -L 8265:127.0.0.1:8265 HEAD`.
set -euo pipefail

usage() { echo "usage: $0 head [ray start's options] | worker HEAD:PORT [ray start's options]" >&2; exit 2; }
refuse() { echo "error: $*" >&2; exit 2; }

export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
export RAY_USAGE_STATS_ENABLED=${RAY_USAGE_STATS_ENABLED:-0}
# Ray gives its dashboard 60 s and each of its parts 30 s to load; on a busy head it then ends, and jobs with it.
export RAY_DASHBOARD_STARTUP_TIMEOUT_S=${RAY_DASHBOARD_STARTUP_TIMEOUT_S:-300}
export RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT=${RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT:-300}
export RAY_JOB_STOP_WAIT_TIME_S=${RAY_JOB_STOP_WAIT_TIME_S:-120}
RAY=${RAY:-$(dirname "$0")/../../.venv/bin/ray}

role=${1:-}
if [ "$role" = head ] && [ ! -e "$RAY_AUTH_TOKEN_PATH" ]; then
    (umask 077; mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")"
     head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")
    echo "made a token: $RAY_AUTH_TOKEN_PATH"
fi
[ -s "$RAY_AUTH_TOKEN_PATH" ] || refuse "no token in $RAY_AUTH_TOKEN_PATH: copy the head's file there"
case $(stat -L -c %a "$RAY_AUTH_TOKEN_PATH") in
    *00) ;;
    *) refuse "others may read $RAY_AUTH_TOKEN_PATH: chmod 600 it, and make a new token if they may have done so" ;;
esac

case $role in
    head)
        shift
        exec "$RAY" start --head --port="${RAY_PORT:-6379}" --dashboard-host=127.0.0.1 --include-dashboard=true "$@" ;;
    worker) [ $# -ge 2 ] || usage; address=$2; shift 2; exec "$RAY" start --address="$address" "$@" ;;
    *) usage ;;
esac
