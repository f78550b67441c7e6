#!/bin/sh
# Becomes systemd, as the first process of a machine that is this one seen through namespaces: what it
# writes is its own and gone with it. Run in namespaces of its own for mounts, processes and cgroups.
#
#   machine.sh PLACE SERVER CLIENT UNIT SETTINGS
#
# PLACE is an empty directory; the other four are what is installed there. Fails where something of it
# cannot be made; systemd is not reached then.
set -e
place=$1 server=$2 client=$3 unit=$4 settings=$5

mount --make-rprivate /
mount -t tmpfs -o mode=755 machine "$place"
mkdir "$place/upper" "$place/work" "$place/root"
mount -t overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" machine "$place/root"
root=$place/root

# Nothing of this machine can be set from there.
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 dev "$root/dev"
for node in null zero full random urandom tty; do
    : >"$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"

# As here: version 2 alone, or beside the older ones.
groups=$root/sys/fs/cgroup
if [ -d /sys/fs/cgroup/unified ]; then
    mount -t tmpfs -o mode=755 cgroup "$groups"
    mkdir "$groups/systemd" "$groups/unified"
    mount -t cgroup -o none,name=systemd cgroup "$groups/systemd"
    mount -t cgroup2 cgroup "$groups/unified"
else
    mount -t cgroup2 cgroup "$groups"
fi

# Of the units of this machine none is started but the journal.
units=$root/etc/systemd/system
find "$root/etc/systemd/system" "$root/lib/systemd/system" -path '*.wants/*' \
    ! -name 'systemd-journald*' -delete
for program in server client; do
    installed=$root/usr/local/bin/supervisor-rs-$program
    rm -f "$installed"
    : >"$installed"
done
mount --bind "$server" "$root/usr/local/bin/supervisor-rs-server"
mount --bind "$client" "$root/usr/local/bin/supervisor-rs-client"
cp "$unit" "$units/supervisor-rs.service"
rm -rf "$root/etc/supervisor-rs" "$root/srv/children"
mkdir -p "$root/etc/supervisor-rs" "$root/srv/children" "$root/before" "$units/supervisor-rs.service.d"
cp "$settings" "$root/etc/supervisor-rs/server.yml"
printf '[Service]\nWatchdogSec=2s\n' >"$units/supervisor-rs.service.d/soon.conf"
printf '[Unit]\nWants=supervisor-rs.service\n' >"$units/machine.target"
: >"$root/etc/machine-id"

cd "$root"
pivot_root . before
umount -l before
ip link set lo up
exec env -i container=supervisor-rs PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=machine.target --log-target=null --show-status=false </dev/null
