//! The guest's side of a request in a simulation: a buffer, and a place for the answer.

use std::sync::Arc;

use lamina_contract::{IoError, Transfer, Transferable};
use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Default)]
struct Shared {
    bytes: Mutex<Vec<u8>>,
    answer: Mutex<Option<Result<(), IoError>>>,
    answered: Notify,
}

/// What remains with the guest when its request is on its way.
#[derive(Clone)]
pub struct Pending(Arc<Shared>);

/// What happens with the answer.
type Then = Box<dyn FnOnce(Result<(), IoError>) + Send>;

struct Buffer {
    shared: Arc<Shared>,
    then: Option<Then>,
}

/// A transfer with `bytes` as its buffer; `then` is called with the answer, before anybody can see it.
pub fn transfer(bytes: Vec<u8>, then: impl FnOnce(Result<(), IoError>) + Send + 'static) -> (Transfer, Pending) {
    let shared = Arc::new(Shared { bytes: Mutex::new(bytes), ..Shared::default() });
    let buffer = Buffer { shared: shared.clone(), then: Some(Box::new(then)) };
    (Transfer::new(Box::new(buffer)), Pending(shared))
}

impl Pending {
    /// The answer, if there is one.
    #[must_use]
    pub fn answer(&self) -> Option<Result<(), IoError>> {
        *self.0.answer.lock()
    }

    /// Waits for the answer.
    pub async fn answered(&self) -> Result<(), IoError> {
        loop {
            let notified = self.0.answered.notified();
            if let Some(answer) = self.answer() {
                return answer;
            }
            notified.await;
        }
    }

    /// The buffer.
    #[must_use]
    pub fn take_bytes(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.bytes.lock())
    }
}

impl Transferable for Buffer {
    fn len(&self) -> usize {
        self.shared.bytes.lock().len()
    }

    fn copy_out(&self, offset: usize, to: &mut [u8]) -> Result<(), IoError> {
        let bytes = self.shared.bytes.lock();
        let end = offset.checked_add(to.len()).ok_or(IoError::GuestMemory)?;
        to.copy_from_slice(bytes.get(offset..end).ok_or(IoError::GuestMemory)?);
        Ok(())
    }

    fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), IoError> {
        let mut bytes = self.shared.bytes.lock();
        let end = offset.checked_add(from.len()).ok_or(IoError::GuestMemory)?;
        bytes.get_mut(offset..end).ok_or(IoError::GuestMemory)?.copy_from_slice(from);
        Ok(())
    }

    fn fill_zero(&self, offset: usize, len: usize) -> Result<(), IoError> {
        let mut bytes = self.shared.bytes.lock();
        let end = offset.checked_add(len).ok_or(IoError::GuestMemory)?;
        bytes.get_mut(offset..end).ok_or(IoError::GuestMemory)?.fill(0);
        Ok(())
    }

    fn answer(mut self: Box<Self>, result: Result<(), IoError>) {
        if let Some(then) = self.then.take() {
            then(result);
        }
        let before = self.shared.answer.lock().replace(result);
        assert!(before.is_none(), "a request was answered twice");
        self.shared.answered.notify_waiters();
        self.shared.answered.notify_one();
    }
}
