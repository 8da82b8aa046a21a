//! `lamina snapshot …`.

use clap::{Args, Subcommand};
use lamina_api::name::Name;
use lamina_api::paths;
use lamina_api::problem::ProblemKind;
use lamina_api::snapshot::{ChangeSnapshot, CreateSnapshot, Snapshot, SnapshotList, SnapshotState};
use lamina_contract::VolumeName;

use crate::client::CallError;
use crate::complete;
use crate::confirm;
use crate::cut::{self, Cut};
use crate::deleted;
use crate::failure::Failure;
use crate::labels::{self, Label};
use crate::mistake::Mistake;
use crate::moment::local;
use crate::printer::{Property, Row, or_dash, size};
use crate::session::Session;
use crate::table::{Cell, Column};
use crate::tone::Tone;
use crate::volume;

/// A snapshot, in either way of writing.
#[derive(Debug, Clone, Args)]
pub(crate) struct One {
    /// VOLUME@SNAPSHOT, or VOLUME.
    #[arg(value_name = "VOLUME[@SNAPSHOT]", value_parser = cut::volume, add = complete::snapshots())]
    volume: Cut<VolumeName>,
    /// The snapshot, when it is not written with the volume.
    #[arg(value_parser = |text: &str| Name::new(text))]
    snapshot: Option<Name>,
}

impl One {
    fn parts(&self) -> Result<(&VolumeName, &Name), Mistake> {
        Ok((&self.volume.of, self.volume.named(self.snapshot.as_ref())?))
    }
}

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotVerb {
    /// Lists snapshots of a volume, or of all volumes.
    #[command(after_long_help = "\
Examples:
  lamina snapshot list web
  lamina snapshot list -o wide
  lamina snapshot list web -o json | jq -r '.[] | select(.automatic) | .name'")]
    List {
        /// The volume; all of them when absent.
        #[arg(value_parser = VolumeName::new, add = complete::volumes())]
        volume: Option<VolumeName>,
    },
    /// Shows one snapshot.
    #[command(after_long_help = "\
Examples:
  lamina snapshot show web@daily-1
  lamina snapshot show web daily-1 -o yaml")]
    Show {
        #[command(flatten)]
        one: One,
    },
    /// Takes a snapshot, now.
    #[command(
        long_about = "Takes a snapshot, now: it holds every write that was acknowledged before. It costs nothing that grows with the volume, \
and guests go on meanwhile. For all disks of a VM at one moment: lamina vm snapshot.",
        after_long_help = "\
Examples:
  lamina snapshot create web@before-upgrade
  lamina snapshot create web before-upgrade --description 'nginx 1.29' --pin
  lamina snapshot create db@q4 --label keep=year"
    )]
    Create {
        #[command(flatten)]
        one: One,
        /// What it is for, up to 256 characters.
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        description: String,
        /// Refuse to delete it until it is unpinned.
        #[arg(long)]
        pin: bool,
        /// A label; may stand several times.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = labels::one)]
        labels: Vec<Label>,
    },
    /// Changes a snapshot's description and labels, pins or unpins it.
    #[command(after_long_help = "\
Examples:
  lamina snapshot set web@before-upgrade --pin
  lamina snapshot set web@before-upgrade --unpin --description 'may go'
  lamina snapshot set web before-upgrade --label keep=year --unlabel test")]
    Set {
        #[command(flatten)]
        one: One,
        /// Refuse to delete it until it is unpinned.
        #[arg(long, conflicts_with = "unpin")]
        pin: bool,
        /// Allow deleting it.
        #[arg(long)]
        unpin: bool,
        /// What it is for, up to 256 characters.
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// A label to add or change; may stand several times.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = labels::one)]
        labels: Vec<Label>,
        /// A label to remove; may stand several times.
        #[arg(long = "unlabel", value_name = "KEY")]
        unlabel: Vec<String>,
    },
    /// Deletes a snapshot that is not pinned and that no clone needs.
    #[command(after_long_help = "\
Examples:
  lamina snapshot delete web@daily-1
  lamina snapshot delete web daily-1 --yes

