//! [`DriveStore`] as an `ObjectStore`: each operation is one task on the blocking pool, a bounded number per drive at once. One that
//! hangs so keeps its own threads and nobody else's.
//!
//! A caller that goes away does not stop an operation that has begun: it runs to its end on its blocking thread.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::spawn_blocking;

use crate::drive::{Drive, DriveStore, Refusal, STORE};
use crate::drive_read::{Opened, read_bytes};
use crate::fault::StoreFault;
use crate::upload::BufferedUpload;

/// A read of more than this comes in pieces, so that memory does not grow with the object.
const WINDOW: u64 = 16 << 20;

/// Objects listed ahead of the reader.
const LIST_AHEAD: usize = 512;

async fn blocking<T: Send + 'static>(
    drive: &Arc<Drive>,
    key: &Path,
    operation: impl FnOnce(&Drive) -> Result<T, Refusal> + Send + 'static,
) -> Result<T> {
    let drive = Arc::clone(drive);
    let turn = turn(&drive).await;
    let work = move || {
        let done = operation(&drive);
        drop(turn);
        done
    };
    match spawn_blocking(work).await {
        Ok(done) => done.map_err(|refusal| refusal.into_store_error(key)),
        Err(join) => Err(object_store::Error::Generic { store: STORE, source: Box::new(join) }),
    }
}

/// A turn on the drive, for as long as a thread works on it.
async fn turn(drive: &Drive) -> Option<OwnedSemaphorePermit> {
    // Never closed.
    Arc::clone(&drive.operations).acquire_owned().await.ok()
}

fn joined(error: StoreFault) -> object_store::Error {
    error.into_store_error(STORE)
}

#[async_trait]
impl ObjectStore for DriveStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if matches!(opts.mode, PutMode::Update(_)) {
            return Err(object_store::Error::NotImplemented {
                operation: "put if unchanged".into(),
                implementer: self.to_string(),
            });
        }
        let key = location.clone();
        let e_tag = blocking(&self.drive, location, move |drive| drive.put(&key, payload.as_ref(), &opts.mode)).await?;
        Ok(PutResult { e_tag: Some(e_tag), version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Ok(Box::new(BufferedUpload::new(Arc::new(self.clone()), location.clone(), opts)))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let key = location.clone();
        let head = options.head;
        let (opened, first) = blocking(&self.drive, location, move |drive| {
            let opened = drive.open_object(&key, &options)?;
            let first = if head { Bytes::new() } else { read_bytes(&opened.file, &window(&opened.range))? };
            Ok((opened, first))
        })
        .await?;
        let (meta, range) = (opened.meta.clone(), opened.range.clone());
        let payload =
            GetResultPayload::Stream(if head { stream::empty().boxed() } else { pieces(Arc::clone(&self.drive), opened, first) });
        Ok(GetResult { payload, meta, range, attributes: Default::default(), extensions: Default::default() })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let (key, ranges) = (location.clone(), ranges.to_vec());
        blocking(&self.drive, location, move |drive| drive.get_ranges(&key, &ranges)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let drive = Arc::clone(&self.drive);
        locations
            .map(move |location| {
                let drive = Arc::clone(&drive);
                async move {
                    let location = location?;
                    let key = location.clone();
                    blocking(&drive, &location, move |drive| Ok(drive.delete(&key)?)).await?;
                    Ok(location)
                }
            })
            // Enough to share the file system's commits.
            .buffered(16)
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (drive, prefix) = (Arc::clone(&self.drive), prefix.cloned());
        let (send, receive) = mpsc::channel(LIST_AHEAD);
        // Begins when it is polled: `list` itself may be called outside a runtime.
        stream::once(async move {
            let turn = turn(&drive).await;
            spawn_blocking(move || {
                let _turn = turn;
                // A reader that went away ends the walk.
                let walked = drive.walk(prefix.as_ref(), &mut |meta| send.blocking_send(Listed::Object(meta)).is_ok());
                let _ = send.blocking_send(walked.map_or_else(Listed::Failed, |()| Listed::End));
            });
            listed(receive)
        })
        .flatten()
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let (root, prefix) = (Path::default(), prefix.cloned());
        let (common_prefixes, objects) = blocking(&self.drive, &root, move |drive| Ok(drive.children(prefix.as_ref())?)).await?;
        Ok(ListResult { common_prefixes, objects, extensions: Default::default() })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let (source, target, create) = (from.clone(), to.clone(), options.mode == CopyMode::Create);
        let named = if create { to } else { from };
        blocking(&self.drive, named, move |drive| drive.copy(&source, &target, create)).await
    }
}

/// What a walk says to whoever reads its listing.
enum Listed {
    Object(ObjectMeta),
    Failed(StoreFault),
    /// The walk came to its end: a listing without it is not whole.
    End,
}

/// A walk that went away without a word (its thread panicked, the runtime ends) is an error, not the end of the list.
fn listed(receive: mpsc::Receiver<Listed>) -> BoxStream<'static, Result<ObjectMeta>> {
    stream::unfold(Some(receive), |receive| async move {
        let mut receive = receive?;
        match receive.recv().await {
            Some(Listed::Object(meta)) => Some((Ok(meta), Some(receive))),
            Some(Listed::Failed(error)) => Some((Err(joined(error)), None)),
            Some(Listed::End) => None,
            None => {
                let cut_short = StoreFault::new("listing objects", std::io::ErrorKind::Interrupted.into());
                Some((Err(joined(cut_short)), None))
            }
        }
    })
    .boxed()
}

