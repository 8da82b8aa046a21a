//! `lamina volume import`: a disk image becomes a volume.
//!
//! The volume is detached meanwhile, so that no guest sees half of it. Only runs that hold data travel; blocks of zeros are written where
//! the volume has something else. Pieces are written several at a time and counted as done in order, so that what is kept of an import
//! that stopped is true; it counts while nothing moves the volume (`import_state.rs`). A thread of its own reads the image.

use std::cell::Cell;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use futures::{StreamExt, stream};
use hyper::body::Bytes;
use lamina_api::data::MAX_DATA_BYTES;
use lamina_api::paths;
use lamina_api::problem::ProblemKind;
use lamina_api::volume::{CreateVolume, Volume, VolumeState};
use lamina_contract::{BlockSize, VolumeName};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::client::{CallError, Client};
use crate::complete;
use crate::confirm;
use crate::ends::Ends;
use crate::failure::Failure;
use crate::image::{Backing, Format, Image, ImageError, read_raw};
use crate::import_state::{Found, ImportRecord, Mark};
use crate::printer::size;
use crate::qemu_nbd::Served;
use crate::rate::bytes_a_second;
use crate::run::{Run, Runs, is_zero, nonzero};
use crate::session::Session;
use crate::transfer::{IN_FLIGHT, Progress, TransferError};

/// How long an import that shall end waits for what is on its way, and for the daemon to say how it left the volume.
const FAREWELL: Duration = Duration::from_secs(5);

/// Makes a volume of a disk image.
#[derive(Debug, Args)]
#[command(
    long_about = "Makes a volume of a disk image: raw, qcow2, vmdk, vdi or vhdx.\n\n\
Without a volume of that name one is made, as large as the image's disk, and attached when it is complete. A volume that is there must be \
at least as large, must not be used by a guest, and becomes what the image is: what it held before is replaced, which must be confirmed.\n\n\
Only what holds data travels: holes and blocks of zeros are skipped. Formats other than raw are read through qemu-nbd, which comes with \
QEMU's tools; nothing is unpacked to disk in between. The format is told by the image's first bytes unless --format says it. An image that \
names other files (a backing file, a data file) is refused, since whoever made it could have named any file of this machine. \
--with-backing reads its backing file too, and the backing file of that, says which these are, and imports them as one; none of them may \
have a data file, and each must be a regular file here whose format is stated.\n\n\
An import that stops, by Ctrl-C or because a connection broke, says how to go on: --resume begins where it stopped when the image is \
still the same and nothing was done with the volume since, and otherwise compares all of it, writing only what differs. Where the volume \
was attached, written, rolled back or given a snapshot since, where the import was killed or the daemon started anew, where it was 30 \
days ago, and where this image was not being imported, --resume replaces what others may have written, so that must be confirmed too. --verify reads everything back and compares. An image that is \
changed meanwhile is a failure.",
    after_long_help = "\
Examples:
  lamina volume import debian-12.qcow2 web
  lamina volume import disk.raw db --verify --label tier=gold
  lamina volume import export.vmdk mail --format vmdk
  lamina volume import overlay.qcow2 test --with-backing
  lamina volume import debian-12.qcow2 web --resume"
)]
pub(crate) struct ImportArguments {
    /// The image.
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// The volume.
    #[arg(value_parser = VolumeName::new, add = complete::volumes())]
    name: VolumeName,
    /// What the image is [default: what its first bytes say].
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Read its backing files too.
    #[arg(long)]
    with_backing: bool,
    /// Go on with an import that stopped.
    #[arg(long)]
    resume: bool,
    /// Read everything back and compare.
    #[arg(long)]
    verify: bool,
    /// Leave the volume detached.
    #[arg(long)]
    detached: bool,
    /// A label of a new volume; may stand several times.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = crate::labels::one)]
    labels: Vec<crate::labels::Label>,
    /// Do not ask before what a volume holds is replaced.
    #[arg(long)]
    yes: bool,
}

