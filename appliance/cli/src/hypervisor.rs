//! What each hypervisor needs to use a volume, ready to paste. Why each argument is there stands in `lamina volume attach --help`.

use lamina_contract::ByteSize;

use crate::shell::quoted;
use crate::volume_verbs::Hypervisor;

/// The disk and guest that the text is for.
pub(crate) struct Disk<'a> {
    /// The volume's name.
    pub(crate) name: &'a str,
    /// Its socket.
    pub(crate) socket: &'a str,
    /// The guest's memory.
    pub(crate) memory: ByteSize,
    /// Queues.
    pub(crate) queues: u16,
}

/// The text for stdout.
pub(crate) fn text(hypervisor: Hypervisor, disk: &Disk<'_>) -> String {
    match hypervisor {
        Hypervisor::Qemu => qemu(disk),
        Hypervisor::CloudHypervisor => cloud_hypervisor(disk),
        Hypervisor::Libvirt => libvirt(disk),
    }
}

fn qemu(disk: &Disk<'_>) -> String {
    let Disk { name, queues, .. } = disk;
    let memory = mebibytes(disk.memory);
    // A comma ends a value in QEMU's options; two are one.
    let socket = disk.socket.replace(',', ",,");
    let arguments = [
        format!("-m {memory}M"),
        "-machine q35,memory-backend=mem".to_owned(),
        format!("-object memory-backend-memfd,id=mem,size={memory}M,share=on"),
        format!("-chardev {}", quoted(&format!("socket,id=lamina-{name},path={socket},reconnect-ms=500"))),
        format!("-device vhost-user-blk-pci,id=disk-{name},chardev=lamina-{name},num-queues={queues},disable-legacy=on"),
    ];
    format!("{}\n", arguments.join(" \\\n"))
}

fn cloud_hypervisor(disk: &Disk<'_>) -> String {
    let Disk { name, socket, queues, .. } = disk;
    let disk_argument = quoted(&format!("vhost_user=true,socket={socket},num_queues={queues},queue_size=256,id=lamina-{name}"));
    format!("--memory size={}M,shared=on \\\n--disk {disk_argument}\n", mebibytes(disk.memory))
}

fn libvirt(disk: &Disk<'_>) -> String {
    format!(
        "\
<!-- The domain needs shared memory:
     <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
     and QEMU must be let to the socket: user = \"root\" in /etc/libvirt/qemu.conf, or an ACL (OPERATIONS, Libvirt). -->
<disk type='vhostuser' device='disk'>
  <driver name='qemu' type='raw' queues='{queues}'/>
  <source type='unix' path='{socket}'>
    <reconnect enabled='yes' timeout='1'/>
  </source>
  <target dev='vdb' bus='virtio'/>
</disk>
",
        queues = disk.queues,
        socket = xml(disk.socket),
    )
}

fn mebibytes(size: ByteSize) -> u64 {
    size.0.div_ceil(1 << 20)
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use lamina_contract::ByteSize;

    use super::{Disk, text};
    use crate::volume_verbs::Hypervisor;

    const DISK: Disk<'_> = Disk { name: "web", socket: "/run/lamina/vhost/web.sock", memory: ByteSize(1 << 30), queues: 4 };

    #[test]
    fn qemu_gets_shared_memory_and_a_socket_that_it_comes_back_to() {
        assert_eq!(
            text(Hypervisor::Qemu, &DISK),
            "-m 1024M \\\n-machine q35,memory-backend=mem \\\n-object memory-backend-memfd,id=mem,size=1024M,share=on \\\n\
             -chardev socket,id=lamina-web,path=/run/lamina/vhost/web.sock,reconnect-ms=500 \\\n\
             -device vhost-user-blk-pci,id=disk-web,chardev=lamina-web,num-queues=4,disable-legacy=on\n"
        );
    }

    #[test]
    fn who_uses_libvirt_is_told_that_its_qemu_is_not_root() {
        assert!(text(Hypervisor::Libvirt, &DISK).contains("user = \"root\" in /etc/libvirt/qemu.conf"));
    }

    #[test]
    fn strange_paths_survive_pasting() {
        let odd = Disk { socket: "/my vms/a,b's&<c>.sock", ..DISK };
        assert!(
            text(Hypervisor::Qemu, &odd)
                .contains(r"-chardev 'socket,id=lamina-web,path=/my vms/a,,b'\''s&<c>.sock,reconnect-ms=500'")
        );
        assert!(text(Hypervisor::Libvirt, &odd).contains("path='/my vms/a,b&apos;s&amp;&lt;c>.sock'"));
    }
}
