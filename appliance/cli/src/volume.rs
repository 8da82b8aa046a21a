//! `lamina volume …`.

use lamina_api::job::{Job, Outcome};
use lamina_api::paths;
use lamina_api::snapshot::{CreateClones, Rollback, RolledBack};
use lamina_api::volume::{ChangeVolume, CreateVolume, Volume};
use lamina_contract::{ByteSize, VolumeName};
use serde::Serialize;

use crate::confirm;
use crate::cut::Cut;
use crate::deleted;
use crate::export;
use crate::failure::Failure;
use crate::follow::{self, Followed};
use crate::hypervisor::{self, Disk};
use crate::import;
use crate::job;
use crate::labels;
use crate::mistake::Mistake;
use crate::moment::{self, local};
use crate::printer::{size as size_text, text};
use crate::session::Session;
use crate::span::Span;
use crate::volume_verbs::{Back, Clones, Hypervisor, NewSize, VolumeVerb};
use crate::volume_view::{brief, full};

/// What `attach --hypervisor` answers to programs.
#[derive(Serialize)]
struct Attached<'a> {
    volume: &'a Volume,
    text: String,
}

/// Does what `verb` says.
pub(crate) async fn run(verb: &VolumeVerb, session: &Session) -> Result<(), Failure> {
    let Session { client, printer, .. } = session;
    let show = |volume: Volume| printer.one(&volume, &volume.name, brief);
    match verb {
        VolumeVerb::List { labels } => printer.list(&list(session, &labels::query(labels)).await?),
        VolumeVerb::Show { name } => {
            let volume = client.volume(name).await?;
            printer.one(&volume, &volume.name, full)
        }
        VolumeVerb::Create { name, size, block_size, sco_size, read_only, labels, settings } => {
            let request = CreateVolume {
                name: name.to_string(),
                size_bytes: size.0,
                block_size: block_size.map(|size| size.0),
                sco_size: sco_size.map(|size| size.0),
                read_only: *read_only,
                labels: labels::all(labels)?,
                settings: settings.fresh(),
            };
            show(client.post(paths::VOLUMES, &request).await?)
        }
        VolumeVerb::Delete { name, snapshots, yes } => delete(name, *snapshots, *yes, session).await,
        VolumeVerb::Attach { name, hypervisor, memory, queues } => {
            let volume: Volume = client.tell(&paths::of_volume(name, "attach")).await?;
            match hypervisor {
                Some(hypervisor) => paste(&volume, *hypervisor, *memory, *queues, session),
                None => show(volume),
            }
        }
        VolumeVerb::Detach { name, yes } => {
            let path = paths::of_volume(name, "detach");
            let is_used = client.volume(name).await?.connected;
            if is_used {
                confirm::loss(&format!("a guest uses '{name}' and loses its disk"), name.as_str(), *yes)?;
            }
            show(client.tell(&if is_used { format!("{path}?force=true") } else { path }).await?)
        }
        VolumeVerb::Resize { name, size, shrink, yes } => show(resize(name, *size, *shrink, *yes, session).await?),
        VolumeVerb::Set { name, settings, labels, unlabel, yes } => {
            if let Some(seconds) = settings.cdp().filter(|_| !yes) {
                confirm_past(&client.volume(name).await?, seconds)?;
            }
            let change = |volume: Volume| {
                let labels = labels::changed(&volume.labels, labels, unlabel)?;
                let change = ChangeVolume { labels, settings: settings.over(volume.settings), ..ChangeVolume::default() };
                if change == ChangeVolume::default() { Err(Failure::from(Mistake::NoChange)) } else { Ok(change) }
            };
            let volume: Volume = client.change(&paths::volume(name), change).await?;
            printer.one(&volume, &volume.name, full)
        }
        VolumeVerb::Rollback { volume, back, yes } => rollback(volume, back, *yes, session).await,
        VolumeVerb::Clone { volume, back, clones } => {
            let request = clones.request(volume, back)?;
            let job: Job = client.post(&paths::of_volume(&volume.of, "clones"), &request).await?;
            job::finish(session, job).await
        }
        VolumeVerb::Flatten { name } => {
            let job: Job = client.tell(&paths::of_volume(name, "flatten")).await?;
            job::finish(session, job).await
        }
        VolumeVerb::Template { name, undo } => {
            let change = ChangeVolume { template: Some(!undo), ..ChangeVolume::default() };
            let volume: Volume = client.set(&paths::volume(name), &change).await?;
            printer.one(&volume, &volume.name, full)
        }
        VolumeVerb::Import(arguments) => import::run(arguments, session).await,
        VolumeVerb::Export(arguments) => export::run(arguments, session).await,
    }
}

/// Volumes by name; `filter` is the query's rest, each part with its `&`.
pub(crate) async fn list(session: &Session, filter: &str) -> Result<Vec<Volume>, Failure> {
    let filter = filter.trim_start_matches('&');
    let path = if filter.is_empty() { paths::VOLUMES.to_owned() } else { format!("{}?{filter}", paths::VOLUMES) };
    Ok(session.client.all::<lamina_api::volume::VolumeList>(&path).await?)
}

