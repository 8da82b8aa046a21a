//! Disk images: what they are, and what `qemu-img` says of those that are not raw.
//!
//! An image comes from somewhere else, and may name other files to be read as its own: a backing file, a data file, extents. A guest that
//! could write its image's header could so have any file of this machine imported. Therefore such images are refused; a backing file is
//! read when that was asked for. Formats are told by their magic, never guessed by `qemu-img`, and files are named to it by absolute
//! paths, which it does not take for addresses.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;
use serde::Deserialize;

use crate::nbd::NbdError;
use crate::run::Run;

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Hyper-V's.
    Vhdx,
}

impl Format {
    /// As people and `qemu-img` name it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vhdx => "vhdx",
        }
    }

    /// What the first bytes of a file say.
    fn of_head(head: &[u8]) -> Self {
        let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
        if at(0, b"QFI\xfb") {
            Self::Qcow2
        } else if at(0, b"KDMV") || at(0, b"# Disk DescriptorFile") {
            Self::Vmdk
        } else if at(64, &[0x7f, 0x10, 0xda, 0xbe]) {
            Self::Vdi
        } else if at(0, b"vhdxfile") {
            Self::Vhdx
        } else {
            Self::Raw
        }
    }
}

/// Why an image cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// The system does not let us.
    #[error("cannot {doing} {}", file.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// Where.
        file: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Nothing in it.
    #[error("{} is empty", file.display())]
    Empty {
        /// Where.
        file: PathBuf,
    },
    /// It would be overwritten.
    #[error("{} is there already", file.display())]
    Exists {
        /// Where.
        file: PathBuf,
    },
    /// It reads another image where it has nothing itself.
    #[error("{} has the backing file {backing}", file.display())]
    Backing {
        /// Where.
        file: PathBuf,
        /// What it says.
        backing: String,
    },
    /// Its data lies in other files.
    #[error("{} has its data in {other}", file.display())]
    Elsewhere {
        /// Where.
        file: PathBuf,
        /// What it says.
        other: String,
    },
    /// It is encrypted.
    #[error("{} is encrypted", file.display())]
    Encrypted {
        /// Where.
        file: PathBuf,
    },
    /// A program that is not there.
    #[error("{tool} cannot be started")]
    NoTool {
        /// Which.
        tool: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A program that failed.
    #[error("{tool} failed: {said}")]
    Tool {
        /// Which.
        tool: &'static str,
        /// Its last line.
        said: String,
    },
    /// A program whose answer is not understood.
    #[error("what {tool} says is not understood")]
    Answer {
        /// Which.
        tool: &'static str,
        /// Why.
        #[source]
        cause: serde_json::Error,
    },
    /// What `qemu-nbd` serves cannot be read.
    #[error("qemu-nbd does not serve {}", file.display())]
    Nbd {
        /// What it should serve.
        file: PathBuf,
        /// Why.
        #[source]
        cause: NbdError,
    },
}

impl ImageError {
    /// What to do about it.
    pub(crate) fn advice(&self) -> Option<String> {
        let words = match self {
            Self::Exists { .. } => "choose another name, or add --force to replace it",
            Self::Backing { .. } => "look whether that is yours to read, then add --with-backing to import both as one",
            Self::Elsewhere { .. } => "make one file of it first: qemu-img convert -O qcow2",
            Self::Encrypted { .. } => "decrypt it first: qemu-img convert",
            Self::NoTool { .. } => "install qemu-utils (Debian) or qemu-img (others); raw images need neither",
            Self::Tool { .. } => "try the same by hand, or qemu-img check",
            Self::Empty { .. } => "look whether it is the right file",
            Self::File { .. } | Self::Answer { .. } | Self::Nbd { .. } => return None,
        };
        Some(words.to_owned())
    }
}

