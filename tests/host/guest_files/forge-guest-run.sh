#!/bin/bash
# Started by forge-guest.service. The host has put into the shared directory /host/.guest:
#   mounts   lines to mount read-only, outer directories first:
#            "9p<tab>TAG<tab>DIRECTORY" or "disk<tab>DIRECTORY OF THE SECOND DISK<tab>DIRECTORY"
#   env      shell assignments for the script
#   script   what to run, as root
# The script's output goes to /host/.guest/output, its exit status to /host/.guest/status, and what runs shortly
# before the host's patience ends to /host/.guest/processes.
fail() { echo "forge-guest: $*"; exit 1; }

# cache=none: what the guest writes here is on the host at once, even if the guest is killed.
mkdir -p /host
mount -t 9p -o rw,trans=virtio,version=9p2000.L,msize=512000,cache=none host /host || fail "cannot mount /host"

mkdir /run/python-disk
mount -t ext4 -o ro,noatime /dev/vdb /run/python-disk || fail "cannot mount the disk with the host's Python"

share() {  # TYPE SOURCE DIRECTORY
  mkdir -p "$3"
  case $1 in
    9p) mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose "$2" "$3" ;;
    disk) mount --bind "/run/python-disk/$2" "$3" ;;
    *) fail "unknown kind of mount: $1" ;;
  esac || fail "cannot mount $2 on $3"
  # The ordinary user must get there, whatever lies above (/root is 0700). Only the guest's own directories can
  # change; the shares are read-only.
  local parent=$3
  while [ "$parent" != / ]; do
    parent=$(dirname "$parent")
    chmod a+x "$parent" 2>/dev/null
  done
}
while IFS=$'\t' read -r kind source directory; do
  share "$kind" "$source" "$directory"
done < /host/.guest/mounts

set -a
. /host/.guest/env
set +a
(
  sleep $((FORGE_GUEST_SECONDS - $(cut -d. -f1 /proc/uptime) - 30))
  ps --deselect --ppid 2 -p 2 --forest --cols 300 -o pid,ppid,user:8,stat,wchan:24,cgroup:60,args \
    > /host/.guest/processes
) &
bash /host/.guest/script > /host/.guest/output 2>&1
echo $? > /host/.guest/status.part
mv /host/.guest/status.part /host/.guest/status
sync
