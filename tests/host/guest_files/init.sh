#!/bin/busybox sh
# The initramfs: loads the modules listed in /lib/order, mounts the root disk and starts systemd.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
while read -r module; do
  $b insmod "/lib/$module" || echo "forge-guest: insmod $module failed"
done < /lib/order
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 200 ]; do $b sleep 0.05; tries=$((tries + 1)); done
$b mount -t ext4 -o rw,noatime /dev/vda /newroot || { echo "forge-guest: no root disk"; $b poweroff -f; }
$b umount /sys
$b umount /proc
$b mount --move /dev /newroot/dev
exec $b switch_root /newroot /lib/systemd/systemd
