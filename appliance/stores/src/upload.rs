//! Multipart uploads for stores whose put is one piece: parts wait in memory, `complete` puts them together.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart};

/// Larger objects must be cut by the caller: sixteen times the largest SCO.
pub const UPLOAD_MAX: usize = 256 << 20;

/// Why an upload was refused.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// More bytes than an upload may hold in memory.
    #[error("an upload of more than {UPLOAD_MAX} bytes is not supported")]
    TooLarge,
    /// It was completed or aborted already.
    #[error("the upload is over")]
    Over,
}

/// An upload that keeps its parts in memory, at most [`UPLOAD_MAX`] bytes.
#[derive(Debug)]
pub struct BufferedUpload {
    store: Arc<dyn ObjectStore>,
    location: Path,
    options: PutMultipartOptions,
    parts: Option<Vec<Bytes>>,
    bytes: usize,
}

impl BufferedUpload {
    /// Begins one.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, location: Path, options: PutMultipartOptions) -> Self {
        Self { store, location, options, parts: Some(Vec::new()), bytes: 0 }
    }

    fn take_part(&mut self, data: &PutPayload) -> Result<(), UploadError> {
        let parts = self.parts.as_mut().ok_or(UploadError::Over)?;
        self.bytes = self.bytes.saturating_add(data.content_length());
        if self.bytes > UPLOAD_MAX {
            self.parts = None;
            return Err(UploadError::TooLarge);
        }
        parts.extend(data.iter().cloned());
        Ok(())
    }
}

fn refused(error: UploadError) -> object_store::Error {
    object_store::Error::NotSupported { source: Box::new(error) }
}

#[async_trait]
impl MultipartUpload for BufferedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let taken = self.take_part(&data).map_err(refused);
        Box::pin(async move { taken })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let parts = self.parts.take().ok_or_else(|| refused(UploadError::Over))?;
        let options =
            PutOptions { attributes: self.options.attributes.clone(), tags: self.options.tags.clone(), ..PutOptions::default() };
        self.store.put_opts(&self.location, parts.into_iter().collect(), options).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.parts = None;
        Ok(())
    }
}