On a terminal the name must be typed again; in scripts say --yes.")]
    Delete {
        #[command(flatten)]
        one: One,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// Does what `verb` says.
pub(crate) async fn run(verb: &SnapshotVerb, session: &Session) -> Result<(), Failure> {
    let Session { client, printer, .. } = session;
    let show = |snapshot: Snapshot| printer.one(&snapshot, &whole(&snapshot), properties);
    match verb {
        SnapshotVerb::List { volume: Some(volume) } => printer.list(&of_volume(session, volume).await?),
        SnapshotVerb::List { volume: None } => {
            let volumes = volume::list(session, "").await?;
            let (mut all, mut lacking) = (Vec::new(), 0);
            for volume in &volumes {
                match of_volume(session, &VolumeName::new(&volume.name)?).await {
                    Ok(snapshots) => all.extend(snapshots),
                    // It was deleted meanwhile.
                    Err(error) if error.kind() == Some(ProblemKind::NotFound) => {}
                    // One that is not open, say, does not hide the others.
                    Err(CallError::Refused { problem, .. }) => {
                        lacking += 1;
                        printer.warn(&format!("snapshots of volume '{}': {}", volume.name, problem.detail));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            printer.list(&all)?;
            if lacking == 0 { Ok(()) } else { Err(Failure::Partial { lacking, of: volumes.len() }) }
        }
        SnapshotVerb::Show { one } => {
            let (volume, snapshot) = one.parts()?;
            show(client.get(&paths::snapshot(volume, snapshot)).await?)
        }
        SnapshotVerb::Create { one, description, pin, labels } => {
            let (volume, snapshot) = one.parts()?;
            let request = CreateSnapshot {
                name: snapshot.to_string(),
                labels: labels::all(labels)?,
                description: description.clone(),
                pinned: *pin,
            };
            show(client.post(&paths::of_volume(volume, "snapshots"), &request).await?)
        }
        SnapshotVerb::Set { one, pin, unpin, description, labels, unlabel } => {
            let (volume, snapshot) = one.parts()?;
            let change = |snapshot: Snapshot| {
                let labels = labels::changed(&snapshot.labels, labels, unlabel)?;
                let pinned = (*pin || *unpin).then_some(*pin);
                let change = ChangeSnapshot { labels, description: description.clone(), pinned };
                if change == ChangeSnapshot::default() { Err(Failure::from(Mistake::NoChange)) } else { Ok(change) }
            };
            show(client.change(&paths::snapshot(volume, snapshot), change).await?)
        }
        SnapshotVerb::Delete { one, yes } => {
            let (volume, snapshot) = one.parts()?;
            let path = paths::snapshot(volume, snapshot);
            if !yes {
                client.get::<Snapshot>(&path).await?;
                confirm::loss(&format!("deleting snapshot '{volume}@{snapshot}' cannot be undone"), snapshot.as_str(), false)?;
            }
            client.delete(&path).await?;
            deleted::print(session, &format!("{volume}@{snapshot}"))
        }
    }
}

async fn of_volume(session: &Session, volume: &VolumeName) -> Result<Vec<Snapshot>, CallError> {
    session.client.all::<SnapshotList>(&paths::of_volume(volume, "snapshots")).await
}

fn whole(snapshot: &Snapshot) -> String {
    format!("{}@{}", snapshot.volume, snapshot.name)
}

/// Where a snapshot's data is.
pub(crate) fn state(state: SnapshotState) -> Cell {
    Cell::new(state.as_str(), if state == SnapshotState::Stored { Tone::Good } else { Tone::Warn })
}

/// How it came to be, and whether it may go.
pub(crate) fn kind(automatic: bool, pinned: bool) -> Cell {
    let kind = if automatic { "automatic" } else { "by hand" };
    if pinned { format!("{kind}, pinned").into() } else { kind.into() }
}

impl Row for Snapshot {
    const COLUMNS: &'static [Column] = &[
        Column::new("SNAPSHOT"),
        Column::new("CREATED"),
        Column::number("SIZE"),
        Column::new("STATE"),
        Column::new("KIND"),
        Column::number("CLONES"),
        Column::new("LABELS").wide(),
        Column::new("DESCRIPTION"),
    ];

    fn cells(&self) -> Vec<Cell> {
        vec![
            whole(self).into(),
            local(&self.created).into(),
            size(self.size_bytes).into(),
            state(self.state),
            kind(self.automatic, self.pinned),
            self.clones.to_string().into(),
            labels::cell(&self.labels),
            or_dash(Some(self.description.as_str()).filter(|text| !text.is_empty())),
        ]
    }

    fn name(&self) -> String {
        whole(self)
    }
}

fn properties(snapshot: &Snapshot) -> Vec<Property> {
    vec![
        ("name", whole(snapshot).into()),
        ("identity", snapshot.id.as_str().into()),
        ("created", local(&snapshot.created).into()),
        ("size", size(snapshot.size_bytes).into()),
        ("state", state(snapshot.state)),
        ("kind", kind(snapshot.automatic, snapshot.pinned)),
        ("clones", snapshot.clones.to_string().into()),
        ("labels", labels::cell(&snapshot.labels)),
        ("description", or_dash(Some(snapshot.description.as_str()).filter(|text| !text.is_empty()))),
    ]
}
