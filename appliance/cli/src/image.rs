//! Disk images: what they are, and what `qemu-img` says of those that are not raw.
//!
//! An image comes from somewhere else, and may name other files to be read as its own: a backing file, a data file, extents. A guest that
//! could write its image's header could so have any file of this machine imported. Therefore such images are refused; a backing file is
//! read when that was asked for, and what holds for an image holds for each one behind it. Formats are told by their magic or stated by the
//! image in front, never guessed by `qemu-img`, and files are named to it by absolute paths, which it does not take for addresses. Which
//! files it opens is said here, link by link: whatever an image names when it is opened, no other backing file is.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

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

    /// By the name that images state.
    fn of_name(name: &str) -> Option<Self> {
        [Self::Raw, Self::Qcow2, Self::Vmdk, Self::Vdi, Self::Vhdx].into_iter().find(|format| format.as_str() == name)
    }

    /// What the first bytes of a file say, and for one format the last 512.
    fn of_ends(head: &[u8], tail: &[u8]) -> Result<Self, Foreign> {
        let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
        if at(0, b"QFI\xfb") {
            Ok(Self::Qcow2)
        } else if at(0, b"KDMV") || at(0, b"# Disk DescriptorFile") {
            Ok(Self::Vmdk)
        } else if at(64, &[0x7f, 0x10, 0xda, 0xbe]) {
            Ok(Self::Vdi)
        } else if at(0, b"vhdxfile") {
            Ok(Self::Vhdx)
        } else if tail.starts_with(VHD) {
            Err(FOREIGN_VHD)
        } else {
            FOREIGN.iter().find(|(offset, magic, _)| at(*offset, magic)).map_or(Ok(Self::Raw), |(_, _, foreign)| Err(*foreign))
        }
    }
}

/// What is told by its magic and not read: taken for raw, a guest would get its bytes for a disk's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Foreign {
    /// What it is.
    what: &'static str,
    /// What makes an image of it.
    first: &'static str,
}

const VHD: &[u8] = b"conectix";
const FOREIGN_VHD: Foreign = Foreign { what: "a VHD image", first: "convert it first: qemu-img convert -f vpc -O qcow2" };

const fn packed(what: &'static str, first: &'static str) -> Foreign {
    Foreign { what, first }
}

/// Where the magic is, what it is, and whose it is.
const FOREIGN: [(usize, &[u8], Foreign); 9] = [
    (0, VHD, FOREIGN_VHD),
    (0, &[0x1f, 0x8b, 8], packed("compressed with gzip", "unpack it first: gzip -d")),
    (0, b"\xfd7zXZ\0", packed("compressed with xz", "unpack it first: xz -d")),
    (0, &[0x28, 0xb5, 0x2f, 0xfd], packed("compressed with zstd", "unpack it first: zstd -d")),
    // Behind BZh and a digit: a block's magic.
    (4, b"1AY&SY", packed("compressed with bzip2", "unpack it first: bzip2 -d")),
    (0, &[0x04, 0x22, 0x4d, 0x18], packed("compressed with lz4", "unpack it first: lz4 -d")),
    (0, b"PK\x03\x04", packed("a zip archive", "unpack it first: unzip")),
    (257, b"ustar", packed("a tar archive, as an OVA is", "unpack it first: tar -xf")),
    (0, b"QED\0", packed("a QED image", "convert it first: qemu-img convert -f qed -O qcow2")),
];

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
    /// What is no regular file is not replaced by one.
    #[error("{} is {kind}, not a regular file", file.display())]
    Special {
        /// Where.
        file: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// It is none that is read.
    #[error("{} is {}", file.display(), foreign.what)]
    Foreign {
        /// Where.
        file: PathBuf,
        /// What it is.
        foreign: Foreign,
    },
    /// It is not what it was.
    #[error("{} was changed while it was read", file.display())]
    Changed {
        /// Where.
        file: PathBuf,
    },
    /// It reads other images where it has nothing itself.
    #[error("{} has the backing file {}", file.display(), paths(behind).join(", which has "))]
    Backing {
        /// Where.
        file: PathBuf,
        /// All that would be read: its backing file, then the backing file of that.
        behind: Vec<Link>,
    },
    /// Its backing file is not read, whoever wants it.
    #[error("{} has the backing file {backing}, {}", file.display(), why.words())]
    Unusable {
        /// Where.
        file: PathBuf,
        /// What it says.
        backing: String,
        /// Why not.
        why: Unusable,
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

/// Why a backing file is never read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// An address, a device, or nothing at all.
    NoFile,
    /// `qemu-img` would look what it is: then whoever wrote it chooses.
    Unstated,
    /// A format that is not read.
    Unread,
    /// There is no end to it.
    Endless,
}

impl Unusable {
    const fn words(self) -> &'static str {
        match self {
            Self::NoFile => "which is no regular file of this machine",
            Self::Unstated => "and does not say which format that has",
            Self::Unread => "in a format that is not read",
            Self::Endless => "and so on without an end",
        }
    }

    const fn advice(self) -> &'static str {
        match self {
            Self::Unstated => "look what it is, then state it: qemu-img rebase -u -b FILE -F FORMAT",
            Self::Endless => "look where the image comes from",
            Self::NoFile | Self::Unread => "make one file of it first: qemu-img convert -O qcow2",
        }
    }
}

