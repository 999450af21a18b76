#!/bin/bash
# usage (as root): as-tester COMMAND [ARGUMENT...]
# Runs COMMAND as the ordinary user "tester" in a delegated service of that user's own systemd manager, in the
# current directory and with this environment's FORGE_*, PYTHON*, PYTEST* and HYPOTHESIS* variables.
set -eu
variables=()
for name in $(compgen -e | grep -E '^(FORGE_|PYTHON|PYTEST|HYPOTHESIS|LANG$|PATH$)'); do
  variables+=("--setenv=$name=${!name}")
done
# systemd replaces $NAME in a command; a doubled $ stands for itself.
exec runuser -u tester -- env XDG_RUNTIME_DIR=/run/user/1000 HOME=/home/tester \
  systemd-run --user --quiet --wait --pipe --collect -p Delegate=yes --working-directory="$PWD" \
  "${variables[@]}" -- "${@//\$/\$\$}"
