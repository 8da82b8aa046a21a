//! What the demo's guests do.

/// `phase=write` writes, `phase=work` writes more and, when it is told to, breaks everything, `phase=copy` leaves a file on what may be a
/// clone, `phase=check` only looks, at every disk that there is. `files=N` and `more=N`: files of 1 MiB.
pub(crate) const DEMO: &str = r#"
wait_for_disk /dev/vda
for word in $(cat /proc/cmdline); do
    case $word in phase=*) phase=${word#phase=} ;; files=*) files=${word#files=} ;; more=*) more=${word#more=} ;; esac
done
check() {
    mount -t ext4 -o ro "/dev/${1}1" /mnt || fail "cannot mount $1"
    (cd /mnt && sha256sum -c sums > /tmp/checked) || fail "wrong bytes on $1: $(grep -v OK /tmp/checked | head -n 3)"
    say "$1: sha256sum -c: $(wc -l < /tmp/checked) files OK"
    report "files_right_$1" $(wc -l < /tmp/checked)
    report "left_there_$1" $([ -e /mnt/left-there ] && echo 1 || echo 0)
    umount /mnt || fail "cannot unmount $1"
    e2fsck -fn "/dev/${1}1" > /tmp/fsck 2>&1 || fail "e2fsck of $1: $(tail -n 3 /tmp/fsck)"
    say "$1: e2fsck: clean"
}
open() {
    wait_for_disk /dev/vda1
    mount -t ext4 /dev/vda1 /mnt || fail "cannot mount"
}
say "sees /dev/vda: $(($(cat /sys/block/vda/size) / 2048)) MiB, $(cat /sys/block/vda/queue/write_cache) cache, serial $(cat /sys/block/vda/serial)"
case $phase in
write)
    echo ',,L' | sfdisk -q /dev/vda || fail "cannot partition"
    wait_for_disk /dev/vda1
    mke2fs -q -t ext4 /dev/vda1 || fail "cannot make a file system"
    open
    say "partitioned, ext4 made and mounted"
    n=0
    while [ $n -lt "$files" ]; do
        if [ $((n % 4)) = 3 ]; then
            cp /mnt/file$((n - 1)) /mnt/file$n || fail "cannot copy"
        else
            dd if=/dev/urandom of=/mnt/file$n bs=64k count=16 2>/dev/null || fail "cannot write"
        fi
        n=$((n + 1))
    done
    (cd /mnt && sha256sum file* > sums) || fail "cannot read back"
    sync
    umount /mnt || fail "cannot unmount"
    say "wrote $files files of 1 MiB, every fourth a copy of the one before"
    ;;
work)
    open
    mkdir /mnt/disk || fail "cannot make a directory"
    n=0
    while [ $n -lt "$more" ]; do
        dd if=/dev/urandom of=/mnt/disk/file$n bs=64k count=16 2>/dev/null || fail "cannot write"
        n=$((n + 1))
    done
    (cd /mnt && sha256sum file* work/* > sums) || fail "cannot read back"
    sync
    report synced "wrote $more files more and synced; the file system stays mounted"
    read -r line
    rm -rf /mnt/*
    sync
    report files_left $(find /mnt -type f | wc -l)
    umount /mnt || fail "cannot unmount"
    dd if=/dev/urandom of=/dev/vda1 bs=64k count=256 conv=fsync 2>/dev/null || fail "cannot write noise"
    mount -t ext4 /dev/vda1 /mnt 2>/tmp/refused && fail "it can still be mounted"
    report refused "$(tr '\n' ' ' < /tmp/refused)"
    ;;
copy)
    open
    echo "only here" > /mnt/left-there || fail "cannot write"
    sync
    umount /mnt || fail "cannot unmount"
    say "wrote a file of its own"
    ;;
recover)
    open
    umount /mnt || fail "cannot unmount"
    say "ext4 replayed its log"
    ;;
esac
if [ "$phase" != work ]; then
    wait_for_disk /dev/vda1
    check vda
    if [ -b /dev/vdb ]; then
        wait_for_disk /dev/vdb1
        check vdb
    fi
fi
"#;
