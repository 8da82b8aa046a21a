//! What guests do, as scripts for the init of [`lamina_harness::Initramfs`].

/// `phase=write`: partition, make a file system, write files (a quarter of them copies of others), note their checksums.
/// `phase=check`: check the file system and every file. `phase=append`: check, then write some more and note it too.
pub const FILES: &str = r#"
wait_for_disk /dev/vda
phase=check
for word in $(cat /proc/cmdline); do case $word in phase=*) phase=${word#phase=} ;; files=*) files=${word#files=} ;; esac; done
files=${files:-24}
write_files() {
    mkdir -p "/mnt/$1"
    n=0
    while [ $n -lt "$files" ]; do
        if [ $((n % 4)) = 3 ]; then
            cp "/mnt/$1/file$((n - 1))" "/mnt/$1/file$n" || fail copy
        else
            dd if=/dev/urandom of="/mnt/$1/file$n" bs=64k count=16 2>/dev/null || fail write
        fi
        n=$((n + 1))
    done
    (cd /mnt && find "$1" -type f | xargs sha256sum > "/mnt/$1.sums") || fail sums
}
check_files() {
    mount -t ext4 -o ro /dev/vda1 /mnt || fail mount
    good=0
    for sums in /mnt/*.sums; do
        (cd /mnt && sha256sum -c "$sums" > /tmp/checked) || fail "checksums: $(grep -v OK /tmp/checked | head -n 3)"
        good=$((good + $(wc -l < /tmp/checked)))
    done
    report files_right $good
    umount /mnt || fail umount
    e2fsck -fn /dev/vda1 > /tmp/fsck 2>&1 || fail "fsck: $(tail -n 3 /tmp/fsck)"
}
if [ "$phase" = write ]; then
    echo ',,L' | sfdisk -q /dev/vda || fail partition
    wait_for_disk /dev/vda1
    mke2fs -q -t ext4 /dev/vda1 || fail mke2fs
    mount -t ext4 /dev/vda1 /mnt || fail mount
    write_files first
    umount /mnt || fail umount
    report written $(awk '$3 == "vda" { print $10 * 512 }' /proc/diskstats)
fi
wait_for_disk /dev/vda1
check_files
if [ "$phase" = append ]; then
    mount -t ext4 /dev/vda1 /mnt || fail mount
    write_files second
    umount /mnt || fail umount
    check_files
fi
"#;

/// Writes, reboots in the same VMM, checks; then stands still with a mounted file system until somebody types a line, and goes
/// on as if nothing had happened.
pub const LIVE_THROUGH: &str = r#"
wait_for_disk /dev/vda
if ! mount -t ext4 /dev/vda /mnt 2>/dev/null; then
    mke2fs -q -t ext4 /dev/vda || fail mke2fs
    mount -t ext4 /dev/vda /mnt || fail mount
    dd if=/dev/urandom of=/mnt/one bs=64k count=64 2>/dev/null || fail write
    (cd /mnt && sha256sum one > sums)
    umount /mnt || fail umount
    report first_boot 1
    reboot -f
    sleep 60
fi
(cd /mnt && sha256sum -c sums > /tmp/checked) || fail "after the reboot: $(cat /tmp/checked)"
sync
report idle 1
read -r line
report told "$line"
echo 3 > /proc/sys/vm/drop_caches
(cd /mnt && sha256sum -c sums > /tmp/checked) || fail "after the daemon came back: $(cat /tmp/checked)"
dd if=/dev/urandom of=/mnt/two bs=64k count=64 conv=fsync 2>/dev/null || fail "write after the daemon came back"
(cd /mnt && sha256sum one two > sums)
umount /mnt || fail umount
e2fsck -fn /dev/vda > /tmp/fsck 2>&1 || fail "fsck: $(tail -n 3 /tmp/fsck)"
mount -t ext4 -o ro /dev/vda /mnt || fail mount
echo 3 > /proc/sys/vm/drop_caches
(cd /mnt && sha256sum -c sums > /tmp/checked) || fail "at the end: $(cat /tmp/checked)"
umount /mnt
report right 1
"#;

/// Fsyncs a known number of times on the bare disk, then on a file of ext4, and reports what the guest's kernel sent.
pub const COUNT_FLUSHES: &str = r#"
wait_for_disk /dev/vda
report cache "$(cat /sys/block/vda/queue/write_cache)"
report before $(flushes vda)
n=0
while [ $n -lt 20 ]; do
    dd if=/dev/urandom of=/dev/vda bs=4k count=1 seek=$n conv=fsync,notrunc 2>/dev/null || fail write
    n=$((n + 1))
done
report bare $(flushes vda)
mke2fs -q -t ext4 /dev/vda || fail mke2fs
mount -t ext4 /dev/vda /mnt || fail mount
sync
report mounted $(flushes vda)
n=0
while [ $n -lt 20 ]; do
    dd if=/dev/urandom of=/mnt/file bs=4k count=1 seek=$n conv=fsync,notrunc 2>/dev/null || fail write
    n=$((n + 1))
done
report files $(flushes vda)
umount /mnt
report after $(flushes vda)
"#;

/// Says what machine it is on: identity, processors, memory, disks.
pub const SHOW_MACHINE: &str = r#"
wait_for_disk /dev/vda
wait_for_disk /dev/vdb
report uuid "$(cat /sys/class/dmi/id/product_uuid)"
report cpus $(nproc)
report memory $(awk '$1 == "MemTotal:" { print $2 }' /proc/meminfo)
report first $(cat /sys/block/vda/size)
report second $(cat /sys/block/vdb/size)
report queues $(ls /sys/block/vda/mq | wc -l)
report card "$(cat /sys/class/net/eth0/address 2>/dev/null || echo none)"
dd if=/dev/urandom of=/dev/vdb bs=64k count=16 conv=fsync 2>/dev/null || fail write
report port "$(cat /sys/class/virtio-ports/*/name)"
"#;

/// Runs the QEMU guest agent and writes to a file system, a line on the console for each write that is durable, until somebody types a
/// line.
pub const WRITE_UNDER_AGENT: &str = r#"
wait_for_disk /dev/vda
mke2fs -q -t ext4 /dev/vda || fail mke2fs
mount -t ext4 /dev/vda /mnt || fail mount
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = org.qemu.guest_agent.0 ] && device=/dev/${port##*/}
done
[ -c "$device" ] || fail "no port for the agent"
mkdir -p /run/agent /var/run
/usr/sbin/qemu-ga -m virtio-serial -p "$device" -t /run/agent -f /run/agent/pid > /run/agent/log 2>&1 &
(
    n=0
    while [ ! -e /run/stop ]; do
        echo $n | dd of=/mnt/file conv=fsync 2>/dev/null || fail write
        echo "LAMINA-WROTE $n"
        n=$((n + 1))
        usleep 20000
    done
    touch /run/stopped
) &
report running 1
read -r line
touch /run/stop
while [ ! -e /run/stopped ]; do usleep 20000; done
umount /mnt || fail umount
e2fsck -fn /dev/vda > /tmp/fsck 2>&1 || fail "fsck: $(tail -n 3 /tmp/fsck)"
report right 1
"#;