/// What an import answers.
#[derive(Debug, Serialize)]
struct Imported {
    volume: Volume,
    format: &'static str,
    disk_bytes: u64,
    data_bytes: u64,
    written_bytes: u64,
    verified: bool,
}

/// What is done with a piece of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It is written.
    Write,
    /// It is written where the volume differs.
    Mend,
    /// It is compared.
    Verify,
}

/// A piece of the image that was read.
struct Piece {
    run: Run,
    bytes: Bytes,
}

/// What came of a piece.
struct Handled {
    run: Run,
    written: u64,
    differs: bool,
}

/// Does it.
pub(crate) async fn run(arguments: &ImportArguments, session: &Session) -> Result<(), Failure> {
    let backing = if arguments.with_backing { Backing::Wanted } else { Backing::Refused };
    let image = Arc::new(Image::inspect(&arguments.file, arguments.format, backing)?);
    if !image.behind.is_empty() {
        session.printer.notice(&format!("reading {}", image.paths().join(", behind it ")));
    }
    let looked = look(arguments, &image, session).await?;
    // Nothing was changed until here. From here on there is something to be said when it is interrupted.
    let mut ends = Ends::listen()?;
    let taken = ends.during(take(looked, arguments, &image, session)).await;
    let stopped = || stopped(arguments, session, &image, 0, TransferError::Interrupted);
    let Prepared { volume, fresh, found, mut record, attach } = taken.ok_or_else(stopped)??;
    let import = Import { arguments, image, volume, fresh, found, session };
    let begun = Instant::now();
    let (data_bytes, written_bytes) = import.copy(&mut record, &mut ends).await?;
    let took = begun.elapsed();
    if arguments.verify
        && let Err(failure) = import.verify(&mut ends).await
    {
        // All of it was written; what differs can be mended, and without a record that would have to be confirmed.
        let differs = matches!(failure, TransferError::Differs { .. });
        let _ = record.keep((!differs).then_some(import.image.disk_bytes), import.mark().await);
        return Err(if differs { failure } else { import.stopped(import.image.disk_bytes, failure) }.into());
    }
    // Whatever happens now, nothing has to be read again.
    let _ = record.keep(Some(import.image.disk_bytes), import.mark().await);
    let end = async {
        if attach {
            session.client.tell::<Volume>(&paths::of_volume(&arguments.name, "attach")).await
        } else {
            session.client.volume(&arguments.name).await
        }
    };
    let volume = ends.during(end).await.ok_or_else(|| import.stopped(import.image.disk_bytes, TransferError::Interrupted))??;
    record.forget();
    session.printer.notice(&format!("{} written, {}", size(written_bytes), bytes_a_second(written_bytes, took)));
    let answer = Imported {
        volume,
        format: import.image.format.as_str(),
        disk_bytes: import.image.disk_bytes,
        data_bytes,
        written_bytes,
        verified: arguments.verify,
    };
    session.printer.one(&answer, arguments.name.as_str(), |answer| {
        let mut rows = crate::volume_view::brief(&answer.volume);
        rows.push(("image", format!("{}, {} of data", answer.format, size(answer.data_bytes)).into()));
        rows.push(("verified", if answer.verified { "yes" } else { "no (--verify does)" }.into()));
        rows
    })
}

/// What is there before anything is changed.
struct Looked {
    volume: Option<Volume>,
    /// What is known of an import that is to go on.
    found: Option<Found>,
}

