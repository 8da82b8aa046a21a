//! A running node's store: objects in memory. A put is atomic and durable when it returns; each change is noted in the log, so the
//! store too can be cut between any two of them. It fails on demand, and it can lie.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::DateTime;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

use crate::fault::{Fault, Faults};
use crate::log::{Event, Log};

/// Objects by key.
pub type Objects = BTreeMap<Path, Bytes>;

/// See the module's header.
#[derive(Clone)]
pub struct SimStore {
    objects: Arc<Mutex<Arc<Objects>>>,
    log: Log,
    faults: Faults,
}

impl SimStore {
    /// A store that holds `objects`.
    #[must_use]
    pub fn over(objects: Arc<Objects>, log: Log, faults: Faults) -> Self {
        Self { objects: Arc::new(Mutex::new(objects)), log, faults }
    }

    /// What it holds now.
    #[must_use]
    pub fn objects(&self) -> Arc<Objects> {
        self.objects.lock().clone()
    }

    fn change(&self, change: impl FnOnce(&mut Objects)) {
        let mut objects = self.objects.lock();
        change(Arc::make_mut(&mut objects));
        self.log.push(Event::Store(objects.clone()));
    }

    fn fault(&self) -> Result<()> {
        self.faults.next().map_or(Ok(()), |fault| Err(failed(fault)))
    }
}

fn failed(fault: Fault) -> object_store::Error {
    object_store::Error::Generic { store: "simulation", source: Box::new(fault.error()) }
}

fn unsupported(operation: &str) -> object_store::Error {
    object_store::Error::NotImplemented { operation: operation.to_owned(), implementer: "simulation".to_owned() }
}

fn meta(location: &Path, bytes: &Bytes) -> ObjectMeta {
    ObjectMeta {
        location: location.clone(),
        last_modified: DateTime::UNIX_EPOCH,
        size: bytes.len() as u64,
        e_tag: None,
        version: None,
    }
}

impl fmt::Display for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated store")
    }
}

impl fmt::Debug for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimStore({} objects)", self.objects.lock().len())
    }
}

#[async_trait]
impl ObjectStore for SimStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, _: PutOptions) -> Result<PutResult> {
        let fault = self.faults.next();
        if fault.is_none() || fault == Some(Fault::Lie) {
            self.change(|objects| drop(objects.insert(location.clone(), Bytes::from(payload))));
        }
        match fault {
            None => Ok(PutResult { e_tag: None, version: None, extensions: Default::default() }),
            Some(fault) => Err(failed(fault)),
        }
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(unsupported("multipart"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.fault()?;
        let objects = self.objects();
        let Some(bytes) = objects.get(location) else {
            return Err(object_store::Error::NotFound { path: location.to_string(), source: "no such object".into() });
        };
        let range = match &options.range {
            Some(range) => range
                .as_range(bytes.len() as u64)
                .map_err(|source| object_store::Error::Generic { store: "simulation", source: Box::new(source) })?,
            None => 0..bytes.len() as u64,
        };
        let slice = bytes.slice(range.start as usize..range.end as usize);
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::once(async { Ok(slice) }).boxed()),
            meta: meta(location, bytes),
            range,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        locations
            .map(move |location| {
                let location = location?;
                store.fault()?;
                if store.objects.lock().contains_key(&location) {
                    store.change(|objects| drop(objects.remove(&location)));
                }
                Ok(location)
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if let Err(error) = self.fault() {
            return stream::once(async { Err(error) }).boxed();
        }
        let below = |key: &Path| prefix.is_none_or(|p| key != p && key.prefix_matches(p));
        let found: Vec<_> = self.objects().iter().filter(|(key, _)| below(key)).map(|(key, b)| Ok(meta(key, b))).collect();
        stream::iter(found).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.fault()?;
        let root = Path::default();
        let prefix = prefix.unwrap_or(&root);
        let mut result = ListResult { common_prefixes: Vec::new(), objects: Vec::new(), extensions: Default::default() };
        let mut prefixes = BTreeSet::new();
        for (key, bytes) in self.objects().iter() {
            let Some(mut parts) = key.prefix_match(prefix) else { continue };
            match (parts.next(), parts.next()) {
                (Some(part), Some(_)) => drop(prefixes.insert(prefix.clone().join(part))),
                (Some(_), None) => result.objects.push(meta(key, bytes)),
                _ => {}
            }
        }
        result.common_prefixes.extend(prefixes);
        Ok(result)
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(unsupported("copy"))
    }
}
