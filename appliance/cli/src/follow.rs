//! Waits for jobs: with a bar on a terminal, with a line now and then elsewhere, all on stderr.
//!
//! Ctrl-C on a terminal asks whether the job shall end too; a second one, any elsewhere, and SIGTERM leave the job running and the command.

use std::io::{self, BufRead, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lamina_api::job::{Job, JobState, JobUnit, Outcome};
use lamina_api::name::JobId;
use lamina_api::paths;
use tokio::sync::oneshot;

use crate::ends::{End, Ends};
use crate::failure::Failure;
use crate::printer::{Printer, size};
use crate::session::{Patience, Session};

/// How long the daemon may hold an answer back for a job's end: also how often the bar moves.
const BEAT: Duration = Duration::from_secs(1);
/// How often a line says how far a job is.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What waiting came to.
pub(crate) enum Followed<T> {
    /// It was done at once.
    Done(T),
    /// The job succeeded.
    Succeeded(Box<Job>),
    /// Nobody wanted to wait: the job goes on.
    Left(Box<Job>),
}

/// Waits as the session says.
pub(crate) async fn outcome<T>(session: &Session, outcome: Outcome<T>) -> Result<Followed<T>, Failure> {
    match outcome {
        Outcome::Done(done) => Ok(Followed::Done(done)),
        Outcome::Job(job) if job.state == JobState::Succeeded => Ok(Followed::Succeeded(job)),
        Outcome::Job(job) if !session.patience.wait => {
            session.printer.notice(&format!("job {} goes on: lamina job wait {}", job.id, job.id));
            Ok(Followed::Left(job))
        }
        Outcome::Job(job) => to_the_end(session, *job).await.map(|job| Followed::Succeeded(Box::new(job))),
    }
}

/// Waits until `job` has ended, whatever `--no-wait` says.
///
/// # Errors
/// [`Failure::Job`] unless it succeeded, [`Failure::StillRunning`] after the limit, [`Failure::Interrupted`].
pub(crate) async fn to_the_end(session: &Session, job: Job) -> Result<Job, Failure> {
    to_the_end_as(session, job, session.patience).await
}

/// The same with another limit.
pub(crate) async fn to_the_end_as(session: &Session, job: Job, patience: Patience) -> Result<Job, Failure> {
    let id: JobId = job.id.parse()?;
    // From here on, so that none is missed between two looks.
    let mut ends = Ends::listen()?;
    let mut show = Show::new(&session.printer);
    show.update(&job);
    let until = patience.limit.map(|limit| Instant::now() + limit);
    let mut job = job;
    let mut cancelled = false;
    while !job.state.is_final() {
        if until.is_some_and(|until| Instant::now() >= until) {
            show.finish();
            return Err(Failure::StillRunning { id: job.id, state: job.state });
        }
        let beat = until.map_or(BEAT, |until| BEAT.min(until.saturating_duration_since(Instant::now())));
        tokio::select! {
            next = next(session, id, beat) => {
                job = next?;
                show.update(&job);
            }
            end = ends.next() => {
                let leave = cancelled || end == End::Terminate;
                let answer = if leave { Answer::Leave } else { show.suspend(ask(&job, &mut ends)).await };
                match answer {
                    Answer::Cancel => {
                        job = cancel(session, id).await?;
                        cancelled = true;
                    }
                    Answer::Stay => {}
                    Answer::Leave => {
                        show.finish();
                        return Err(Failure::Interrupted { job: Some(job.id) });
                    }
                }
            }
        }
    }
    show.finish();
    match job.state {
        JobState::Succeeded => Ok(job),
        JobState::Cancelled if cancelled => Err(Failure::Interrupted { job: None }),
        _ => Err(Failure::Job(Box::new(job))),
    }
}

/// The job after a beat, or as soon as it has ended.
async fn next(session: &Session, id: JobId, beat: Duration) -> Result<Job, Failure> {
    let begun = Instant::now();
    let job = session.client.job(id, beat).await?;
    // A beat of less than a second is asked for as none.
    if !job.state.is_final() {
        tokio::time::sleep(beat.saturating_sub(begun.elapsed()).max(Duration::from_millis(20))).await;
    }
    Ok(job)
}

/// A job that has just ended cannot be cancelled, and need not.
async fn cancel(session: &Session, id: JobId) -> Result<Job, Failure> {
    match session.client.tell(&paths::job_cancel(id)).await {
        Ok(job) => Ok(job),
        Err(error) if error.kind() == Some(lamina_api::problem::ProblemKind::Conflict) => {
            Ok(session.client.job(id, Duration::ZERO).await?)
        }
        Err(error) => Err(error.into()),
    }
}

enum Answer {
    Cancel,
    Stay,
    Leave,
}

async fn ask(job: &Job, ends: &mut Ends) -> Answer {
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Answer::Leave;
    }
    let mut stderr = io::stderr();
    let asked = write!(stderr, "\nCancel job {} too? [y/N, Ctrl-C leaves it running] ", job.id).and_then(|()| stderr.flush());
    if asked.is_err() {
        return Answer::Leave;
    }
    let (said, heard) = oneshot::channel();
    // A thread of its own: nothing waits for it when nobody answers.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = io::stdin().lock().read_line(&mut line);
        // Nobody listens any more after a second Ctrl-C.
        let _ = said.send(read.is_ok().then_some(line));
    });
    tokio::select! {
        line = heard => match line {
            Ok(Some(line)) if matches!(line.trim(), "y" | "Y" | "yes") => Answer::Cancel,
            Ok(Some(_)) => Answer::Stay,
            _ => Answer::Leave,
        },
        _ = ends.next() => Answer::Leave,
    }
}

