#!/usr/bin/env bash
# Mounts the build cache and returns once it answers: mount.sh [MOUNTPOINT] [OPTION...], with the options of `aztec-cache mount`.
# One that is mounted there already will do; one whose daemon died is replaced. Files are kept in CACHE_LOCAL_DIR, in
# ~/.aztec-cache when that is unset, and nowhere when it is empty.
here=${BASH_SOURCE[0]}
[[ ! -L $here ]] || here=$(readlink -f -- "$here")
[[ $here == */* ]] || here=./$here
here=${here%/*}
# shellcheck source=cache_common
source "$here/cache_common"

export CACHE_LOCAL_DIR=${CACHE_LOCAL_DIR-$HOME/.aztec-cache}
export AZTEC_CACHE_MOUNTPOINT=${AZTEC_CACHE_MOUNTPOINT:-$HOME/.aztec-cache/remote}
if (($#)) && [[ $1 != -* ]]; then
  AZTEC_CACHE_MOUNTPOINT=$1
  shift
fi

find_mount || aztec-cache mount "$AZTEC_CACHE_MOUNTPOINT" "$@" || {
  status=$?
  # Another one may have been quicker.
  find_mount || exit "$status"
}