async fn delete(name: &VolumeName, snapshots: bool, yes: bool, session: &Session) -> Result<(), Failure> {
    if !yes {
        // A wrong name is said before anybody is asked to type it again.
        session.client.volume(name).await?;
        let too = if snapshots { " and all its snapshots" } else { "" };
        confirm::loss(&format!("deleting volume '{name}' removes all its data{too}"), name.as_str(), false)?;
    }
    session.client.delete(&format!("{}?snapshots={snapshots}", paths::volume(name))).await?;
    deleted::print(session, name.as_str())
}

async fn resize(name: &VolumeName, size: NewSize, shrink: bool, yes: bool, session: &Session) -> Result<Volume, Failure> {
    let now = session.client.volume(name).await?.size_bytes;
    let wanted = match size {
        NewSize::To(bytes) => bytes,
        NewSize::By(more) => now.saturating_add(more),
    };
    let less = wanted < now;
    if less && !shrink {
        return Err(Mistake::Shrinks { volume: name.to_string(), now: size_text(now) }.into());
    }
    if less {
        confirm::loss(&format!("shrinking volume '{name}' cuts off what is behind {}", size_text(wanted)), name.as_str(), yes)?;
    }
    let change = ChangeVolume { size_bytes: Some(wanted), force: less, ..ChangeVolume::default() };
    Ok(session.client.set(&paths::volume(name), &change).await?)
}

impl Back {
    /// The snapshot or moment that was named, if any.
    pub(crate) fn request<N: std::fmt::Display>(&self, cut: &Cut<N>) -> Result<Rollback, Mistake> {
        let snapshot = cut.either(self.snapshot.as_ref())?.map(ToString::to_string);
        let at = self.at.as_ref().map(|at| at.rfc3339().to_owned());
        if snapshot.is_some() && at.is_some() {
            return Err(Mistake::SnapshotAndMoment);
        }
        Ok(Rollback { snapshot, at })
    }

    /// The same, where one must be named.
    pub(crate) fn needed<N: std::fmt::Display>(&self, cut: &Cut<N>) -> Result<Rollback, Mistake> {
        let back = self.request(cut)?;
        if back == Rollback::default() { Err(Mistake::NoWayBack) } else { Ok(back) }
    }
}

impl Clones {
    /// What is asked for.
    pub(crate) fn request<N: std::fmt::Display>(&self, cut: &Cut<N>, back: &Back) -> Result<CreateClones, Failure> {
        if self.count > 1 && !self.name.contains("{n}") {
            return Err(Mistake::OneName { count: self.count }.into());
        }
        let Rollback { snapshot, at } = back.request(cut)?;
        Ok(CreateClones {
            names: Vec::new(),
            name: Some(self.name.clone()),
            count: (self.count > 1).then_some(self.count),
            snapshot,
            at,
            labels: labels::all(&self.labels)?,
            attach: self.detached.then_some(false),
        })
    }
}

/// Asks before moments that the volume can go back to are given up for a window of `seconds`.
fn confirm_past(volume: &Volume, seconds: u64) -> Result<(), Failure> {
    let Some(start) = volume.cdp_start.as_deref().filter(|_| seconds < volume.settings.cdp_seconds) else { return Ok(()) };
    let begins = if seconds == 0 { None } else { Some(moment::ago(seconds)) };
    if begins.as_ref().is_some_and(|begins| moment::is_before(begins, start)) {
        return Ok(());
    }
    let since = local(start);
    let loses = match begins {
        None => format!("turning the CDP window off gives up all moments of volume '{}' since {since}", volume.name),
        Some(_) => format!("a CDP window of {} gives up older moments of volume '{}', since {since}", Span(seconds), volume.name),
    };
    confirm::loss(&loses, &volume.name, false)
}

async fn rollback(cut: &Cut<VolumeName>, back: &Back, yes: bool, session: &Session) -> Result<(), Failure> {
    let request = back.needed(cut)?;
    let name = &cut.of;
    if !yes {
        session.client.volume(name).await?;
        confirm::loss(&format!("taking volume '{name}' back replaces what it holds now"), name.as_str(), false)?;
    }
    let begun: Outcome<RolledBack> = session.client.begin(&paths::of_volume(name, "rollback"), &request).await?;
    let done = match follow::outcome(session, begun).await? {
        Followed::Done(done) => done,
        Followed::Succeeded(job) => RolledBack {
            volume: session.client.volume(name).await?,
            discarded: job.result.unwrap_or_default().discarded.unwrap_or_default(),
        },
        Followed::Left(job) => return job::print(session, &job),
    };
    session.printer.one(&done, &done.discarded, |done| {
        let mut rows = brief(&done.volume);
        rows.push(("what it held before", format!("{name}@{}", done.discarded).into()));
        rows
    })
}

fn paste(volume: &Volume, hypervisor: Hypervisor, memory: ByteSize, queues: u16, session: &Session) -> Result<(), Failure> {
    let socket = volume.socket.as_deref().ok_or_else(|| Failure::NoSocket { name: volume.name.clone() })?;
    let words = hypervisor::text(hypervisor, &Disk { name: &volume.name, socket, memory, queues });
    if session.printer.output.is_table() { text(&words) } else { session.printer.data(&Attached { volume, text: words }) }
}