/// How far a job is, as a bar or as lines.
struct Show {
    bar: Option<ProgressBar>,
    lines: bool,
    printer: Printer,
    last: Option<(Instant, String)>,
}

impl Show {
    fn new(printer: &Printer) -> Self {
        let bar = bar(printer);
        Self { lines: printer.talks() && bar.is_none(), bar, printer: *printer, last: None }
    }

    fn update(&mut self, job: &Job) {
        if let Some(bar) = &self.bar {
            if job.total > 0 {
                bar.set_length(job.total);
                bar.set_position(job.done.min(job.total));
            }
            bar.set_message(words(job));
            bar.tick();
        }
        if !self.lines || job.state.is_final() {
            return;
        }
        let due = match &self.last {
            None => true,
            Some((at, phase)) => *phase != job.phase || at.elapsed() >= LINE_EVERY,
        };
        if due {
            self.printer.notice(&format!("job {}: {}", job.id, words(job)));
            self.last = Some((Instant::now(), job.phase.clone()));
        }
    }

    async fn suspend<T>(&self, asking: impl Future<Output = T>) -> T {
        if let Some(bar) = &self.bar {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let answer = asking.await;
        if let Some(bar) = &self.bar {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        answer
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A bar on stderr, when that is a terminal and people are to be told.
pub(crate) fn bar(printer: &Printer) -> Option<ProgressBar> {
    if !printer.talks() || !io::stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} [{bar:30}] {percent:>3}% {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    Some(bar)
}

/// `copying, 3 of 100 volumes, 12 s left`.
fn words(job: &Job) -> String {
    let count = |number| if job.unit == JobUnit::Bytes { size(number) } else { number.to_string() };
    let unit = if job.unit == JobUnit::Bytes { String::new() } else { format!(" {}", job.unit.as_str()) };
    let mut words = if job.phase.is_empty() { job.state.as_str().to_owned() } else { job.phase.clone() };
    if job.total > 0 {
        words.push_str(&format!(", {} of {}{unit}", count(job.done), count(job.total)));
    }
    if let Some(left) = job.eta_seconds {
        words.push_str(&format!(", {} left", crate::rate::duration(left)));
    }
    words
}