impl ImageError {
    /// As in [`crate::failure`]: a file that was named and cannot be used is a wrong command line, one that is there already forbids it.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Exists { .. } => 5,
            Self::File { doing: "read" | "look at", .. } | Self::Special { .. } | Self::Empty { .. } => 2,
            Self::Foreign { .. } | Self::Backing { .. } | Self::Unusable { .. } => 2,
            Self::Elsewhere { .. } | Self::Encrypted { .. } => 2,
            _ => 1,
        }
    }

    /// What to do about it.
    pub(crate) fn advice(&self) -> Option<String> {
        let words = match self {
            Self::Exists { .. } => "choose another name, or add --force to replace it",
            Self::Special { .. } => "choose another name; to write a raw image to a device or pipe, write - and send stdout there",
            Self::Foreign { foreign, .. } => return Some(format!("{}; --format raw takes its bytes as they are", foreign.first)),
            Self::Changed { .. } => "see to it that nobody writes to it meanwhile, then import once more with --resume",
            Self::Backing { .. } => "look whether all that is yours to read, then add --with-backing to import it as one",
            Self::Unusable { why, .. } => why.advice(),
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
    /// What it is read from: its own file, then those behind it.
    pub(crate) files: Vec<ImageFile>,
    /// Its backing file, the backing file of that, and so on.
    pub(crate) behind: Vec<Link>,
}

/// An image of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    /// Its absolute path.
    file: PathBuf,
    /// What it is.
    format: Format,
}

/// Images behind an image at most. QEMU's own trouble begins later, and what one argument of a program may hold (128 KiB) too.
const MAX_BEHIND: usize = 30;

/// A file that an image is read from, as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageFile {
    path: PathBuf,
    /// Size, time of its bytes' last change and of its inode's, in nanoseconds since 1970. Not there, if it is no file of this machine.
    seen: Option<(u64, i128, i128)>,
}

impl ImageFile {
    /// As it is now.
    pub(crate) fn look(path: &Path) -> Self {
        let ns = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        let seen = std::fs::metadata(path).ok().map(|metadata| {
            let (modified, changed) = (ns(metadata.mtime(), metadata.mtime_nsec()), ns(metadata.ctime(), metadata.ctime_nsec()));
            (metadata.len(), modified, changed)
        });
        Self { path: path.to_owned(), seen }
    }