/// An image that was looked at.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// Its absolute path.
    pub(crate) file: PathBuf,
    /// What it is.
    pub(crate) format: Format,
    /// Bytes of the disk that it is an image of.
    pub(crate) disk_bytes: u64,
    /// When it was changed, in nanoseconds since 1970.
    pub(crate) changed_ns: i128,
}

/// Whether an image's backing file may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    /// It may not; the image is refused.
    Refused,
    /// It was asked for.
    Wanted,
}

/// What `qemu-img info` says, as far as we care.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    backing_filename: Option<String>,
    #[serde(default)]
    encrypted: bool,
    format_specific: Option<Specific>,
}

#[derive(Debug, Deserialize)]
struct Specific {
    #[serde(default)]
    data: SpecificData,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct SpecificData {
    data_file: Option<String>,
    extents: Vec<Extent>,
}

#[derive(Debug, Deserialize)]
struct Extent {
    filename: Option<String>,
}

/// A run as `qemu-img map` says it.
#[derive(Debug, Deserialize)]
struct Mapped {
    start: u64,
    length: u64,
    zero: bool,
    data: bool,
}

impl Image {
    /// Looks at `file`; `format` is what it is said to be.
    pub(crate) fn inspect(file: &Path, format: Option<Format>, backing: Backing) -> Result<Self, ImageError> {
        let unreadable = |cause| ImageError::File { doing: "read", file: file.to_owned(), cause };
        let whole = file.canonicalize().map_err(unreadable)?;
        let mut opened = File::open(&whole).map_err(unreadable)?;
        let metadata = opened.metadata().map_err(unreadable)?;
        let changed_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        let format = match format {
            Some(format) => format,
            None => Format::of_head(&head(&mut opened).map_err(unreadable)?),
        };
        let disk_bytes = match format {
            // A block device says its size only so.
            Format::Raw => rustix::fs::seek(&opened, rustix::fs::SeekFrom::End(0)).map_err(|error| unreadable(error.into()))?,
            _ => Self::asked(&whole, format, backing)?,
        };
        if disk_bytes == 0 {
            return Err(ImageError::Empty { file: whole });
        }
        Ok(Self { file: whole, format, disk_bytes, changed_ns })
    }

    fn asked(file: &Path, format: Format, backing: Backing) -> Result<u64, ImageError> {
        let info: Info = asked("qemu-img", &["info", "--output=json", "--image-opts"], &options(format, file))?;
        if let (Some(backing), Backing::Refused) = (info.backing_filename, backing) {
            return Err(ImageError::Backing { file: file.to_owned(), backing });
        }
        if info.encrypted {
            return Err(ImageError::Encrypted { file: file.to_owned() });
        }
        let data = info.format_specific.map(|specific| specific.data).unwrap_or_default();
        let elsewhere = data.data_file.into_iter().chain(data.extents.into_iter().filter_map(|extent| extent.filename));
        if let Some(other) = elsewhere.into_iter().find(|other| Path::new(other) != file) {
            return Err(ImageError::Elsewhere { file: file.to_owned(), other });
        }
        Ok(info.virtual_size)
    }

    /// The runs of the disk that hold data, in order.
    pub(crate) fn runs(&self) -> Result<Vec<Run>, ImageError> {
        match self.format {
            Format::Raw => self.raw_runs().map_err(|cause| ImageError::File { doing: "read", file: self.file.clone(), cause }),
            _ => {
                let mapped: Vec<Mapped> =
                    asked("qemu-img", &["map", "--output=json", "--image-opts"], &options(self.format, &self.file))?;
                Ok(mapped.into_iter().filter(|run| run.data && !run.zero).map(|run| Run::new(run.start, run.length)).collect())
            }
        }
    }

