//! `lamina volume export`: a volume or a snapshot becomes a disk image.
//!
//! What is read is a clone made for the purpose: so a guest may go on using the volume, and the image is the volume at one moment. The clone
//! is removed whatever happens, short of a kill. An image is written under another name and gets its own when it is complete (`part.rs`); a
//! thread of its own writes it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use futures::{StreamExt, stream};
use hyper::body::Bytes;
use lamina_api::job::Job;
use lamina_api::label::Labels;
use lamina_api::name::{JobId, Name};
use lamina_api::paths;
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::snapshot::{CreateClones, CreateSnapshot, Snapshot, SnapshotList};
use lamina_api::volume::Volume;
use lamina_contract::VolumeName;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::client::CallError;
use crate::complete;
use crate::cut::{self, Cut};
use crate::ends::Ends;
use crate::failure::Failure;
use crate::follow;
use crate::image::{Format, ImageError, output};
use crate::mistake::Mistake;
use crate::moment::Moment;
use crate::part::{self, Part, Present};
use crate::printer::size;
use crate::qemu_nbd::{Access, Served};
use crate::rate::bytes_a_second;
use crate::run::{Run, Runs, nonzero};
use crate::session::{Patience, Session};
use crate::transfer::{IN_FLIGHT, Progress, TransferError};

/// What is found to be zero is left out in these units: what file systems allocate.
const UNIT: u64 = 4096;

/// What an export may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// The disk's bytes as they are, in a sparse file.
    Raw,
    /// QEMU's.
    Qcow2,
}

/// Makes a disk image of a volume or a snapshot.
#[derive(Debug, Args)]
#[command(
    long_about = "Makes a disk image of a volume as it is now, of a snapshot, or of a moment in the volume's CDP window.\n\n\
It reads a temporary clone, named after the volume, and removes it afterwards whatever happened, with the snapshot that was made for it; a \
guest may go on using the volume. A raw image is a sparse file; with '-' it goes to stdout with all its zeros. A qcow2 image is written \
through qemu-nbd, without a raw copy in between. Until it is complete the file is called FILE.NUMBER.part; one that a kill left may be \
deleted. An image is its owner's only (mode 0600); one that replaces a file by --force takes the mode of that, and its owner where that is \
possible. --force replaces regular files only: for a device write '-' and send stdout there.",
    after_long_help = "\
Examples:
  lamina volume export web web.qcow2
  lamina volume export web@daily-1 web.raw
  lamina volume export web --at \"2026-11-22 10:15:30\" web.qcow2 --compress
  lamina volume export web - --format raw | zstd > web.raw.zst"
)]
pub(crate) struct ExportArguments {
    /// VOLUME, or VOLUME@SNAPSHOT.
    #[arg(value_name = "VOLUME[@SNAPSHOT]", value_parser = cut::volume, add = complete::snapshots())]
    source: Cut<VolumeName>,
    /// The image to be made, or - for stdout.
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// What it shall be [default: what its name says: .raw, .img or .qcow2].
    #[arg(long, value_enum)]
    format: Option<ExportFormat>,
    /// A moment in the volume's CDP window: local time, or RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    at: Option<Moment>,
    /// Compress it (qcow2 only).
    #[arg(long)]
    compress: bool,
    /// Replace a regular file that is there.
    #[arg(long)]
    force: bool,
}

/// What an export answers.
#[derive(Debug, Serialize)]
struct Exported<'a> {
    volume: &'a str,
    snapshot: Option<String>,
    file: &'a Path,
    format: &'static str,
    disk_bytes: u64,
    data_bytes: u64,
}

/// Where an export goes.
#[derive(Debug, Clone)]
enum Target {
    Stdout,
    Raw { file: PathBuf, present: Present },
    Qcow2 { file: PathBuf, present: Present, access: Access },
}

impl ExportArguments {
    fn target(&self) -> Result<Target, Failure> {
        let stdout = self.file == Path::new("-");
        let extension = self.file.extension().and_then(|extension| extension.to_str());
        let format = match (self.format, extension) {
            (Some(format), _) => format,
            (None, Some("raw" | "img")) => ExportFormat::Raw,
            (None, Some("qcow2")) => ExportFormat::Qcow2,
            _ => return Err(Mistake::NoFormat { file: self.file.display().to_string() }.into()),
        };
        let present = if self.force { Present::Replace } else { Present::Keep };
        match format {
            ExportFormat::Qcow2 if stdout => return Err(Mistake::NoStream { format: "qcow2" }.into()),
            ExportFormat::Raw if self.compress => return Err(Mistake::RawCompressed.into()),
            ExportFormat::Raw if stdout => return Ok(Target::Stdout),
            _ => part::check(&self.file, present)?,
        }
        let file = self.file.clone();
        Ok(match format {
            ExportFormat::Raw => Target::Raw { file, present },
            ExportFormat::Qcow2 => {
                let access = if self.compress { Access::WriteCompressed } else { Access::Write };
                Target::Qcow2 { file, present, access }
            }
        })
    }
}

