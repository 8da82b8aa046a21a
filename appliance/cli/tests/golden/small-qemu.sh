#!/bin/sh
# Starts a virtual machine in QEMU. Written by `lamina vm render`.
# Arguments are handed on to QEMU behind its own, for example: -vga std -vnc :1
set -eu
OVMF=${OVMF:-/usr/share/OVMF}
[ -e ./small-vars.fd ] || cp "$OVMF/OVMF_VARS_4M.fd" ./small-vars.fd
exec qemu-system-x86_64 \
    -nodefaults \
    -no-user-config \
    -name guest=small \
    -uuid 362d61c4-c3ec-8036-85be-06782d7fe4d0 \
    -machine q35,memory-backend=mem,accel=kvm:tcg \
    -cpu max \
    -smp 1 \
    -m 512M \
    -object memory-backend-memfd,id=mem,size=512M,share=on \
    -display none \
    -serial mon:stdio \
    -drive "if=pflash,unit=0,format=raw,readonly=on,file=$OVMF/OVMF_CODE_4M.fd" \
    -drive if=pflash,unit=1,format=raw,file=./small-vars.fd \
    -chardev socket,id=lamina0,path=/run/lamina/vhost/small.sock,reconnect-ms=500 \
    -device vhost-user-blk-pci,id=disk0,chardev=lamina0,num-queues=1,disable-legacy=on,bootindex=1,bus=pcie.0,addr=0x4.0,multifunction=on \
    -netdev bridge,id=net0,br=br0 \
    -device virtio-net-pci,id=nic0,netdev=net0,mac=52:b1:a7:d7:29:95,romfile=,bus=pcie.0,addr=0x2.0,multifunction=on \
    -device virtio-rng-pci,disable-legacy=on,bus=pcie.0,addr=0xc.0,multifunction=on \
    "$@"
