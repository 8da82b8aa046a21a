#!/bin/sh
# Starts a virtual machine in Cloud Hypervisor. Written by `lamina vm render`.
# Arguments are handed on behind its own. Run it as root: it makes tap devices and puts them on bridges.
set -eu
FIRMWARE=${FIRMWARE:-/usr/share/cloud-hypervisor/CLOUDHV_EFI.fd}
[ -e /sys/class/net/lam-02bb0285d7 ] || ip tuntap add dev lam-02bb0285d7 mode tap
ip link set dev lam-02bb0285d7 master br0 up
[ -e /sys/class/net/lam-9a39ba9b51 ] || ip tuntap add dev lam-9a39ba9b51 mode tap
ip link set dev lam-9a39ba9b51 master br1 up
exec cloud-hypervisor \
    --firmware "$FIRMWARE" \
    --platform uuid=7897ec0b-f0ea-8998-a49a-75d1a4b5024f \
    --cpus boot=4 \
    --memory size=2048M,shared=on \
    --console off \
    --serial tty \
    --disk vhost_user=true,socket=/run/lamina/vhost/web-root.sock,num_queues=4,queue_size=256,id=disk0 \
        vhost_user=true,socket=/run/lamina/vhost/images.sock,num_queues=4,queue_size=256,id=disk1 \
    --net tap=lam-02bb0285d7,mac=52:d6:1f:3e:cf:2e,id=net0 \
        tap=lam-9a39ba9b51,mac=52:54:00:12:34:56,id=net1 \
    "$@"
