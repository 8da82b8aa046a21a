//! A stream whose other side must keep reading: a write that makes no progress for a while fails, and one of an answer that is not taken in
//! time, however steadily it trickles. So a client that reads slowly holds task, memory and place for so long and no longer. Reading has its
//! own bounds, in time for headers and for bodies.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a client may take to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Until there is some progress.
    pub(crate) progress: Duration,
    /// For all of an answer.
    pub(crate) answer: Duration,
}

/// By when the present answer must have been taken; none before the first. Progress does not move it, the next answer does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deadline(Arc<Mutex<Option<Instant>>>);

impl Deadline {
    /// An answer begins, for which there is so much time.
    pub(crate) fn begin(&self, time: Duration) {
        *self.0.lock() = Some(Instant::now() + time);
    }
}

/// A stream with a patience.
pub(crate) struct Paced<S> {
    stream: S,
    progress: Duration,
    deadline: Deadline,
    /// Set while a write waits.
    until: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    /// Writes to `stream` fail after `progress` without any, and where they would wait beyond the deadline.
    pub(crate) fn new(stream: S, progress: Duration, deadline: Deadline) -> Self {
        Self { stream, progress, deadline, until: None }
    }

    /// What a write's `outcome` means by now.
    fn judged<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.until = None;
            return outcome;
        }
        let (progress, deadline) = (self.progress, &self.deadline);
        let until = self.until.get_or_insert_with(|| {
            let idle = Instant::now() + progress;
            Box::pin(tokio::time::sleep_until(deadline.0.lock().map_or(idle, |deadline| deadline.min(idle))))
        });
        match until.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads too slowly"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judged(context, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.judged(context, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judged(context, outcome)
    }
}