/// Whether there is a volume, whether it can take the image, and whether it may be replaced.
async fn look(arguments: &ImportArguments, image: &Image, session: &Session) -> Result<Looked, Failure> {
    let name = &arguments.name;
    let volume = match session.client.volume(name).await {
        Ok(volume) => volume,
        Err(error) if error.kind() == Some(ProblemKind::NotFound) => return Ok(Looked { volume: None, found: None }),
        Err(error) => return Err(error.into()),
    };
    if volume.size_bytes < image.disk_bytes {
        let (has, needs) = (size(volume.size_bytes), whole_size(image.disk_bytes.next_multiple_of(volume.block_size.max(1))));
        return Err(TransferError::Small { volume: volume.name, has, needs }.into());
    }
    if volume.read_only {
        return Err(TransferError::ReadOnly { volume: volume.name }.into());
    }
    let found = if arguments.resume { ImportRecord::new(image, &volume.id).found(&volume) } else { None };
    // What an import replaces was given up when it began; not what came later.
    let ours = found.is_some_and(|found| found.mark.is_some());
    if !ours && !held(session, name, volume.size_bytes).await?.is_empty() {
        confirm::loss(&format!("importing replaces what volume '{name}' holds"), name.as_str(), arguments.yes)?;
    }
    Ok(Looked { volume: Some(volume), found })
}

/// A volume, detached, large enough, and ours to write.
struct Prepared {
    volume: Volume,
    /// It was made for this import: there is nothing in it.
    fresh: bool,
    /// What is known of an import that is to go on.
    found: Option<Found>,
    /// What is kept of this one.
    record: ImportRecord,
    /// It shall be attached afterwards.
    attach: bool,
}

/// Makes the volume if there is none, and detaches it.
async fn take(looked: Looked, arguments: &ImportArguments, image: &Image, session: &Session) -> Result<Prepared, Failure> {
    let Looked { volume, found } = looked;
    let fresh = volume.is_none();
    let volume: Volume = match volume {
        Some(volume) => volume,
        None => {
            let unit = u64::from(BlockSize::DEFAULT.get());
            let request = CreateVolume {
                name: arguments.name.to_string(),
                size_bytes: image.disk_bytes.next_multiple_of(unit),
                labels: crate::labels::all(&arguments.labels)?,
                ..CreateVolume::default()
            };
            session.client.post(paths::VOLUMES, &request).await?
        }
    };
    let attached = volume.state == VolumeState::Attached;
    // It was detached when it began.
    let attach = found.map_or(attached, |found| attached || found.attach) && !arguments.detached;
    let mut record = ImportRecord::new(image, &volume.id);
    record.attach(attach);
    // Before it is detached: who goes on must know that it was not. From the first write on the mark is another.
    let _ = record.keep(found.and_then(|found| found.done), found.and_then(|found| found.mark));
    let detached = attached && !volume.connected;
    let volume = if detached { session.client.tell(&paths::of_volume(&arguments.name, "detach")).await? } else { volume };
    Ok(Prepared { volume, fresh, found, record, attach })
}

/// Where a volume of `size_bytes` may have something else than zeros: all of it when the daemon cannot tell.
async fn held(session: &Session, name: &VolumeName, size_bytes: u64) -> Result<Vec<Run>, CallError> {
    match session.client.extents(name).await {
        Ok(extents) => Ok(extents.into_iter().map(Run::from).collect()),
        Err(error) if error.kind() == Some(ProblemKind::Unavailable) => Ok(vec![Run::new(0, size_bytes)]),
        Err(error) => Err(error),
    }
}

/// A size that says every byte.
fn whole_size(bytes: u64) -> String {
    [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
        .into_iter()
        .find(|(unit, _)| bytes.is_multiple_of(*unit))
        .map_or_else(|| bytes.to_string(), |(unit, name)| format!("{} {name}", bytes / unit))
}

fn stopped(arguments: &ImportArguments, session: &Session, image: &Image, done: u64, cause: TransferError) -> TransferError {
    TransferError::Stopped {
        volume: arguments.name.to_string(),
        done: size(done),
        total: size(image.disk_bytes),
        again: again(arguments, session),
        cause: Box::new(cause),
    }
}

/// The command that goes on.
fn again(arguments: &ImportArguments, session: &Session) -> String {
    let ImportArguments { file, name, format, with_backing, resume: _, verify, detached, labels: _, yes: _ } = arguments;
    let mut words = format!("lamina volume import {} {name} --resume", crate::shell::quoted(&file.to_string_lossy()));
    if let Some(format) = format {
        words.push_str(&format!(" --format {}", format.as_str()));
    }
    for (flag, _) in
        [("--with-backing", with_backing), ("--verify", verify), ("--detached", detached)].iter().filter(|(_, is)| **is)
    {
        words.push_str(&format!(" {flag}"));
    }
    words.push_str(&session.daemon);
    words
}

/// An import under way.
struct Import<'a> {
    arguments: &'a ImportArguments,
    image: Arc<Image>,
    volume: Volume,
    fresh: bool,
    found: Option<Found>,
    session: &'a Session,
}

