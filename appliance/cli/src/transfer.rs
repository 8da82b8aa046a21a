//! Bytes between a volume and an image: several requests on their way at once, in order where order matters, with rate and time left.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use crate::client::CallError;
use crate::follow;
use crate::image::ImageError;
use crate::printer::{Printer, size};
use crate::rate::{bytes_a_second, duration, seconds_left};

/// Requests on their way at once: enough that the daemon's disks and the network are busy together.
pub(crate) const IN_FLIGHT: usize = 4;

/// How often a line says how far it is where there is no bar.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Why bytes did not get where they should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// The daemon refused or could not be asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The image cannot be read or written.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Stdout cannot be written.
    #[error("stdout cannot be written")]
    Stdout(#[source] io::Error),
    /// The volume is smaller than the image's disk.
    #[error("volume '{volume}' has {has}, and the image is of a disk of {needs}")]
    Small {
        /// The volume.
        volume: String,
        /// Its size.
        has: String,
        /// What it should have.
        needs: String,
    },
    /// The volume refuses writes.
    #[error("volume '{volume}' is read-only")]
    ReadOnly {
        /// The volume.
        volume: String,
    },
    /// The copy is not the image.
    #[error("volume '{volume}' differs from the image in {pieces} places, first at byte {first}")]
    Differs {
        /// The volume.
        volume: String,
        /// How many.
        pieces: u64,
        /// Where first.
        first: u64,
    },
    /// It was begun and not ended.
    #[error("the import into '{volume}' stopped at {done} of {total}")]
    Stopped {
        /// The volume.
        volume: String,
        /// How far it came.
        done: String,
        /// How far it should.
        total: String,
        /// How to go on.
        again: String,
        /// Why it stopped.
        #[source]
        cause: Box<TransferError>,
    },
    /// Somebody pressed Ctrl-C, or the system ends.
    #[error("interrupted")]
    Interrupted,
    /// A thread of ours ended without a word.
    #[error("reading or writing {} ended unexpectedly", file.display())]
    Lost {
        /// What it had.
        file: PathBuf,
    },
}

impl TransferError {
    /// The daemon's part in it.
    pub(crate) fn cause_of_call(&self) -> Option<&CallError> {
        match self {
            Self::Call(error) => Some(error),
            Self::Stopped { cause, .. } => cause.cause_of_call(),
            _ => None,
        }
    }

    /// As in [`crate::failure`].
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Small { .. } | Self::ReadOnly { .. } => 5,
            Self::Image(error @ ImageError::Exists { .. }) => error.exit_code(),
            Self::Interrupted => 130,
            Self::Stopped { cause, .. } => cause.exit_code(),
            _ => 1,
        }
    }

    /// What to do about it.
    pub(crate) fn advice(&self) -> Option<String> {
        match self {
            Self::Image(error) => error.advice(),
            Self::Small { volume, needs, .. } => Some(format!("lamina volume resize {volume} {}", needs.replace(' ', ""))),
            Self::ReadOnly { .. } => Some("choose another volume".to_owned()),
            Self::Differs { .. } => {
                Some("look whether the image was changed meanwhile, then import once more with --resume".to_owned())
            }
            Self::Stopped { again, .. } => Some(format!("go on with: {again}")),
            _ => None,
        }
    }
}

/// How far a transfer is, as a bar or as lines.
pub(crate) struct Progress {
    what: &'static str,
    bar: Option<ProgressBar>,
    printer: Printer,
    begun: Instant,
    told: Instant,
    total: u64,
    done: u64,
}

impl Progress {
    /// `what` is done to `total` bytes.
    pub(crate) fn new(printer: &Printer, what: &'static str, total: u64) -> Self {
        let bar = follow::bar(printer);
        if let Some(bar) = &bar {
            bar.set_length(total);
        }
        let now = Instant::now();
        Self { what, bar, printer: *printer, begun: now, told: now, total, done: 0 }
    }

    /// So many more.
    pub(crate) fn add(&mut self, bytes: u64) {
        self.done += bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
            bar.set_message(self.words());
        } else if self.told.elapsed() >= LINE_EVERY {
            self.told = Instant::now();
            self.printer.notice(&self.words());
        }
    }

    fn words(&self) -> String {
        let over = self.begun.elapsed();
        let mut words = format!("{} {} of {}, {}", self.what, size(self.done), size(self.total), bytes_a_second(self.done, over));
        if let Some(left) = seconds_left(self.done, self.total.saturating_sub(self.done), over) {
            words.push_str(&format!(", {} left", duration(left)));
        }
        words
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
