#!/bin/bash
# Runs a search again until it is done: resume.sh tinynet search ... (or tinynet submit ... --yes)
# Everything that a search has done is in its directory, so the same command continues it.
#
#   0           done
#   2           the request is wrong. It is tried once more, because a driver that died on another
#               host holds the search for another 72 seconds; the second time is final.
#   130, 143    a user stopped it: final
#   all others  the head, the driver, nodes or the storage were lost: tried again
#
# TINYNET_RETRIES          attempts after the first one (3)
# TINYNET_RETRY_SECONDS    seconds between two attempts (80)
# TINYNET_LONG_SECONDS     an attempt that took this long does not count (600)
# TINYNET_HEAD_SECONDS     seconds to wait for the head of RAY_API_SERVER_ADDRESS, if set (1800)
set -uo pipefail

: "${1:?usage: resume.sh COMMAND...}"
retries=${TINYNET_RETRIES:-3}
interval=${TINYNET_RETRY_SECONDS:-80}
long=${TINYNET_LONG_SECONDS:-600}
head_seconds=${TINYNET_HEAD_SECONDS:-1800}
child=""
stopped=""

say() { echo "resume.sh: $*" >&2; }
# Ctrl-C is passed on as TERM, because bash starts commands in the background without Ctrl-C.
stop() {
    stopped=yes
    [ -z "$child" ] || kill -TERM "$child" 2> /dev/null
}
trap stop TERM INT

# Runs a command, and passes on the signals that this script receives.
run() {
    "$@" &
    child=$!
    # A signal may have arrived before the command was known.
    [ -z "$stopped" ] || kill -TERM "$child" 2> /dev/null
    while true; do
        wait "$child"
        code=$?
        kill -0 "$child" 2> /dev/null || break
    done
    child=""
}

# The only endpoint of the head that responds without the token.
head_responds() {
    python3 -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)' \
        "${RAY_API_SERVER_ADDRESS%/}/api/gcs_healthz" > /dev/null 2>&1
}
wait_for_head() {
    [ -n "${RAY_API_SERVER_ADDRESS:-}" ] || return 0
    local end=$((SECONDS + head_seconds))
    until head_responds; do
        [ -z "$stopped" ] || return 1
        if [ "$SECONDS" -ge "$end" ]; then
            say "no head responds at $RAY_API_SERVER_ADDRESS for $head_seconds s"
            return 1
        fi
        sleep 1
    done
}

# In a job of Ray, such as a RayJob of KubeRay: a job that ends with any code but 0 is FAILED, and
# KubeRay repeats it on new nodes. A job that was stopped is not repeated.
stop_own_job() {
    local id
    id=$(python3 -c 'import json, os
print(json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]["job_submission_id"])')
    say "stopping the job $id, so that it is not repeated"
    ray job stop --no-wait "$id" > /dev/null && run sleep 60
}

refused=""
left=$retries
while true; do
    wait_for_head || exit 1
    began=$SECONDS
    run "$@"
    case $code in
        0 | 130 | 143) exit "$code" ;;
        2) [ -z "$refused" ] || break ;;
    esac
    [ -z "$stopped" ] || exit "$code"
    # A command that ran for long has made progress: it has all attempts again.
    if [ $((SECONDS - began)) -ge "$long" ]; then left=$retries; fi
    [ "$left" -gt 0 ] || break
    if [ "$code" -eq 2 ]; then refused=yes; else refused=""; fi
    say "exit code $code: trying again in $interval s ($left attempts left)"
    left=$((left - 1))
    run sleep "$interval"
    [ -z "$stopped" ] || exit 143
done
result=$code
say "exit code $result: giving up"
if [ "$result" -eq 2 ] && [ -n "${RAY_JOB_CONFIG_JSON_ENV_VAR:-}" ]; then stop_own_job; fi
exit "$result"
