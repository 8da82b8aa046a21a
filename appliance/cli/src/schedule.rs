//! `lamina schedule …`.

use std::str::FromStr;

use clap::{Args, Subcommand};
use lamina_api::label::Labels;
use lamina_api::name::Name;
use lamina_api::paths;
use lamina_api::problem::Problem;
use lamina_api::schedule::{ChangeSchedule, CreateSchedule, Every, Keep, Schedule, ScheduleList, ScheduleTargets, ScheduleTime};
use lamina_contract::VolumeName;

use crate::complete;
use crate::confirm;
use crate::deleted;
use crate::failure::Failure;
use crate::labels::{self, Label};
use crate::mistake::Mistake;
use crate::moment::local;
use crate::printer::{Property, Row, or_dash};
use crate::session::Session;
use crate::span::Span;
use crate::table::{Cell, Column};
use crate::tone::Tone;

/// What to do with schedules.
#[derive(Debug, Subcommand)]
pub(crate) enum ScheduleVerb {
    /// Lists schedules.
    #[command(after_long_help = "\
Examples:
  lamina schedule list
  lamina schedule list -o json | jq -r '.[] | select(.last_error) | .name'")]
    List,
    /// Shows one schedule: of what, when, and how many are kept.
    #[command(after_long_help = "\
Examples:
  lamina schedule show nightly")]
    Show {
        /// Its name.
        #[arg(value_parser = |text: &str| Name::new(text), add = complete::schedules())]
        name: Name,
    },
    /// Makes a schedule: snapshots by the clock, kept for a while.
    #[command(
        long_about = "Makes a schedule: snapshots are taken by the clock, and the oldest go when there are more than are kept. Without any \
--keep all stay. All disks of a VM are taken at one moment. Times of day are UTC.\n\n\
What is kept: the newest --keep-last, and of each of the last so many hours, days, weeks and months the newest.",
        after_long_help = "\
Examples:
  lamina schedule create nightly --vm shop --every daily --at 02:30 --keep-daily 7 --keep-weekly 4
  lamina schedule create often --volume-label tier=gold --every 15m --keep-last 8 --keep-hourly 24
  lamina schedule create weekly --volume web --volume db --every weekly --at 'sun 03:00' --disabled"
    )]
    Create {
        /// Its name.
        #[arg(value_parser = |text: &str| Name::new(text))]
        name: Name,
        #[command(flatten)]
        targets: Targets,
        /// How often: hourly, daily, weekly, or as 15m.
        #[arg(long, value_name = "hourly|daily|weekly|TIME", value_parser = Often::from_str)]
        every: Often,
        /// When, in UTC: 02:30 for daily ones, 'mon 02:30' for weekly ones, 00:15 for hourly ones: the minute.
        #[arg(long, value_name = "TIME", value_parser = at)]
        at: Option<String>,
        #[command(flatten)]
        keep: Kept,
        /// Do not run it yet.
        #[arg(long)]
        disabled: bool,
    },
    /// Changes a schedule, starts or stops it.
    #[command(
        long_about = "Changes a schedule. What is not named stays as it is; volumes, VMs and labels that are named take the place of all that \
it had. A weekly schedule keeps its day unless --at names one.",
        after_long_help = "\
Examples:
  lamina schedule set nightly --at 03:00
  lamina schedule set weekly --at 'sat 03:00'
  lamina schedule set nightly --keep-daily 14
  lamina schedule set nightly --disable"
    )]
    Set {
        /// Its name.
        #[arg(value_parser = |text: &str| Name::new(text), add = complete::schedules())]
        name: Name,
        #[command(flatten)]
        targets: Targets,
        /// How often: hourly, daily, weekly, or as 15m.
        #[arg(long, value_name = "hourly|daily|weekly|TIME", value_parser = Often::from_str)]
        every: Option<Often>,
        /// When, in UTC: 02:30 for daily ones, 'mon 02:30' for weekly ones, 00:15 for hourly ones: the minute.
        #[arg(long, value_name = "TIME", value_parser = at)]
        at: Option<String>,
        #[command(flatten)]
        keep: Kept,
        /// Run it.
        #[arg(long, conflicts_with = "disable")]
        enable: bool,
        /// Do not run it.
        #[arg(long)]
        disable: bool,
    },
    /// Deletes a schedule. Its snapshots stay.
    #[command(after_long_help = "\
