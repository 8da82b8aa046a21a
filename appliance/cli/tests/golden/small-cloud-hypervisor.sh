#!/bin/sh
# Starts a virtual machine in Cloud Hypervisor. Written by `lamina vm render`.
# Arguments are handed on behind its own. Run it as root: it makes tap devices and puts them on bridges.
set -eu
FIRMWARE=${FIRMWARE:-/usr/share/cloud-hypervisor/CLOUDHV_EFI.fd}
[ -e /sys/class/net/lam-f78c3dc50e ] || ip tuntap add dev lam-f78c3dc50e mode tap
ip link set dev lam-f78c3dc50e master br0 up
exec cloud-hypervisor \
    --firmware "$FIRMWARE" \
    --platform uuid=362d61c4-c3ec-8036-85be-06782d7fe4d0 \
    --cpus boot=1 \
    --memory size=512M,shared=on \
    --console off \
    --serial tty \
    --disk vhost_user=true,socket=/run/lamina/vhost/small.sock,num_queues=1,queue_size=256,id=disk0 \
    --net tap=lam-f78c3dc50e,mac=52:b1:a7:d7:29:95,id=net0 \
    "$@"