/// Does it.
pub(crate) async fn run(arguments: &ExportArguments, session: &Session) -> Result<(), Failure> {
    if arguments.source.snapshot.is_some() && arguments.at.is_some() {
        return Err(Mistake::SnapshotAndMoment.into());
    }
    let target = arguments.target()?;
    let format = if matches!(target, Target::Qcow2 { .. }) { "qcow2" } else { "raw" };
    let volume = &arguments.source.of;
    // A wrong name is said before anything is made.
    session.client.volume(volume).await?;
    let temporary = Temporary::new(volume)?;
    let mut ends = Ends::listen()?;
    let work = async {
        // The volume's own size may be another than that of the snapshot or moment.
        let disk_bytes = temporary.make(arguments, session).await?.size_bytes;
        Ok::<_, Failure>((disk_bytes, copy(&temporary.clone, disk_bytes, target, session).await?))
    };
    let begun = Instant::now();
    let outcome = tokio::select! {
        biased;
        _ = ends.next() => Err(TransferError::Interrupted.into()),
        outcome = work => outcome,
    };
    let removed = tokio::select! {
        biased;
        _ = ends.next() => Err(temporary.abandoned()),
        removed = temporary.remove(session) => removed,
    };
    let (disk_bytes, data_bytes) = match (outcome, removed) {
        (Ok(done), Ok(())) => done,
        (Err(failure), Ok(())) | (Ok(_), Err(failure)) => return Err(failure),
        (Err(failure), Err(left)) => {
            let advice = left.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
            session.printer.warn(&format!("{}{advice}", left.what()));
            return Err(failure);
        }
    };
    session.printer.notice(&format!("{} read, {}", size(data_bytes), bytes_a_second(data_bytes, begun.elapsed())));
    if arguments.file == Path::new("-") {
        return Ok(());
    }
    let snapshot = arguments.source.snapshot.as_ref().map(ToString::to_string);
    let answer = Exported { volume: volume.as_str(), snapshot, file: &arguments.file, format, disk_bytes, data_bytes };
    session.printer.one(&answer, &arguments.file.to_string_lossy(), |answer| {
        vec![
            ("file", answer.file.display().to_string().into()),
            ("format", answer.format.into()),
            ("size", format!("{}, {} of data", size(answer.disk_bytes), size(answer.data_bytes)).into()),
        ]
    })
}

/// What an export makes and removes: a clone, and the snapshot that it begins as where that was not there before.
struct Temporary {
    of: VolumeName,
    clone: VolumeName,
    /// Of the volume as it is now.
    snapshot: Name,
    /// The snapshot to be removed, once one may be there.
    made: RefCell<Option<Name>>,
    /// Snapshots that were there before a moment was asked for: the daemon makes one for it unless it has one of the same moment.
    before: RefCell<Option<BTreeSet<String>>>,
    job: Cell<Option<JobId>>,
}

impl Temporary {
    /// The clone's name begins as the volume's, so that a token's scope has it too: `web-export-1a2b3c4d`.
    fn new(of: &VolumeName) -> Result<Self, Failure> {
        let number = rand::random::<u32>();
        // 63 characters less 7 of the word, 2 of dashes and 8 of chance.
        let head: String = of.as_str().chars().take(46).collect();
        Ok(Self {
            of: of.clone(),
            clone: VolumeName::new(&format!("{head}-export-{number:08x}"))?,
            snapshot: Name::new(&format!("export-{number:08x}"))?,
            made: RefCell::default(),
            before: RefCell::default(),
            job: Cell::new(None),
        })
    }

    /// Answers the clone.
    async fn make(&self, arguments: &ExportArguments, session: &Session) -> Result<Volume, Failure> {
        let client = &session.client;
        let mut labels = Labels::default();
        labels.add("purpose=export").map_err(Problem::from)?;
        let mut snapshot = arguments.source.snapshot.clone();
        if arguments.at.is_some() {
            let before: Vec<Snapshot> = client.all::<SnapshotList>(&paths::of_volume(&self.of, "snapshots")).await?;
            self.before.replace(Some(before.into_iter().map(|snapshot| snapshot.name).collect()));
        } else if snapshot.is_none() {
            let request = CreateSnapshot { name: self.snapshot.to_string(), labels: labels.clone(), ..CreateSnapshot::default() };
            self.made.replace(Some(self.snapshot.clone()));
            client.post::<Snapshot>(&paths::of_volume(&self.of, "snapshots"), &request).await?;
            snapshot = Some(self.snapshot.clone());
        }
        let request = CreateClones {
            names: vec![self.clone.to_string()],
            snapshot: snapshot.map(|snapshot| snapshot.to_string()),
            at: arguments.at.as_ref().map(|at| at.rfc3339().to_owned()),
            labels,
            attach: Some(false),
            ..CreateClones::default()
        };
        let job: Job = client.post(&paths::of_volume(&self.of, "clones"), &request).await?;
        self.job.set(Some(job.id.parse()?));
        // Whether to wait is not a question here.
        follow::to_the_end_as(session, job, Patience { wait: true, limit: None }).await?;
        Ok(client.volume(&self.clone).await?)
    }