impl Import<'_> {
    /// Copies; answers the image's bytes of data, and how many were written.
    async fn copy(&self, record: &mut ImportRecord, ends: &mut Ends) -> Result<(u64, u64), Failure> {
        let layout = ends.during(self.layout(self.fresh)).await;
        let (data, dirty) = layout.ok_or_else(|| self.stopped(0, TransferError::Interrupted))??;
        let (way, from) = match (self.arguments.resume, self.found.and_then(|found| found.done)) {
            (true, Some(done)) => {
                self.session.printer.notice(&format!("going on at {} of {}", size(done), size(self.image.disk_bytes)));
                (Way::Write, done)
            }
            (true, None) => {
                self.session.printer.notice("where it stopped cannot be relied on: comparing, and writing what differs");
                (Way::Mend, 0)
            }
            // Writing zeros to all of a volume of which nothing is known would take longer than looking.
            (false, _) if dirty.bytes() == self.volume.size_bytes => (Way::Mend, 0),
            (false, _) => (Way::Write, 0),
        };
        // While it compares, what is in front is right, but going on would compare too.
        let known = |done| (way == Way::Write).then_some(done);
        let plan = data.joined(&dirty, from);
        let (mut done, mut written) = (from, 0);
        let outcome = self
            .pass(way, &plan, &dirty, ends, |handled| {
                (done, written) = (handled.run.end(), written + handled.written);
            })
            .await;
        match outcome {
            Ok(()) => Ok((data.bytes(), written)),
            Err(cause) => {
                let mark = self.mark().await;
                if mark.is_none() || record.keep(known(done), mark).is_err() {
                    self.session.printer.warn("where it stopped could not be kept; --resume will compare");
                }
                Err(self.stopped(done, cause).into())
            }
        }
    }

    /// How the volume is left, if the daemon says it.
    async fn mark(&self) -> Option<Mark> {
        let look = self.session.client.volume(&self.arguments.name);
        let volume = tokio::time::timeout(FAREWELL, look).await.ok()?.ok()?;
        Mark::of(&volume)
    }

    fn stopped(&self, done: u64, cause: TransferError) -> TransferError {
        stopped(self.arguments, self.session, &self.image, done, cause)
    }

    async fn verify(&self, ends: &mut Ends) -> Result<(), TransferError> {
        let (data, dirty) = ends.during(self.layout(false)).await.ok_or(TransferError::Interrupted)??;
        let (mut pieces, mut first) = (0, None);
        self.pass(Way::Verify, &data.joined(&dirty, 0), &dirty, ends, |handled| {
            if handled.differs {
                pieces += 1;
                first.get_or_insert(handled.run.offset);
            }
        })
        .await?;
        match first {
            None => Ok(()),
            Some(first) => Err(TransferError::Differs { volume: self.volume.name.clone(), pieces, first }),
        }
    }

    /// Where the image has data, and where the volume may have some.
    async fn layout(&self, empty: bool) -> Result<(Runs, Runs), TransferError> {
        let (unit, limit) = (self.volume.block_size.max(1), self.volume.size_bytes);
        let image = Arc::clone(&self.image);
        let runs = tokio::task::spawn_blocking(move || image.runs()).await.map_err(|_| self.lost())??;
        let held = if empty { Vec::new() } else { held(self.session, &self.arguments.name, limit).await? };
        Ok((Runs::aligned(runs, unit, limit), Runs::aligned(held, unit, limit)))
    }

    fn lost(&self) -> TransferError {
        TransferError::Lost { file: self.image.file.clone() }
    }

    /// Goes through `plan` once. `dirty` is where the volume may have something else than zeros; `each` hears of pieces in order. When it
    /// returns well, the image was the same all the time.
    async fn pass(
        &self,
        way: Way,
        plan: &Runs,
        dirty: &Runs,
        ends: &mut Ends,
        mut each: impl FnMut(&Handled),
    ) -> Result<(), TransferError> {
        let what = if way == Way::Verify { "verified" } else { "imported" };
        let mut progress = Progress::new(&self.session.printer, what, plan.bytes());
        let (sender, pieces) = mpsc::channel(IN_FLIGHT);
        let (image, wanted) = (Arc::clone(&self.image), plan.pieces().collect::<Vec<_>>());
        // It ends by itself when nobody takes pieces any more.
        let reader = std::thread::spawn(move || read(&image, wanted, &sender));
        let piece = Handling { client: &self.session.client, name: &self.arguments.name, unit: self.volume.block_size, way, dirty };
        let stopping: Cell<Option<tokio::time::Instant>> = Cell::new(None);
        let read = stream::unfold(pieces, |mut pieces| async {
            if stopping.get().is_some() { None } else { pieces.recv().await.map(|piece| (piece, pieces)) }
        });
        let mut handled = std::pin::pin!(read.map(|read| piece.handle(read)).buffered(IN_FLIGHT));
        loop {
            let farewell = stopping.get();
            tokio::select! {
                next = handled.next() => match next {
                    Some(handled) => {
                        let handled = handled?;
                        progress.add(handled.run.length);
                        each(&handled);
                    }
                    None => break,
                },
                // What is on its way arrives first: else it would move the volume after its mark was taken.
                _ = ends.next() => match farewell {
                    None => stopping.set(Some(tokio::time::Instant::now() + FAREWELL)),
                    Some(_) => return Err(TransferError::Interrupted),
                },
                () = until(farewell) => return Err(TransferError::Interrupted),
            }
        }
        if stopping.get().is_some() {
            return Err(TransferError::Interrupted);
        }
        // All pieces came: the thread has ended, or is about to.
        reader.join().map_err(|_| self.lost())?;
        Ok(self.image.unchanged()?)
    }
}

