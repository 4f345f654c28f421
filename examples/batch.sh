#!/usr/bin/env bash
# Stylize a folder, and try again only what is worth it: batch.sh PHOTOS STYLE OUT [OPTION...]
# Finished pictures are skipped, damaged ones are listed in OUT.failed. Needs jq.
set -uo pipefail
photos=$1 style=$2 out=$3
shift 3
command=(std stylize image "$photos" --style "$style" -o "$out/" --skip-existing --keep-going
  --failed "$out.failed" --json "$@")
: >"$out.events"
for try in 1 2 3 4 5; do
  "${command[@]}" >>"$out.events"
  code=$?
  case $code in
    4 | 5) echo "try $try: exit code $code, again in a while" >&2 && sleep "${PAUSE:-60}" ;; # busy, network
    *) break ;; # done, wrong, or what another try would not change
  esac
done
jq -rs '[.[] | select(.event == "result")] |
  "\(length) stylized in \([.[].seconds] | add // 0 | floor) s"' "$out.events"
jq -r 'select(.event == "error") | "\(.kind): \(.message)"' "$out.events" | sort -u
exit "$code"