    /// A clone that is still being made when the export is given up would come later: so its job ends first.
    async fn remove(&self, session: &Session) -> Result<(), Failure> {
        let client = &session.client;
        if let Some(id) = self.job.get() {
            // It has ended already, or ends now; what the answers say does not matter, the volume does.
            let _ = client.tell::<Job>(&paths::job_cancel(id)).await;
            let _ = client.job(id, Duration::from_secs(30)).await;
        }
        let left = |(what, advice): (String, String), cause| Failure::LeftBehind { what, advice, cause: Box::new(cause) };
        if self.before.borrow().is_some() {
            match client.volume(&self.clone).await {
                Ok(clone) => self.began_as(&clone),
                Err(error) => gone(Err(error)).map_err(|cause| left(self.clone_left(), cause))?,
            }
        }
        let clone = gone(client.delete(&format!("{}?snapshots=true", paths::volume(&self.clone))).await)
            .map_err(|cause| left(self.clone_left(), cause));
        let Some(made) = self.made.borrow().clone() else { return clone };
        let snapshot =
            gone(client.delete(&paths::snapshot(&self.of, &made)).await).map_err(|cause| left(self.snapshot_left(&made), cause));
        clone.and(snapshot)
    }

    /// What the clone of a moment began as is ours unless it was there before.
    fn began_as(&self, clone: &Volume) {
        let parent = clone.parent.as_ref().map(|parent| parent.snapshot.as_str());
        let new = parent.filter(|parent| self.before.borrow().as_ref().is_some_and(|before| !before.contains(*parent)));
        if let Some(Ok(name)) = new.map(Name::new) {
            self.made.replace(Some(name));
        }
    }

    /// Somebody did not want to wait until all that is removed.
    fn abandoned(&self) -> Failure {
        let (mut what, mut advice) = self.clone_left();
        if let Some(made) = &*self.made.borrow() {
            let (snapshot, too) = self.snapshot_left(made);
            what.push_str(&format!(" and {snapshot}"));
            advice.push_str(&format!("; {too}"));
        }
        if self.made.borrow().is_none() && self.before.borrow().is_some() {
            what.push_str(" and the snapshot that it began as");
            advice.push_str(&format!("; lamina snapshot list {}", self.of));
        }
        Failure::Abandoned { what, advice }
    }

    /// The clone, and how to remove it.
    fn clone_left(&self) -> (String, String) {
        (format!("volume '{}'", self.clone), format!("lamina volume delete {} --snapshots --yes", self.clone))
    }

    /// The snapshot, and how to remove it.
    fn snapshot_left(&self, made: &Name) -> (String, String) {
        (format!("snapshot '{}@{made}'", self.of), format!("lamina snapshot delete {}@{made} --yes", self.of))
    }
}

/// What was never made need not go.
fn gone(deleted: Result<(), CallError>) -> Result<(), CallError> {
    match deleted {
        Err(error) if error.kind() == Some(ProblemKind::NotFound) => Ok(()),
        other => other,
    }
}