    /// Whether a change would be seen.
    pub(crate) fn is_known(&self) -> bool {
        self.seen.is_some()
    }
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
    full_backing_filename: Option<String>,
    backing_filename_format: Option<String>,
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
        // Before anything is read: a change from here on is one.
        let mut files = vec![ImageFile::look(&whole)];
        let mut opened = File::open(&whole).map_err(unreadable)?;
        let format = match format {
            Some(format) => format,
            None => {
                let (head, tail) = ends(&mut opened).map_err(unreadable)?;
                Format::of_ends(&head, &tail).map_err(|foreign| ImageError::Foreign { file: whole.clone(), foreign })?
            }
        };
        let own = Link { file: whole, format };
        let (disk_bytes, behind) = match format {
            // A block device says its size only so.
            Format::Raw => {
                let end = rustix::fs::seek(&opened, rustix::fs::SeekFrom::End(0)).map_err(|error| unreadable(error.into()))?;
                (end, Vec::new())
            }
            _ => own.chain(&mut files)?,
        };
        let Link { file, format } = own;
        if disk_bytes == 0 {
            return Err(ImageError::Empty { file });
        }
        if backing == Backing::Refused && !behind.is_empty() {
            return Err(ImageError::Backing { file, behind });
        }
        Ok(Self { file, format, disk_bytes, files, behind })
    }

    /// What `qemu-img` and `qemu-nbd` shall open: this chain, and no other backing file.
    pub(crate) fn node(&self) -> String {
        let own = Link { file: self.file.clone(), format: self.format };
        node(&[std::slice::from_ref(&own), &self.behind].concat())
    }

    /// The paths of all files that are read, in order.
    pub(crate) fn paths(&self) -> Vec<String> {
        [vec![self.file.display().to_string()], paths(&self.behind)].concat()
    }

    /// Whether all that was read until now is of one image: as far as files say when they were changed.
    ///
    /// # Errors
    /// [`ImageError::Changed`] with the first that was.
    pub(crate) fn unchanged(&self) -> Result<(), ImageError> {
        let changed = self.files.iter().find(|file| ImageFile::look(&file.path) != **file);
        changed.map_or(Ok(()), |file| Err(ImageError::Changed { file: file.path.clone() }))
    }

    /// The runs of the disk that hold data, in order.
    pub(crate) fn runs(&self) -> Result<Vec<Run>, ImageError> {
        match self.format {
            Format::Raw => self.raw_runs().map_err(|cause| ImageError::File { doing: "read", file: self.file.clone(), cause }),
            _ => {
                let mapped: Vec<Mapped> = asked("qemu-img", &["map", "--output=json"], &self.node())?;
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

impl Link {
    /// Bytes of the disk, and the images behind this one; adds their files to `files`. Each is opened alone, once it is known that it may be.
    fn chain(&self, files: &mut Vec<ImageFile>) -> Result<(u64, Vec<Self>), ImageError> {
        let (disk_bytes, mut next) = self.asked()?;
        let mut behind = Vec::new();
        let mut last = self.file.clone();
        while let Some(link) = next {
            let known = link.file == self.file || behind.contains(&link);
            if known || behind.len() >= MAX_BEHIND {
                let backing = link.file.display().to_string();
                return Err(ImageError::Unusable { file: last, backing, why: Unusable::Endless });
            }
            files.push(ImageFile::look(&link.file));
            next = if link.format == Format::Raw { None } else { link.asked()?.1 };
            last.clone_from(&link.file);
            behind.push(link);
        }
        Ok((disk_bytes, behind))
    }

    /// Bytes of the disk, and what is behind it. Nothing but its own file is opened, and a data file if it has one.
    fn asked(&self) -> Result<(u64, Option<Self>), ImageError> {
        let info: Info = asked("qemu-img", &["info", "--output=json"], &node(std::slice::from_ref(self)))?;
        if info.encrypted {
            return Err(ImageError::Encrypted { file: self.file.clone() });
        }
        let data = info.format_specific.map(|specific| specific.data).unwrap_or_default();
        let mut elsewhere = data.data_file.into_iter().chain(data.extents.into_iter().filter_map(|extent| extent.filename));
        if let Some(other) = elsewhere.find(|other| Path::new(other) != self.file) {
            return Err(ImageError::Elsewhere { file: self.file.clone(), other });
        }
        let Some(backing) = info.full_backing_filename.or(info.backing_filename) else { return Ok((info.virtual_size, None)) };
        let unusable = |why| ImageError::Unusable { file: self.file.clone(), backing: backing.clone(), why };
        let stated = info.backing_filename_format.ok_or_else(|| unusable(Unusable::Unstated))?;
        let format = Format::of_name(&stated).ok_or_else(|| unusable(Unusable::Unread))?;
        // An address is no absolute path; what is none is a file beside this one to `qemu-img`, which has made it absolute.
        let file = Path::new(&backing);
        let file = file.is_absolute().then(|| file.canonicalize().ok()).flatten().filter(|file| file.is_file());
        let file = file.ok_or_else(|| unusable(Unusable::NoFile))?;
        Ok((info.virtual_size, Some(Self { file, format })))
    }
}

fn paths(links: &[Link]) -> Vec<String> {
    links.iter().map(|link| link.file.display().to_string()).collect()
}

/// A chain as QEMU's programs take it for a file's name. The last one has nothing behind it, whatever it says.
fn node(links: &[Link]) -> String {
    let node = links.iter().rev().fold(serde_json::Value::Null, |backing, Link { file, format }| {
        let file = serde_json::json!({"driver": "file", "filename": file.to_string_lossy()});
        serde_json::json!({"driver": format.as_str(), "file": file, "backing": backing})
    });
    format!("json:{node}")
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

/// The first 512 bytes and the last.
fn ends(file: &mut File) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (mut head, mut tail) = (Vec::new(), Vec::new());
    (&mut *file).take(512).read_to_end(&mut head)?;
    let end = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(end.saturating_sub(512)))?;
    file.take(512).read_to_end(&mut tail)?;
    Ok((head, tail))
}

fn asked<T: serde::de::DeserializeOwned>(tool: &'static str, arguments: &[&str], node: &str) -> Result<T, ImageError> {
    let mut command = Command::new(tool);
    command.args(arguments).arg(node);
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

/// Bytes of a raw image of `disk_bytes`; behind these are zeros.
pub(crate) fn read_raw(file: &File, disk_bytes: u64, offset: u64, into: &mut [u8]) -> io::Result<()> {
    let there = usize::try_from(disk_bytes.saturating_sub(offset)).unwrap_or(usize::MAX).min(into.len());
    let (inside, behind) = into.split_at_mut(there);
    behind.fill(0);
    file.read_exact_at(inside, offset)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, SeekFrom, Write};

    use super::{Backing, Format, Image, ImageError, Link, node, options, read_raw};
    use crate::run::Run;

    #[test]
    fn formats_are_told_by_their_magic_and_everything_else_is_raw() {
        let of_head = |head: &[u8]| Format::of_ends(head, b"");
        assert_eq!(of_head(b"QFI\xfb\0\0\0\x03"), Ok(Format::Qcow2));
        assert_eq!(of_head(b"# Disk DescriptorFile\n"), Ok(Format::Vmdk));
        assert_eq!(of_head(b"vhdxfile"), Ok(Format::Vhdx));
        assert_eq!(of_head(b""), Ok(Format::Raw));
        // Boot code, and a disk that is encrypted in the guest.
        assert_eq!(of_head(&[0xeb, 0x63, 0x90]), Ok(Format::Raw));
        assert_eq!(of_head(b"LUKS\xba\xbe"), Ok(Format::Raw));
    }

    #[test]
    fn what_is_packed_or_of_another_kind_is_not_taken_for_raw() {
        for (head, tail, what) in [
            (&[0x1f, 0x8b, 8, 0][..], &b""[..], "gzip"),
            (b"\xfd7zXZ\0\0", b"", "xz"),
            (&[0x28, 0xb5, 0x2f, 0xfd], b"", "zstd"),
            (b"BZh91AY&SY", b"", "bzip2"),
            (b"conectix\0\0", b"", "VHD"),
            // One of fixed size has its header at its end.
            (&[0xeb, 0x63, 0x90], b"conectix\0\0", "VHD"),
        ] {
            let foreign = Format::of_ends(head, tail).expect_err(what);
            assert!(foreign.what.contains(what), "{foreign:?}");
        }
    }

    #[test]
    fn commas_in_paths_do_not_end_an_option() {
        let options = options(Format::Qcow2, std::path::Path::new("/a,b"));
        assert_eq!(options, "driver=qcow2,file.driver=file,file.filename=/a,,b");
    }

    #[test]
    fn a_chain_is_named_link_by_link_and_ends_where_we_say() {
        let link = |file: &str, format| Link { file: file.into(), format };
        let node = node(&[link("/a,\"b", Format::Qcow2), link("/base", Format::Raw)]);
        let node: serde_json::Value = serde_json::from_str(node.trim_start_matches("json:")).expect("json");
        assert_eq!((&node["driver"], &node["file"]["filename"]), (&"qcow2".into(), &"/a,\"b".into()));
        assert_eq!((&node["backing"]["driver"], &node["backing"]["file"]["filename"]), (&"raw".into(), &"/base".into()));
        assert!(node["backing"].as_object().is_some_and(|last| last["backing"].is_null()));
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
        let open = File::open(&path).expect("open");
        read_raw(&open, image.disk_bytes, (8 << 20) - 4, &mut behind).expect("zeros behind the end");
        assert_eq!(behind, [0; 8]);
        image.unchanged().expect("it is as it was");
        // Cut off meanwhile: what is missing are no zeros.
        file.set_len(6 << 20).expect("shorter");
        assert!(read_raw(&open, image.disk_bytes, 7 << 20, &mut behind).is_err());
        assert!(matches!(image.unchanged(), Err(ImageError::Changed { .. })));
    }
}
