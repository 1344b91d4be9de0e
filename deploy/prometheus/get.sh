#!/bin/sh
# Put Prometheus and promtool into build/prometheus, from Debian's package, without installing anything.
# The tests of rules and dashboards look there and on the PATH. Does nothing when they are there already.
set -eu
cd "$(dirname "$0")/../.."
folder=build/prometheus
[ -x "$folder/usr/bin/promtool" ] && exit 0
for tool in apt-get dpkg-deb; do
    command -v "$tool" >/dev/null || { echo "get.sh: no $tool here: install Prometheus in another way, so that promtool is on the PATH" >&2; exit 1; }
done
mkdir -p "$folder"
cd "$folder"
apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }
dpkg-deb -x prometheus_*.deb .
rm -rf prometheus_*.deb etc lib var usr/share # only the two programs are wanted
