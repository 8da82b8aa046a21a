#!/bin/sh
# Starts a virtual machine in QEMU. Written by `lamina vm render`.
# Arguments are handed on to QEMU behind its own, for example: -vga std -vnc :1
set -eu
exec qemu-system-x86_64 \
    -nodefaults \
    -no-user-config \
    -name guest=web \
    -uuid 7897ec0b-f0ea-8998-a49a-75d1a4b5024f \
    -machine q35,memory-backend=mem,accel=kvm:tcg \
    -cpu max \
    -smp 4 \
    -m 2048M \
    -object memory-backend-memfd,id=mem,size=2048M,share=on \
    -display none \
    -serial mon:stdio \
    -chardev socket,id=lamina0,path=/run/lamina/vhost/web-root.sock,reconnect-ms=500 \
    -device vhost-user-blk-pci,id=disk0,chardev=lamina0,num-queues=4,disable-legacy=on,bootindex=1,bus=pcie.0,addr=0x4.0,multifunction=on \
    -chardev socket,id=lamina1,path=/run/lamina/vhost/images.sock,reconnect-ms=500 \
    -device vhost-user-blk-pci,id=disk1,chardev=lamina1,num-queues=4,disable-legacy=on,bus=pcie.0,addr=0x4.1,multifunction=on \
    -netdev bridge,id=net0,br=br0 \
    -device virtio-net-pci,id=nic0,netdev=net0,mac=52:d6:1f:3e:cf:2e,romfile=,bus=pcie.0,addr=0x2.0,multifunction=on \
    -chardev socket,id=agent,path=/run/lamina/agent/web.sock,server=on,wait=off \
    -device virtio-serial-pci,id=serial,disable-legacy=on,bus=pcie.0,addr=0xc.1,multifunction=on \
    -device virtserialport,bus=serial.0,chardev=agent,name=org.qemu.guest_agent.0 \
    -device virtio-rng-pci,disable-legacy=on,bus=pcie.0,addr=0xc.0,multifunction=on \
    "$@"
