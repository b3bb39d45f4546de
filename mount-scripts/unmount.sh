#!/usr/bin/env bash
# Unmounts the build cache, dead or alive, if it is mounted: unmount.sh [MOUNTPOINT]. Returns once it is gone.
set -euo pipefail

exec aztec-cache unmount "$@"