Examples:
  lamina schedule delete nightly
  lamina schedule delete nightly --yes")]
    Delete {
        /// Its name.
        #[arg(value_parser = |text: &str| Name::new(text), add = complete::schedules())]
        name: Name,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// Of what.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Of what")]
pub(crate) struct Targets {
    /// A volume; may stand several times.
    #[arg(long = "volume", value_name = "NAME", value_parser = VolumeName::new, add = complete::volumes())]
    volumes: Vec<VolumeName>,
    /// A VM; may stand several times.
    #[arg(long = "vm", value_name = "NAME", value_parser = |text: &str| Name::new(text), add = complete::vms())]
    vms: Vec<Name>,
    /// Volumes with this label; with several, volumes that have all of them.
    #[arg(long = "volume-label", value_name = "KEY=VALUE", value_parser = labels::one)]
    volume_labels: Vec<Label>,
    /// VMs with this label; with several, VMs that have all of them.
    #[arg(long = "vm-label", value_name = "KEY=VALUE", value_parser = labels::one)]
    vm_labels: Vec<Label>,
}

impl Targets {
    fn named(&self) -> Result<Option<ScheduleTargets>, Problem> {
        let targets = ScheduleTargets {
            volumes: self.volumes.iter().map(ToString::to_string).collect(),
            vms: self.vms.iter().map(ToString::to_string).collect(),
            volume_labels: labels::all(&self.volume_labels)?,
            vm_labels: labels::all(&self.vm_labels)?,
        };
        Ok((!targets.is_empty()).then_some(targets))
    }
}

/// How many are kept.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "How many are kept")]
pub(crate) struct Kept {
    /// The newest so many.
    #[arg(long, value_name = "N")]
    keep_last: Option<u32>,
    /// The newest of each of so many hours.
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u32>,
    /// The newest of each of so many days.
    #[arg(long, value_name = "N")]
    keep_daily: Option<u32>,
    /// The newest of each of so many weeks.
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u32>,
    /// The newest of each of so many months.
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u32>,
}

impl Kept {
    fn over(self, keep: Keep) -> Keep {
        Keep {
            last: self.keep_last.unwrap_or(keep.last),
            hourly: self.keep_hourly.unwrap_or(keep.hourly),
            daily: self.keep_daily.unwrap_or(keep.daily),
            weekly: self.keep_weekly.unwrap_or(keep.weekly),
            monthly: self.keep_monthly.unwrap_or(keep.monthly),
        }
    }
}

/// How often, as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Often(Every);

/// Text that says no such thing.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is neither hourly, daily or weekly, nor a number of minutes as 15m or 6h")]
pub(crate) struct OftenError(Box<str>);

impl FromStr for Often {
    type Err = OftenError;

    fn from_str(text: &str) -> Result<Self, OftenError> {
        let bad = || OftenError(text.chars().take(64).collect());
        Ok(Self(match text {
            "hourly" => Every::Hourly,
            "daily" => Every::Daily,
            "weekly" => Every::Weekly,
            other => {
                let Span(seconds) = other.parse().map_err(|_| bad())?;
                let minutes = u32::try_from(seconds / 60).map_err(|_| bad())?;
                if minutes == 0 || !seconds.is_multiple_of(60) || minutes > lamina_api::schedule::MAX_MINUTES {
                    return Err(bad());
                }
                Every::Minutes(minutes)
            }
        }))
    }
}

fn at(text: &str) -> Result<String, Problem> {
    text.parse::<ScheduleTime>().map(|_| text.to_owned())
}

/// Does what `verb` says.
pub(crate) async fn run(verb: &ScheduleVerb, session: &Session) -> Result<(), Failure> {
    let Session { client, printer, .. } = session;
    let show = |schedule: Schedule| printer.one(&schedule, &schedule.name, properties);
    match verb {
        ScheduleVerb::List => printer.list(&client.all::<ScheduleList>(paths::SCHEDULES).await?),
        ScheduleVerb::Show { name } => show(client.get(&paths::schedule(name)).await?),
        ScheduleVerb::Create { name, targets, every, at, keep, disabled } => {
            let request = CreateSchedule {
                name: name.to_string(),
                targets: targets.named()?.ok_or(Mistake::NoTargets)?,
                every: every.0,
                at: at.clone(),
                keep: keep.over(Keep::default()),
                enabled: disabled.then_some(false),
            };
            show(client.post(paths::SCHEDULES, &request).await?)
        }
        ScheduleVerb::Set { name, targets, every, at, keep, enable, disable } => {
            let change = |schedule: Schedule| {
                let kept = keep.over(schedule.keep);
                let change = ChangeSchedule {
                    targets: targets.named()?,
                    every: every.map(|every| every.0),
                    at: at.clone(),
                    keep: (kept != schedule.keep).then_some(kept),
                    enabled: (*enable || *disable).then_some(*enable),
                };
                if change == ChangeSchedule::default() { Err(Failure::from(Mistake::NoChange)) } else { Ok(change) }
            };
            show(client.change(&paths::schedule(name), change).await?)
        }
        ScheduleVerb::Delete { name, yes } => {
            if !yes {
                client.get::<Schedule>(&paths::schedule(name)).await?;
                confirm::loss(&format!("deleting schedule '{name}' ends its snapshots"), name.as_str(), false)?;
            }
            client.delete(&paths::schedule(name)).await?;
            deleted::print(session, name.as_str())
        }
    }
}

fn every(every: Every) -> String {
    match every {
        Every::Hourly => "hourly".to_owned(),
        Every::Daily => "daily".to_owned(),
        Every::Weekly => "weekly".to_owned(),
        Every::Minutes(minutes) => Span(u64::from(minutes) * 60).to_string(),
    }
}

fn keep(keep: &Keep) -> String {
    let counts =
        [("last", keep.last), ("hourly", keep.hourly), ("daily", keep.daily), ("weekly", keep.weekly), ("monthly", keep.monthly)];
    let words: Vec<_> = counts.iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{count} {name}")).collect();
    if words.is_empty() { "all".to_owned() } else { words.join(", ") }
}

fn of_what(targets: &ScheduleTargets) -> String {
    let labelled = |what: &str, labels: &Labels| -> Option<String> {
        let words: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        (!words.is_empty()).then(|| format!("{what} {}", words.join(",")))
    };
    let volumes = targets.volumes.iter().cloned();
    let vms = targets.vms.iter().map(|vm| format!("vm {vm}"));
    let more = [labelled("volumes with", &targets.volume_labels), labelled("vms with", &targets.vm_labels)];
    volumes.chain(vms).chain(more.into_iter().flatten()).collect::<Vec<_>>().join(", ")
}

impl Row for Schedule {
    const COLUMNS: &'static [Column] = &[
        Column::new("NAME"),
        Column::new("EVERY"),
        Column::new("AT (UTC)"),
        Column::new("OF"),
        Column::new("KEEPS"),
        Column::new("NEXT (LOCAL)"),
        Column::new("LAST (LOCAL)").wide(),
        Column::new("PROBLEM"),
    ];

    fn cells(&self) -> Vec<Cell> {
        let next = match &self.next_run {
            Some(next) if self.enabled => local(next).into(),
            _ => Cell::new(if self.enabled { "-" } else { "disabled" }, Tone::Dim),
        };
        vec![
            self.name.as_str().into(),
            every(self.every).into(),
            or_dash(self.at.as_deref()),
            of_what(&self.targets).into(),
            keep(&self.keep).into(),
            next,
            or_dash(self.last_run.as_deref().map(local).as_deref()),
            Cell::new(self.last_error.as_deref().unwrap_or("-"), if self.last_error.is_some() { Tone::Bad } else { Tone::Dim }),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

fn properties(schedule: &Schedule) -> Vec<Property> {
    vec![
        ("name", schedule.name.as_str().into()),
        ("of", of_what(&schedule.targets).into()),
        ("every", every(schedule.every).into()),
        ("at (UTC)", or_dash(schedule.at.as_deref())),
        ("keeps", keep(&schedule.keep).into()),
        ("enabled", if schedule.enabled { "yes" } else { "no" }.into()),
        ("last run (local)", or_dash(schedule.last_run.as_deref().map(local).as_deref())),
        ("next run (local)", or_dash(schedule.next_run.as_deref().map(local).as_deref())),
        ("problem", or_dash(schedule.last_error.as_deref())),
    ]
}

#[cfg(test)]
mod tests {
    use lamina_api::schedule::Every;

    use super::Often;

    #[test]
    fn intervals_are_words_or_whole_minutes() {
        let often = |text: &str| text.parse::<Often>().map(|often| often.0).ok();
        assert_eq!(
            (often("daily"), often("15m"), often("6h")),
            (Some(Every::Daily), Some(Every::Minutes(15)), Some(Every::Minutes(360)))
        );
        assert_eq!((often("90s"), often("0m"), often("60d"), often("yearly")), (None, None, None, None));
    }
}
