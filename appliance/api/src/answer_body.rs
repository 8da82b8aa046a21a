//! An answer's bytes on their way to a client, with the place that it was given among the requests in flight: that is free again when the
//! client has read them, not when they were made. They go in pieces, so that a connection holds a copy of a piece or two and no more. How
//! long a client may take is the connection's business: here nobody asks while it does not read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

/// What is handed to a connection at a time; it copies as much.
const PIECE_BYTES: usize = 64 << 10;

/// See the file's header.
pub(crate) struct AnswerBody {
    left: Bytes,
    _place: Option<OwnedSemaphorePermit>,
}

impl AnswerBody {
    pub(crate) fn new(bytes: Bytes, place: Option<OwnedSemaphorePermit>) -> Self {
        Self { left: bytes, _place: place }
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let piece = self.left.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.left.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::Bytes;
    use http_body_util::BodyExt;
    use tokio::sync::Semaphore;

    use super::{AnswerBody, PIECE_BYTES};

    #[test]
    fn a_place_is_kept_until_the_last_piece_was_taken() {
        let places = Arc::new(Semaphore::new(1));
        let place = Arc::clone(&places).try_acquire_owned().expect("free");
        let bytes = Bytes::from(vec![7; 2 * PIECE_BYTES + 5]);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(async {
            let mut body = AnswerBody::new(bytes.clone(), Some(place));
            let mut read = Vec::new();
            while let Some(frame) = body.frame().await {
                assert_eq!(places.available_permits(), 0);
                read.extend_from_slice(&frame.expect("no error").into_data().expect("bytes"));
            }
            assert_eq!(read, bytes);
            drop(body);
            assert_eq!(places.available_permits(), 1);
        });
    }
}