/// Reads the clone and writes the image; answers the bytes of data.
async fn copy(clone: &VolumeName, disk_bytes: u64, target: Target, session: &Session) -> Result<u64, Failure> {
    let client = &session.client;
    let runs = Runs::aligned(client.extents(clone).await?.into_iter().map(Run::from), UNIT, disk_bytes);
    let mut progress = Progress::new(&session.printer, "exported", runs.bytes());
    let (sender, pieces) = mpsc::channel(IN_FLIGHT);
    let file = match &target {
        Target::Stdout => PathBuf::from("-"),
        Target::Raw { file, .. } | Target::Qcow2 { file, .. } => file.clone(),
    };
    let writer = tokio::task::spawn_blocking(move || write(&target, disk_bytes, pieces));
    let read = stream::iter(runs.pieces())
        .map(|run| async move { client.read(clone, run.offset, run.length).await.map(|bytes| (run, bytes)) });
    let mut read = std::pin::pin!(read.buffered(IN_FLIGHT));
    let mut failed: Option<CallError> = None;
    while let Some(next) = read.next().await {
        match next {
            Ok((run, bytes)) => {
                // A writer that stopped says why below.
                if sender.send(Piece::Bytes(run, bytes)).await.is_err() {
                    break;
                }
                progress.add(run.length);
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    if failed.is_none() {
        // As above.
        let _ = sender.send(Piece::End).await;
    }
    drop(sender);
    let written = writer.await.map_err(|_| TransferError::Lost { file })?;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(written.map(|()| runs.bytes())?),
    }
}

/// What the writer hears.
enum Piece {
    Bytes(Run, Bytes),
    /// That was all. Without it the export was given up.
    End,
}

fn write(target: &Target, disk_bytes: u64, mut pieces: mpsc::Receiver<Piece>) -> Result<(), TransferError> {
    let mut sink = Sink::open(target, disk_bytes)?;
    while let Some(piece) = pieces.blocking_recv() {
        match piece {
            Piece::Bytes(run, bytes) => sink.put(run, &bytes)?,
            Piece::End => return sink.finish(disk_bytes),
        }
    }
    sink.give_up();
    Ok(())
}

/// An image being written.
enum Sink {
    Stdout { at: u64 },
    Raw { part: Part },
    Qcow2 { served: Box<Served>, part: Part },
}

impl Sink {
    fn open(target: &Target, disk_bytes: u64) -> Result<Self, TransferError> {
        match target {
            Target::Stdout => Ok(Self::Stdout { at: 0 }),
            Target::Raw { file, present } => {
                let part = Part::new(file, *present)?;
                part.file().set_len(disk_bytes).map_err(|cause| unwritable(&part, cause))?;
                Ok(Self::Raw { part })
            }
            Target::Qcow2 { file, present, access } => {
                let part = Part::new(file, *present)?;
                // Only a file that is there has a path that cannot be taken for an address.
                let whole = part.unready().canonicalize().map_err(|cause| unwritable(&part, cause))?;
                let mut create = Command::new("qemu-img");
                create.args(["create", "-q", "-f", "qcow2"]).arg(&whole).arg(disk_bytes.to_string());
                output("qemu-img", &mut create)?;
                Ok(Self::Qcow2 { served: Box::new(Served::writing(&whole, Format::Qcow2, *access, disk_bytes)?), part })
            }
        }
    }

    fn put(&mut self, run: Run, bytes: &[u8]) -> Result<(), TransferError> {
        if let Self::Stdout { at } = self {
            zeros(run.offset.saturating_sub(*at))?;
            io::stdout().lock().write_all(bytes).map_err(TransferError::Stdout)?;
            *at = run.end();
            return Ok(());
        }
        for part in nonzero(bytes, UNIT as usize) {
            let Some(bytes) = bytes.get(part.offset as usize..part.end() as usize) else { continue };
            match self {
                Self::Raw { part: image } => {
                    image.file().write_all_at(bytes, run.offset + part.offset).map_err(|cause| unwritable(image, cause))?;
                }
                Self::Qcow2 { served, .. } => served.write(run.offset + part.offset, bytes)?,
                Self::Stdout { .. } => {}
            }
        }
        Ok(())
    }

    fn finish(self, disk_bytes: u64) -> Result<(), TransferError> {
        match self {
            Self::Stdout { at } => {
                zeros(disk_bytes.saturating_sub(at))?;
                io::stdout().lock().flush().map_err(TransferError::Stdout)
            }
            Self::Raw { part } => Ok(part.complete()?),
            Self::Qcow2 { served, part } => {
                served.finish()?;
                Ok(part.complete()?)
            }
        }
    }

    /// Leaves nothing behind: dropping removes what was written.
    fn give_up(self) {}
}

fn unwritable(part: &Part, cause: io::Error) -> TransferError {
    TransferError::Image(ImageError::File { doing: "write", file: part.unready().to_owned(), cause })
}

fn zeros(mut count: u64) -> Result<(), TransferError> {
    let zeros = [0; 64 << 10];
    let mut out = io::stdout().lock();
    while count > 0 {
        let part = count.min(zeros.len() as u64);
        out.write_all(zeros.get(..part as usize).unwrap_or(&zeros)).map_err(TransferError::Stdout)?;
        count -= part;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use lamina_contract::VolumeName;

    use super::Temporary;

    #[test]
    fn temporary_clones_are_named_after_their_volume_and_names_stay_names() {
        let long = VolumeName::new(&"x".repeat(63)).expect("a name");
        assert_eq!(Temporary::new(&long).expect("a name").clone.as_str().len(), 62);
        let web = VolumeName::new("web").expect("a name");
        assert!(Temporary::new(&web).expect("a name").clone.as_str().starts_with("web-export-"));
    }
}
