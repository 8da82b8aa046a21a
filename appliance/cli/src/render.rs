//! A machine in the words of a hypervisor: all of it, ready to be defined or run.

use crate::machine::Machine;
use crate::volume_verbs::Hypervisor;
use crate::xml::Unwritable;
use crate::{cloud_hypervisor, libvirt, qemu};

/// Why a hypervisor cannot be told of a machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RenderError {
    /// Only libvirt knows its networks.
    #[error("network '{network}' is libvirt's: this hypervisor needs a bridge")]
    Network { network: String },
    /// Cloud Hypervisor boots UEFI only.
    #[error("Cloud Hypervisor has no BIOS: the machine's firmware must be uefi")]
    Bios,
    /// Cloud Hypervisor has virtio cards only.
    #[error("Cloud Hypervisor has virtio network cards only")]
    Card,
    /// Its options have no way to say it.
    #[error("'{value}' cannot be written in an option of Cloud Hypervisor")]
    Value { value: String },
    /// XML has no way to say it.
    #[error(transparent)]
    Xml(#[from] Unwritable),
}

/// The text: XML for libvirt, a script for the others.
pub(crate) fn text(hypervisor: Hypervisor, machine: &Machine) -> Result<String, RenderError> {
    match hypervisor {
        Hypervisor::Qemu => qemu::script(machine),
        Hypervisor::CloudHypervisor => cloud_hypervisor::script(machine),
        Hypervisor::Libvirt => Ok(libvirt::domain(machine)?),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    /// Runs a script where `program` only says what it was given, in an empty directory in which nothing else may appear.
    pub(crate) fn arguments(program: &str, script: &str, more: &[&str]) -> Vec<String> {
        let dir = tempfile::TempDir::new().expect("tempdir");
        let (bin, work) = (dir.path().join("bin"), dir.path().join("work"));
        std::fs::create_dir(&bin).expect("mkdir");
        std::fs::create_dir(&work).expect("mkdir");
        for (name, text) in [(program, "#!/bin/sh\nprintf '%s\\0' \"$@\"\n"), ("ip", "#!/bin/sh\n"), ("cp", "#!/bin/sh\n")] {
            let path = bin.join(name);
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("executable");
        }
        std::fs::write(dir.path().join("run.sh"), script).expect("written");
        let mut shell = Command::new("/bin/sh");
        shell.arg(dir.path().join("run.sh")).args(more).current_dir(&work).env("PATH", &bin);
        let out = shell.output().expect("a shell");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(std::fs::read_dir(&work).expect("read").count(), 0, "something was run");
        let text = String::from_utf8(out.stdout).expect("UTF-8");
        text.split_terminator('\0').map(str::to_owned).collect()
    }
}
