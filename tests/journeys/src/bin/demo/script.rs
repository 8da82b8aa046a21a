//! What the demo's guests do.

/// `phase=write` writes, `phase=check` only looks; `files=N` files of 1 MiB.
pub(crate) const DEMO: &str = r#"
wait_for_disk /dev/vda
for word in $(cat /proc/cmdline); do case $word in phase=*) phase=${word#phase=} ;; files=*) files=${word#files=} ;; esac; done
check() {
    mount -t ext4 -o ro /dev/vda1 /mnt || fail "cannot mount"
    (cd /mnt && sha256sum -c sums > /tmp/checked) || fail "wrong bytes: $(grep -v OK /tmp/checked | head -n 3)"
    say "sha256sum -c: $(wc -l < /tmp/checked) files OK"
    report files_right $(wc -l < /tmp/checked)
    umount /mnt || fail "cannot unmount"
    e2fsck -fn /dev/vda1 > /tmp/fsck 2>&1 || fail "e2fsck: $(tail -n 3 /tmp/fsck)"
    say "e2fsck: clean"
}
say "sees /dev/vda: $(($(cat /sys/block/vda/size) / 2048)) MiB, $(cat /sys/block/vda/queue/write_cache) cache, serial $(cat /sys/block/vda/serial)"
if [ "$phase" = write ]; then
    echo ',,L' | sfdisk -q /dev/vda || fail "cannot partition"
    wait_for_disk /dev/vda1
    mke2fs -q -t ext4 /dev/vda1 || fail "cannot make a file system"
    mount -t ext4 /dev/vda1 /mnt || fail "cannot mount"
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
fi
wait_for_disk /dev/vda1
check
"#;