    fn raw_runs(&self) -> io::Result<Vec<Run>> {
        use rustix::fs::{SeekFrom, seek};
        let file = File::open(&self.file)?;
        let (mut runs, mut at) = (Vec::new(), 0);
        while at < self.disk_bytes {
            let begin = match seek(&file, SeekFrom::Data(at)) {
                Ok(begin) => begin,
                // No data behind `at`.
                Err(rustix::io::Errno::NXIO) => break,
                // A file system or device that does not know holes.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => return Ok(vec![Run::new(0, self.disk_bytes)]),
                Err(error) => return Err(error.into()),
            };
            let end = seek(&file, SeekFrom::Hole(begin))?.min(self.disk_bytes);
            // A file that is being cut off meanwhile.
            if end <= begin {
                break;
            }
            runs.push(Run::new(begin, end - begin));
            at = end;
        }
        Ok(runs)
    }
}

/// `file` as an image of `format`, for programs that take `--image-opts`. A comma ends a value there; two are one.
pub(crate) fn options(format: Format, file: &Path) -> String {
    options_within("", format, file)
}

/// The same as a part of other options, whose names all begin with `prefix`.
pub(crate) fn options_within(prefix: &str, format: Format, file: &Path) -> String {
    let escaped = file.to_string_lossy().replace(',', ",,");
    format!("{prefix}driver={},{prefix}file.driver=file,{prefix}file.filename={escaped}", format.as_str())
}

fn head(file: &mut File) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    file.take(512).read_to_end(&mut head)?;
    Ok(head)
}

fn asked<T: serde::de::DeserializeOwned>(tool: &'static str, arguments: &[&str], options: &str) -> Result<T, ImageError> {
    let mut command = Command::new(tool);
    command.args(arguments).arg(options);
    serde_json::from_slice(&output(tool, &mut command)?).map_err(|cause| ImageError::Answer { tool, cause })
}

/// What a program prints, when it ends well.
pub(crate) fn output(tool: &'static str, command: &mut Command) -> Result<Vec<u8>, ImageError> {
    let output = command.stdin(Stdio::null()).output().map_err(|cause| ImageError::NoTool { tool, cause })?;
    if output.status.success() { Ok(output.stdout) } else { Err(ImageError::Tool { tool, said: last_line(&output.stderr) }) }
}

/// The last line that says something.
pub(crate) fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing was said").trim().to_owned()
}

/// A raw image's bytes; behind its end are zeros.
pub(crate) fn read_raw(file: &File, offset: u64, into: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => {
                rest.fill(0);
                return Ok(());
            }
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, SeekFrom, Write};

    use super::{Backing, Format, Image, options, read_raw};
    use crate::run::Run;

    #[test]
    fn formats_are_told_by_their_magic_and_everything_else_is_raw() {
        assert_eq!(Format::of_head(b"QFI\xfb\0\0\0\x03"), Format::Qcow2);
        assert_eq!(Format::of_head(b"# Disk DescriptorFile\n"), Format::Vmdk);
        assert_eq!(Format::of_head(b"vhdxfile"), Format::Vhdx);
        assert_eq!(Format::of_head(b""), Format::Raw);
    }

    #[test]
    fn commas_in_paths_do_not_end_an_option() {
        let options = options(Format::Qcow2, std::path::Path::new("/a,b"));
        assert_eq!(options, "driver=qcow2,file.driver=file,file.filename=/a,,b");
    }

    #[test]
    fn holes_of_raw_images_are_no_runs() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("disk.raw");
        let mut file = File::create(&path).expect("create");
        file.set_len(8 << 20).expect("sparse");
        file.seek(SeekFrom::Start(4 << 20)).expect("seek");
        file.write_all(&[7; 65536]).expect("write");
        let image = Image::inspect(&path, None, Backing::Refused).expect("an image");
        assert_eq!((image.format, image.disk_bytes), (Format::Raw, 8 << 20));
        assert_eq!(image.runs().expect("runs"), [Run::new(4 << 20, 65536)]);
        let mut behind = [9; 8];
        read_raw(&File::open(&path).expect("open"), (8 << 20) - 4, &mut behind).expect("zeros behind the end");
        assert_eq!(behind, [0; 8]);
    }
}
