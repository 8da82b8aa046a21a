//! Mistakes in what was typed that only show when words are seen together: what is wrong, and what would be right.

/// Each is exit code 2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mistake {
    /// A snapshot is needed.
    #[error("a snapshot of '{of}' is meant, and none is named")]
    NoSnapshot {
        /// The volume or VM.
        of: String,
    },
    /// It is named in two places.
    #[error("the snapshot is named twice")]
    TwoSnapshots,
    /// Going back needs a place to go to.
    #[error("say what to go back to: a snapshot or a moment")]
    NoWayBack,
    /// Which daemon is said in two ways; clap sees that only within one command.
    #[error("--state-dir, --socket and --server exclude each other")]
    TwoDaemons,
    /// Waiting and not.
    #[error("--wait and --no-wait exclude each other")]
    WaitAndNoWait,
    /// A snapshot and a moment.
    #[error("a snapshot and --at exclude each other")]
    SnapshotAndMoment,
    /// A change of nothing.
    #[error("nothing is to be changed")]
    NoChange,
    /// Several clones of one name.
    #[error("{count} clones need {{n}} in --name, for their numbers")]
    OneName {
        /// How many.
        count: u32,
    },
    /// A schedule of nothing.
    #[error("the schedule has no volumes and no VMs")]
    NoTargets,
    /// A disk that is not there to be removed.
    #[error("volume '{volume}' is no disk of VM '{vm}'")]
    NoDisk {
        /// The VM.
        vm: String,
        /// The volume.
        volume: String,
    },
    /// TLS needs a certificate's key too.
    #[error("--cert and --key belong together")]
    HalfCertificate,
    /// An image whose name says no format, on the way out.
    #[error("'{file}' does not say which format it shall have")]
    NoFormat {
        /// The file.
        file: String,
    },
    /// A format that cannot be streamed.
    #[error("{format} cannot be written to a pipe")]
    NoStream {
        /// The format.
        format: &'static str,
    },
    /// Raw images have no compression.
    #[error("a raw image cannot be compressed")]
    RawCompressed,
    /// Less than there is.
    #[error("volume '{volume}' has {now}: that would cut it off")]
    Shrinks {
        /// The volume.
        volume: String,
        /// Its size.
        now: String,
    },
    /// A machine whose disk has no socket.
    #[error("volume '{volume}' is not attached, so there is no socket to be named")]
    Detached {
        /// The volume.
        volume: String,
    },
    /// A live view where nobody looks.
    #[error("the live view needs a terminal")]
    NoTerminal,
}

impl Mistake {
    /// What would be right.
    pub(crate) fn advice(&self) -> String {
        match self {
            Self::NoSnapshot { of } => format!("write {of}@NAME"),
            Self::TwoSnapshots => "write VOLUME@SNAPSHOT, or both as two words".to_owned(),
            Self::NoWayBack => "add --snapshot NAME, or --at \"2026-11-22 10:15:30\"".to_owned(),
            Self::TwoDaemons => "say once which daemon is meant".to_owned(),
            Self::WaitAndNoWait | Self::SnapshotAndMoment => "leave one of them out".to_owned(),
            Self::NoChange => "--help lists what can be changed".to_owned(),
            Self::OneName { .. } => "for example --name 'desk-{n}'".to_owned(),
            Self::NoTargets => "add --volume, --vm, --volume-label or --vm-label".to_owned(),
            Self::NoDisk { vm, .. } => format!("lamina vm show {vm} lists its disks"),
            Self::HalfCertificate => "give both".to_owned(),
            Self::NoFormat { .. } => "add --format raw or --format qcow2".to_owned(),
            Self::NoStream { .. } => "write to a file, or use --format raw".to_owned(),
            Self::RawCompressed => "use --format qcow2, or compress what goes to stdout".to_owned(),
            Self::Shrinks { .. } => "add --shrink when nothing behind the new end is needed".to_owned(),
            Self::Detached { volume } => format!("lamina volume attach {volume}"),
            Self::NoTerminal => "add --once, or -o json".to_owned(),
        }
    }
}