/// Never, without a moment.
async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// How pieces are handled.
struct Handling<'a> {
    client: &'a Client,
    name: &'a VolumeName,
    unit: u64,
    way: Way,
    dirty: &'a Runs,
}

impl Handling<'_> {
    async fn handle(&self, read: Result<Piece, ImageError>) -> Result<Handled, TransferError> {
        let Piece { run, bytes } = read?;
        let mut handled = Handled { run, written: 0, differs: false };
        // Where the volume has nothing it has zeros.
        let clean = !self.dirty.touch(run);
        if self.way != Way::Write {
            handled.differs =
                if clean { !is_zero(&bytes) } else { self.client.read(self.name, run.offset, run.length).await? != bytes };
            if self.way == Way::Verify || !handled.differs {
                return Ok(handled);
            }
        }
        let parts =
            if clean { nonzero(&bytes, usize::try_from(self.unit).unwrap_or(usize::MAX)) } else { vec![Run::new(0, run.length)] };
        for part in parts {
            let (begin, end) = (part.offset as usize, part.end() as usize);
            self.client.write(self.name, run.offset + part.offset, bytes.slice(begin..end)).await?;
            handled.written += part.length;
        }
        Ok(handled)
    }
}

/// Reads `wanted` and hands it over; the first failure is the last word.
fn read(image: &Image, wanted: Vec<Run>, pieces: &mpsc::Sender<Result<Piece, ImageError>>) {
    let mut source = match Source::open(image) {
        Ok(source) => source,
        Err(error) => {
            // Nobody listens when the import was given up.
            let _ = pieces.blocking_send(Err(error));
            return;
        }
    };
    for run in wanted {
        // A piece is at most one request.
        let mut bytes = vec![0; run.length.min(MAX_DATA_BYTES) as usize];
        let read = source.read(image, run.offset, &mut bytes).map(|()| Piece { run, bytes: Bytes::from(bytes) });
        let failed = read.is_err();
        if pieces.blocking_send(read).is_err() || failed {
            return;
        }
    }
}

