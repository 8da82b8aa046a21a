//! What the interface remembers: documents, and on them tokens, jobs and kept answers; the audit log beside. And the calls about these.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lamina_api::appliance::{Access, Jobs as JobCalls, Overview};
use lamina_api::audit::{AuditLine, AuditList};
use lamina_api::caller::Caller;
use lamina_api::idempotency::KeptAnswer;
use lamina_api::job::{Job, JobList, JobState};
use lamina_api::name::{JobId, Name};
use lamina_api::page::Page;
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::token::{CreateToken, NewToken, TokenList};
use lamina_contract::Clock;
use tokio::runtime::Handle;

use crate::audit_log::AuditLog;
use crate::documents::{Documents, Expected, Kind};
use crate::jobs::Jobs;
use crate::machines::of_document;
use crate::schedules::Schedules;
use crate::served::Served;
use crate::state_dir::StateDir;
use crate::tokens::Tokens;

/// How often is looked whether a minute of the audit log's sums is over.
const SETTLE: Duration = Duration::from_secs(15);

/// All of it.
pub(crate) struct Records {
    pub(crate) documents: Arc<Documents>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) schedules: Schedules,
    tokens: Tokens,
    pub(crate) audit: AuditLog,
}

impl Records {
    /// What an earlier process left; jobs run on `runtime`. What of it cannot be had is shown as degraded, and guests are served.
    pub(crate) fn open(state: &StateDir, clock: &Arc<dyn Clock>, runtime: Handle) -> Self {
        let documents = Arc::new(Documents::open(&state.documents()));
        Self {
            jobs: Arc::new(Jobs::open(Arc::clone(&documents), Arc::clone(clock), runtime)),
            tokens: Tokens::open(&documents),
            schedules: Schedules::open(&documents),
            audit: AuditLog::open(state.audit()),
            documents,
        }
    }
}

/// Writes down what the audit log has summed up, until it is dropped.
pub(crate) async fn settle_audit(served: Arc<Served>) {
    loop {
        tokio::time::sleep(SETTLE).await;
        let settling = Arc::clone(&served);
        // What is lost by a panic is said by it.
        let _ = tokio::task::spawn_blocking(move || settling.records.audit.settle(Instant::now())).await;
    }
}

impl JobCalls for Served {
    fn jobs(&self, state: Option<JobState>, page: &Page) -> Result<JobList, Problem> {
        Ok(self.records.jobs.list(state, page))
    }

    fn job(&self, id: JobId) -> Result<Job, Problem> {
        self.records.jobs.get(id)
    }

    fn cancel_job(&self, id: JobId) -> Result<Job, Problem> {
        self.records.jobs.cancel(id)
    }

    fn forget_job(&self, id: JobId) -> Result<(), Problem> {
        self.records.jobs.forget(id)
    }
}

impl Access for Served {
    fn identify(&self, secret: &str) -> Option<Caller> {
        self.records.tokens.identify(secret, self.now())
    }

    fn tokens(&self, page: &Page) -> Result<TokenList, Problem> {
        Ok(self.records.tokens.list(page))
    }

    fn create_token(&self, request: &CreateToken) -> Result<NewToken, Problem> {
        self.records.tokens.create(&self.records.documents, request, self.now())
    }

    fn delete_token(&self, name: &Name) -> Result<(), Problem> {
        self.records.tokens.delete(&self.records.documents, name.as_str())
    }

    fn audit(&self, limit: usize) -> Result<AuditList, Problem> {
        let lines = self.records.audit.newest(limit);
        let unreadable = |error: io::Error| Problem::new(ProblemKind::Internal, format!("the audit log cannot be read: {error}"));
        lines.map(|lines| AuditList { lines }).map_err(unreadable)
    }

    fn record(&self, line: &AuditLine) {
        if let Err(error) = self.records.audit.record(line, Instant::now()) {
            tracing::error!(%error, ?line, "the audit log cannot be written");
        }
    }

    fn kept_answers(&self) -> Vec<KeptAnswer> {
        self.records.documents.list::<KeptAnswer>(Kind::Answer).into_iter().map(|stored| stored.body).collect()
    }

    fn keep_answer(&self, answer: &KeptAnswer) -> Result<(), Problem> {
        let kept = self.records.documents.put(Kind::Answer, &answer.key, Expected::Anything, answer);
        kept.map(|_| ()).map_err(|error| of_document(&error))
    }

    fn drop_answer(&self, key: &str) {
        if let Err(error) = self.records.documents.delete(Kind::Answer, key, Expected::Anything) {
            tracing::warn!(%error, "an answer that is forgotten may be back after a restart");
        }
    }
}