fn window(range: &Range<u64>) -> Range<u64> {
    range.start..range.end.min(range.start.saturating_add(WINDOW))
}

/// The first window is read already; the others are read as they are asked for.
fn pieces(drive: Arc<Drive>, opened: Opened, first: Bytes) -> BoxStream<'static, Result<Bytes>> {
    let rest = window(&opened.range).end..opened.range.end;
    let file = Arc::new(opened.file);
    let later = stream::try_unfold((drive, file, rest), |(drive, file, rest)| async move {
        if rest.start >= rest.end {
            return Ok(None);
        }
        let (next, reader) = (window(&rest), Arc::clone(&file));
        let rest = next.end..rest.end;
        let turn = turn(&drive).await;
        let work = move || {
            let read = read_bytes(&reader, &next);
            drop(turn);
            read
        };
        match spawn_blocking(work).await {
            Ok(read) => Ok(Some((read.map_err(joined)?, (drive, file, rest)))),
            Err(join) => Err(object_store::Error::Generic { store: STORE, source: Box::new(join) }),
        }
    });
    stream::once(async move { Ok(first) }).chain(later).boxed()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::stream::StreamExt;
    use lamina_contract::Timestamp;
    use lamina_formats::drive::{DriveId, DriveIdentity, PoolId};
    use object_store::path::Path;
    use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
    use tokio::sync::mpsc;

    use super::{Listed, listed};
    use crate::drive::{DriveStore, OPERATIONS};

    fn object() -> Listed {
        let location = Path::from("a");
        Listed::Object(ObjectMeta { location, last_modified: Default::default(), size: 1, e_tag: None, version: None })
    }

    #[tokio::test]
    async fn a_listing_whose_walk_vanishes_is_an_error_and_not_complete() {
        for whole in [true, false] {
            let (send, receive) = mpsc::channel(8);
            send.send(object()).await.unwrap_or_else(|_| panic!("room"));
            if whole {
                send.send(Listed::End).await.unwrap_or_else(|_| panic!("room"));
            }
            drop(send);
            let items: Vec<_> = listed(receive).collect().await;
            assert!(items[0].is_ok());
            assert_eq!(items[1..].iter().map(Result::is_err).collect::<Vec<_>>(), if whole { vec![] } else { vec![true] });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_drive_whose_operations_hang_takes_a_bounded_number_of_threads_and_its_own_only() {
        let drives = [1, 2].map(|drive| {
            let top = tempfile::tempdir().expect("a directory");
            let identity = DriveIdentity { drive: DriveId(drive), pool: PoolId(7), slot: 0, created: Timestamp(1) };
            DriveStore::claim(top.path(), &identity).expect("claimed");
            let store = DriveStore::open(top.path(), PoolId(7)).expect("opened");
            (top, store)
        });
        let [(_, hanging), (_, healthy)] = &drives;
        let turns = hanging.drive.operations.clone().acquire_many_owned(OPERATIONS as u32).await.expect("all of them hang");
        let second = Duration::from_secs(1);
        let key = Path::from("a/b");
        assert!(tokio::time::timeout(second, hanging.put(&key, "x".into())).await.is_err());
        assert!(tokio::time::timeout(second, hanging.get(&key)).await.is_err());
        assert!(tokio::time::timeout(second, hanging.list(None).next()).await.is_err());
        assert!(tokio::time::timeout(second, hanging.delete(&key)).await.is_err());
        healthy.put(&key, "x".into()).await.expect("put");
        drop(turns);
        hanging.put(&key, "x".into()).await.expect("put");
    }
}
