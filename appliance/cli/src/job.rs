//! `lamina job …`, and how other verbs show their jobs.

use clap::Subcommand;
use lamina_api::job::{Job, JobList, JobState};
use lamina_api::name::JobId;
use lamina_api::paths;
use lamina_api::problem::Problem;

use crate::complete;
use crate::failure::Failure;
use crate::follow;
use crate::moment::local;
use crate::printer::{Property, Row, or_dash};
use crate::session::Session;
use crate::table::{Cell, Column};
use crate::tone::Tone;

/// What to do with jobs.
#[derive(Debug, Subcommand)]
pub(crate) enum JobVerb {
    /// Lists jobs, the newest first.
    #[command(after_long_help = "\
Examples:
  lamina job list
  lamina job list --state running
  lamina job list --state failed -o json | jq '.[].problem.detail'")]
    List {
        /// Only those in this state.
        #[arg(long, value_enum)]
        state: Option<StateArgument>,
    },
    /// Shows one job: how far it is, and what came of it.
    #[command(after_long_help = "\
Examples:
  lamina job show 000000000000002a
  lamina job show 2a -o json | jq .progress")]
    Show {
        /// Its number; zeros in front may be left out.
        #[arg(value_parser = id, add = complete::jobs())]
        id: JobId,
    },
    /// Waits until a job has ended.
    #[command(
        long_about = "Waits until a job has ended, with a bar on a terminal. Exit code 0 when it succeeded, 1 when it failed or was cancelled, \
7 when it has not ended after --timeout.",
        after_long_help = "\
Examples:
  lamina job wait 2a
  lamina job wait 2a --timeout 10m && echo done"
    )]
    Wait {
        /// Its number; zeros in front may be left out.
        #[arg(value_parser = id, add = complete::jobs())]
        id: JobId,
    },
    /// Asks a job to end early; it does so at the next place where it can.
    #[command(after_long_help = "\
Examples:
  lamina job cancel 2a")]
    Cancel {
        /// Its number; zeros in front may be left out.
        #[arg(value_parser = id, add = complete::jobs())]
        id: JobId,
    },
}

/// States that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum StateArgument {
    /// Waits for its turn.
    Queued,
    /// At work.
    Running,
    /// Done.
    Succeeded,
    /// Ended early.
    Failed,
    /// Ended early because somebody asked for it.
    Cancelled,
}

impl StateArgument {
    const fn state(self) -> JobState {
        match self {
            Self::Queued => JobState::Queued,
            Self::Running => JobState::Running,
            Self::Succeeded => JobState::Succeeded,
            Self::Failed => JobState::Failed,
            Self::Cancelled => JobState::Cancelled,
        }
    }
}

fn id(text: &str) -> Result<JobId, Problem> {
    format!("{text:0>16}").parse()
}

/// Does what `verb` says.
pub(crate) async fn run(verb: &JobVerb, session: &Session) -> Result<(), Failure> {
    let Session { client, printer, .. } = session;
    match verb {
        JobVerb::List { state } => {
            let filter = state.map(|state| format!("?state={}", state.state().as_str())).unwrap_or_default();
            printer.list(&client.all::<JobList>(&format!("{}{filter}", paths::JOBS)).await?)
        }
        JobVerb::Show { id } => print(session, &client.get(&paths::job(*id)).await?),
        JobVerb::Wait { id } => {
            let job: Job = client.get(&paths::job(*id)).await?;
            print(session, &follow::to_the_end(session, job).await?)
        }
        JobVerb::Cancel { id } => print(session, &client.tell(&paths::job_cancel(*id)).await?),
    }
}

/// Waits for a job that a verb began, as the session says, and shows what came of it.
pub(crate) async fn finish(session: &Session, job: Job) -> Result<(), Failure> {
    match follow::outcome(session, lamina_api::job::Outcome::<()>::Job(Box::new(job))).await? {
        follow::Followed::Succeeded(job) => session.printer.one(&*job, &made(&job).join("\n"), outcome),
        follow::Followed::Left(job) => print(session, &job),
        follow::Followed::Done(()) => Ok(()),
    }
}

/// Shows a job.
pub(crate) fn print(session: &Session, job: &Job) -> Result<(), Failure> {
    session.printer.one(job, &job.id, properties)
}

fn made(job: &Job) -> Vec<String> {
    let result = job.result.clone().unwrap_or_default();
    let made = if result.vms.is_empty() { result.volumes } else { result.vms };
    if made.is_empty() { vec![job.subject.clone()] } else { made }
}

/// What people want to know of a job that succeeded.
fn outcome(job: &Job) -> Vec<Property> {
    let mut rows: Vec<Property> = made(job).into_iter().map(|name| ("done", Cell::from(name))).collect();
    rows.push(("job", job.id.as_str().into()));
    rows
}

fn state(state: JobState) -> Cell {
    let tone = match state {
        JobState::Queued => Tone::Dim,
        JobState::Running => Tone::Plain,
        JobState::Succeeded => Tone::Good,
        JobState::Cancelled => Tone::Warn,
        JobState::Failed => Tone::Bad,
    };
    Cell::new(state.as_str(), tone)
}

fn progress(job: &Job) -> String {
    format!("{:.0}%", job.progress.clamp(0.0, 1.0) * 100.0)
}

impl Row for Job {
    const COLUMNS: &'static [Column] = &[
        Column::new("JOB"),
        Column::new("KIND"),
        Column::new("SUBJECT"),
        Column::new("STATE"),
        Column::number("DONE"),
        Column::new("PHASE"),
        Column::new("CREATED"),
        Column::new("ENDED").wide(),
        Column::new("PROBLEM").wide(),
    ];

    fn cells(&self) -> Vec<Cell> {
        vec![
            self.id.as_str().into(),
            self.kind.as_str().into(),
            self.subject.as_str().into(),
            state(self.state),
            progress(self).into(),
            or_dash(Some(self.phase.as_str()).filter(|phase| !phase.is_empty())),
            local(&self.created).into(),
            or_dash(self.ended.as_deref().map(local).as_deref()),
            or_dash(self.problem.as_ref().map(|problem| problem.detail.as_str())),
        ]
    }

    fn name(&self) -> String {
        self.id.clone()
    }
}

fn properties(job: &Job) -> Vec<Property> {
    let mut rows = vec![
        ("job", job.id.as_str().into()),
        ("kind", job.kind.as_str().into()),
        ("subject", job.subject.as_str().into()),
        ("state", state(job.state)),
        ("phase", or_dash(Some(job.phase.as_str()).filter(|phase| !phase.is_empty()))),
        ("progress", format!("{}, {} of {} {}", progress(job), job.done, job.total, job.unit.as_str()).into()),
        ("created", local(&job.created).into()),
        ("started", or_dash(job.started.as_deref().map(local).as_deref())),
        ("ended", or_dash(job.ended.as_deref().map(local).as_deref())),
    ];
    if let Some(left) = job.eta_seconds {
        rows.push(("left", crate::rate::duration(left).into()));
    }
    if let Some(result) = &job.result {
        rows.extend(result.volumes.iter().map(|name| ("volume", Cell::from(name.as_str()))));
        rows.extend(result.vms.iter().map(|name| ("VM", Cell::from(name.as_str()))));
        rows.extend(result.discarded.iter().map(|name| ("what it held before", Cell::from(name.as_str()))));
    }
    if let Some(problem) = &job.problem {
        rows.push(("problem", Cell::new(problem.detail.as_str(), Tone::Bad)));
        rows.extend(problem.advice.iter().map(|advice| ("advice", Cell::from(advice.as_str()))));
    }
    rows
}