/// What an image's bytes come from.
enum Source {
    Raw(File),
    Served(Served),
}

impl Source {
    /// What was opened is what was looked at: in between, a header could have been given other files to name.
    fn open(image: &Image) -> Result<Self, ImageError> {
        let source = match image.format {
            Format::Raw => File::open(&image.file).map(Self::Raw).map_err(|cause| unreadable(image, cause))?,
            _ => Self::Served(Served::reading(image)?),
        };
        image.unchanged()?;
        Ok(source)
    }

    fn read(&mut self, image: &Image, offset: u64, into: &mut [u8]) -> Result<(), ImageError> {
        match self {
            Self::Raw(file) => read_raw(file, image.disk_bytes, offset, into).map_err(|cause| match cause.kind() {
                // It was cut off since it was looked at.
                std::io::ErrorKind::UnexpectedEof => ImageError::Changed { file: image.file.clone() },
                _ => unreadable(image, cause),
            }),
            Self::Served(served) => served.read(offset, into),
        }
    }
}

fn unreadable(image: &Image, cause: std::io::Error) -> ImageError {
    ImageError::File { doing: "read", file: image.file.clone(), cause }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::{Backing, Image, ImageError, Source};

    fn qemu_img(arguments: &[&str]) {
        let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img: see tests/install-packages.sh");
        assert!(output.status.success(), "qemu-img {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn an_image_that_was_exchanged_since_it_was_looked_at_is_not_read() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
        let (file, secret) = (path("x.qcow2"), path("secret"));
        std::fs::write(&secret, [0x5e; 1 << 16]).expect("written");
        let data = format!("data_file={},data_file_raw=on", path("data"));
        for other in [
            // It names other files now.
            &["rebase", "-u", "-f", "qcow2", "-b", &secret, "-F", "raw", &file][..],
            &["create", "-q", "-f", "qcow2", "-o", &data, &file, "64K"],
        ] {
            qemu_img(&["create", "-q", "-f", "qcow2", &file, "64K"]);
            let image = Image::inspect(Path::new(&file), None, Backing::Refused).expect("an image of its own");
            assert!(Source::open(&image).is_ok());
            qemu_img(other);
            assert!(matches!(Source::open(&image), Err(ImageError::Changed { .. })), "{other:?}");
        }
    }

    #[test]
    fn no_backing_file_is_opened_but_those_that_were_looked_at() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
        let (file, secret) = (path("x.qcow2"), path("secret"));
        std::fs::write(&secret, [0x5e; 1 << 16]).expect("written");
        qemu_img(&["create", "-q", "-f", "qcow2", "-b", &secret, "-F", "raw", &file]);
        let read = |image: &Image| {
            let (mut source, mut bytes) = (Source::open(image).expect("opened"), [0; 512]);
            source.read(image, 0, &mut bytes).expect("read");
            bytes
        };
        let mut image = Image::inspect(Path::new(&file), None, Backing::Wanted).expect("an image");
        assert_eq!(read(&image), [0x5e; 512]);
        // As if it had come by its backing file later, unseen.
        image.behind.clear();
        assert_eq!((read(&image), image.runs().expect("runs").len()), ([0; 512], 0));
    }
}
